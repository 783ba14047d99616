"""A training run put together: shards, loader, network, engine, folder, mirror; then steps, and a model in the end.

Training opens features and video-level labels. The mAP that a run may follow meanwhile is measured by `Validation`,
which alone opens temporal ground truth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from aumn.config.run_config import RunConfig
from aumn.data.loader import TrainingLoader, split_holdout
from aumn.data.settings import DataSettings
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.records import InputError, Stopped
from aumn.runfolder.checkpoint import save_model
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.metrics import now_ms
from aumn.runfolder.saving import RunWriter, fetching
from aumn.runtime import preemption
from aumn.runtime.attempts import is_restart, launch_id
from aumn.runtime.ending import first_line
from aumn.runtime.engines import build_engine
from aumn.runtime.ranks import Ranks
from aumn.tracking.mirror import Mirror, push_rest
from aumn.tracking.sent import NAME as MIRROR
from aumn.training.alerts import watching
from aumn.training.finite import FiniteWatch
from aumn.training.loop import Run, train
from aumn.training.recovery import process_began_s, seconds_by_part
from aumn.training.resume import NOTHING_TO_RESUME, Start, find_start, new_card, open_shards
from aumn.training.validation import Validation

ATTEMPT_ENDS_S = 60
"""How long an attempt takes to end when it has found that it is cut off: a store's answer, and what MLflow gets."""

GO_ON = "the same command with --resume goes on from the last whole checkpoint"

Say = Callable[[str], None]


def run_training(
    config: RunConfig, ranks: Ranks, *, resume: bool, say: Say, advance: Callable[[int, int], None]
) -> None:
    """Train as `config` says, on all ranks together; checkpoints, the final model and its registration included.

    `say` takes lines for people, `advance` the steps done and in all; both are called on every rank.
    """
    shards = open_shards(config, access_of(config.data), ranks, resume=resume, say=say)
    config.check_streams(shards.streams)
    indices = shards.indices(*config.data.subsets)
    training, held_out = split_holdout(indices, shards.ids(indices), config.data)
    loader = TrainingLoader(
        shards,
        training,
        global_videos=config.batch.global_videos,
        micro_videos=config.batch.micro_videos,
        snippets=config.data.snippets,
        seed=config.run.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        pin_memory=config.run.device == "cuda",
        window_shards=config.data.window_shards if config.data.order == "shards" else None,
        damaged_limit=config.data.damage_limit if config.data.on_damage == "skip" else 0,
        weights=config.data.weights,
    )
    device = ranks.device(config.run.device)
    bank = Bank.over(ranks.split(config.engine.bank_ranks)[0], config.model.units)
    _check_memory(shards, config, device, bank)
    card = new_card(config, shards)
    validation = Validation.of(config, shards, held_out, card)
    if resume and not config.run.folder.exists():
        raise InputError(f"{config.run.folder} {NOTHING_TO_RESUME}")
    folder = RunFolder(config.run.folder)
    # The first rank of the attempt before may wait for others for so long, where a link is cut, before it learns of it.
    wait_s = config.run.start_timeout_s + ATTEMPT_ENDS_S
    ranks.wait_at_most(wait_s + config.run.start_timeout_s)
    with folder.writing(launch_id(os.environ), wait_s) if ranks.is_first else nullcontext():
        ranks.ask(lambda: 0)()  # the first rank has the folder
        ranks.wait_at_most(config.run.start_timeout_s)
        start = find_start(config, card, ranks, resume=resume, rows=bank.rows if bank else None)
        if start.finished:
            say(
                f"{folder.path} is finished: step {config.run.steps} of {config.run.steps}, its model is in "
                f"{folder.path / 'model'}. Set run.steps higher to go on."
            )
            if ranks.is_first and config.tracking.enabled:
                push_rest(folder, say)
            return
        torch.manual_seed(config.run.seed)
        network = _build(shards, config, bank)
        how = config.run.engine
        engine = build_engine(how, network, ranks, device, optimizer=config.optimizer, engine=config.engine)
        start.load_into(engine)
        run = Run(config, engine, loader, FiniteWatch(engine), start.progress, validation, say=say, advance=advance)
        try:
            with _recorded(run, start) as mirror:
                say(
                    f"{folder.path}: {len(training)} training videos, {len(held_out)} held out; steps "
                    f"{start.progress.step} to {config.run.steps} of {config.batch.global_videos} videos on "
                    f"{ranks.size} rank{'s' * (ranks.size > 1)}."
                )
                notes = _note_small_cache(config, shards), _note_background(config, shards, training)
                for note in filter(None, (*notes, note_held_out(shards.ids(held_out)))):
                    say(note)
                if run.writer and start.resumed and is_restart(os.environ):
                    run.is_back = partial(_tell_recovery, run, start, time.time())
                with preemption.finish_first(GO_ON):
                    train(run)
                _publish(run, mirror)
        finally:
            if run.all_stop:
                ranks.barrier()  # a launcher ends the others as soon as one has left


def _tell_recovery(run: Run, start: Start, loaded_s: float) -> None:
    """What the restart took, behind its first new step."""
    ranks, process_s = run.engine.ranks, process_began_s()
    own = {"start": ranks.began_s, "rendezvous": ranks.met_s, "load": loaded_s, "first_step": time.time()}
    parts = seconds_by_part(os.environ, seen_s=start.seen_s, ended_s=start.ended_s, process_s=process_s, own=own)
    of_each = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in parts.items())
    run.say(f"back after {sum(parts.values()):.1f} s: {of_each}")
    assert run.writer is not None
    run.writer.note(recovery=parts)


def access_of(data: DataSettings) -> Access:
    """How a run reads its shard sets."""
    folder, gigabytes = data.cache.folder, data.cache.size_gb
    return Access(data.read == "shard", folder, round(gigabytes * 10**9), data.store_away_s)


def _note_small_cache(config: RunConfig, shards: ShardSet) -> str:
    """What to do about a cache that fetches the same tars again and again."""
    remote = [part for part in shards.parts if part.is_remote]
    remote_bytes = sum(part.bytes for part in remote)
    if config.data.read == "range" or config.data.order == "shards" or remote_bytes <= config.data.cache.size_gb * 1e9:
        return ""
    return (
        f"data.cache.size_gb={config.data.cache.size_gb:g} is less than the {remote_bytes / 1e9:.3g} GB of "
        f"{' and '.join(str(part.path) for part in remote)}, so tars are fetched many times an epoch: raise it, or set "
        "data.order=shards or data.read=range."
    )


def _note_background(config: RunConfig, shards: ShardSet, training: list[int]) -> str:
    """What training makes of videos in which no action occurs."""
    if not (count := len(shards.unlabelled(training))):
        return ""
    made = (
        "each says of every class that it is not there (model.independent_classes)"
        if config.model.independent_classes
        else "the softmax of Eq. 9 says nothing about them, so they only teach the attention to be sparse (Eq. 13); "
        "with model.independent_classes=true they also say of every class that it is not there"
    )
    return f"{count:,} of {len(training):,} training videos have no action: {made}."


def note_held_out(videos: list[str]) -> str:
    """Who is held out, the first few by name; nothing where nobody is."""
    return f"held out: {', '.join(videos[:5])}{f' and {len(videos) - 5:,} more' * (len(videos) > 5)}" if videos else ""


def _build(shards: ShardSet, config: RunConfig, bank: Bank | None) -> StreamNetworks:
    labels = config.loss.pseudo_labels > 0
    return StreamNetworks.build(shards.streams, len(shards.classes), config.model, scores_snippets=labels, bank=bank)


class _Unfilled(TorchFunctionMode):
    """Fills no tensors: for those without memory, PyTorch imports its compiler to do that, a third of a start."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and func.__name__ in {"uniform_", "div_", "div", "mul"}:
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def _check_memory(shards: ShardSet, config: RunConfig, device: torch.device, bank: Bank | None) -> None:
    """InputError where what a rank holds at the least does not fit; tensors without memory tell it at once.

    That is weights, gradients and Adam's two means; with DeepSpeed, which may share these out or put them elsewhere,
    the weights in host memory, where the network is made. What a step needs, `aumn train --dry-run` measures.
    """
    with torch.device("meta"), _Unfilled():
        count = sum(parameter.numel() for parameter in _build(shards, config, bank).parameters())
    is_shared = config.run.engine == "deepspeed"
    held, there = 4 * count * (1 if is_shared else 4), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cuda" and not is_shared:
        there = torch.cuda.mem_get_info(device)[1]
    if held > there:
        raise InputError(
            f"model.units={config.model.units:,} and model.embedding_width={config.model.embedding_width:,} make "
            f"{count:,} parameters, for which a rank would hold {held / 1e9:,.0f} GB at the least, where it has "
            f"{there / 1e9:,.0f}: lower them; aumn train --dry-run tells what fits."
        )


@contextmanager
def _recorded(run: Run, start: Start) -> Iterator[Mirror | None]:
    """Give the first rank's run its writer and its mirror, if it is tracked; both are told how the block ended."""
    config, ranks, mirror = run.config, run.engine.ranks, None
    if not ranks.is_first:
        with _verdict(RunFolder(config.run.folder), ranks):
            try:
                yield None
            finally:
                run.rows.wait(ATTEMPT_ENDS_S)  # what the first rank is still writing, it finishes
        return
    if config.tracking.enabled:  # before anything is replaced in the folder
        mirror = Mirror(config.run.folder, config.tracking, resumed=start.resumed, say=run.say)
    elif not start.resumed:
        (config.run.folder / MIRROR).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    keep = config.run.keep_checkpoints
    writer = RunWriter(config.run.folder, keep, run.say, last=start.path, lines=start.lines, status=start.status)
    try:
        with closing(writer), watching(run, writer):
            if mirror:
                writer.changed = mirror.wake
            writer.begin(start.progress.config)
            run.writer = writer
            yield mirror
    except BaseException as caught:
        error = ranks.settle(caught)
        writer.note(**_end(error))
        if mirror:
            with suppress(InputError):  # a store that cannot be told must not hide what went wrong
                mirror.close(hasty=True)
        if error is caught:
            raise
        raise error from caught
    writer.note(state="finished", code=0, ended_ms=now_ms())
    if mirror:
        mirror.close(hasty=False)


@contextmanager
def _verdict(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Where what a user has to mend ends this rank, not the first, or others do not answer, note it in the status.

    The first rank, which writes the status, may be lost or hung, and then nobody else would know whether starting the
    run again is in vain. Where it lives it does the same a little later.
    """
    holder = folder.holder()  # the first rank, of this attempt
    try:
        yield
    except BaseException as caught:
        error = ranks.settle(caught)
        unanswered = isinstance(error, Stopped) and error.code == os.EX_TEMPFAIL and not error.signal
        if unanswered or isinstance(error, InputError):  # of its own: another rank's comes as `Stopped`
            with suppress(OSError, InputError):
                status = folder.status()
                if status.state == "running" and folder.holder() == holder:
                    folder.write_status(status.model_copy(update=_end(error)), by=ranks.rank)
        if error is caught:
            raise
        raise error from caught


def _end(error: BaseException) -> dict[str, Any]:
    """What the status says of a run that this has ended."""
    code = error.code if isinstance(error, Stopped | InputError) else 1
    stopped = isinstance(error, Stopped | KeyboardInterrupt) and code != InputError.code
    return {
        "state": "stopped" if stopped else "failed", "why": first_line(error), "code": code, "ended_ms": now_ms(),
    }  # fmt: skip


def _publish(run: Run, mirror: Mirror | None) -> None:
    """The finished model, in the run's folder and, if it has a name, in the registry; by the first rank."""
    try:
        weights = run.engine.weights()
        if run.writer is None:
            if run.engine.data.is_first:
                run.rows.save(weights)
                run.rows.wait()
            return
        run.writer.wait()
        folder = run.config.run.folder / "model"
        try:
            with fetching(weights):
                save_model(folder, weights, run.progress.card)
        except OSError as error:
            last = run.writer.last
            again = f"run the same command with --resume, which goes on from {last}" if last else "train again"
            raise InputError(
                f"The trained model cannot be written to {folder}: {error}. Free space, or mend the folder; then "
                f"{again}."
            ) from error
        run.say(f"model: {folder}")
        steps = run.config.run.steps
        run.writer.note(
            step=steps, published_step=steps
        )  # the disk may have refused the last checkpoint, and not the model
        if mirror and run.config.tracking.model_name and (version := mirror.publish()):
            name, alias = run.config.tracking.model_name, run.config.tracking.alias
            run.say(f"registered: {version}{f', which is now models:/{name}@{alias}' if alias else ''}")
    except Stopped as stop:
        raise preemption.stopped(stop.signal, GO_ON) from None
