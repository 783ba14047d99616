"""Where a run starts: anew, from a checkpoint of its own, or not at all where it is finished."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from aumn import __version__
from aumn.config.run_config import RunConfig
from aumn.data.shards.layout import read_description
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.data.shards.stores import open_store
from aumn.data.shards.union import open_sets
from aumn.records import InputError
from aumn.runfolder.checkpoint import (
    Checkpoint,
    ModelCard,
    last_card,
    mark_best,
    read_checkpoint,
    read_last_checkpoint,
    source_commit,
)
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import last_metrics, now_ms
from aumn.runfolder.typed import typed
from aumn.runtime.attempts import is_restart, launch_id
from aumn.runtime.engines import Engine
from aumn.runtime.ranks import Ranks
from aumn.tracking.job_run import job_tags
from aumn.tracking.mirror import registered


@dataclass
class Progress:
    """Where a run stands, as its checkpoints hold it."""

    card: ModelCard
    step: int = 0
    best: float = -1.0
    best_step: int = 0
    evaluation_due: bool = False  # of this very step: the run was stopped before, or in the midst of it
    config: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For a checkpoint, beside its step and its card."""
        return {name: getattr(self, name) for name in FACTS}


class _Optimizer(BaseModel):
    """See `Engine.trainer_state`."""

    groups: list[dict[Literal["params"], list[str]]]
    loss_scales: dict[str, dict[Literal["value", "good_steps"], float]] = {}


class _Facts(BaseModel):
    """What `trainer.json` says beside the step."""

    best: float
    best_step: int
    evaluation_due: bool
    config: dict[str, dict[str, Any]]
    metrics_lines: int = 0
    optimizer: _Optimizer


NOTHING_TO_RESUME = "holds no checkpoint to resume from: start the run without --resume."
FACTS = ("best", "best_step", "evaluation_due", "config")


@dataclass
class Start:
    """Where to start, the same on every rank, but for the status, which the first one alone writes.

    Without a checkpoint: from the beginning. `lines` of the metrics were logged up to it; checkpoints of commit 0e01a02
    say nothing of them, since metrics.jsonl begins behind those.
    """

    progress: Progress
    status: Status
    finished: bool = False  # the run has all its steps, and its model is wherever it should be
    resumed: bool = False  # the folder's run goes on, with a checkpoint or without one
    path: Path | None = None
    checkpoint: Checkpoint | None = None
    lines: int = 0
    seen_s: float | None = None  # when the attempt before logged its last line, and when it ended: where that is known
    ended_s: float | None = None

    def load_into(self, engine: Engine) -> None:
        """Let the engine go on from the checkpoint, if there is one; what it held is let go."""
        if self.checkpoint is not None:
            checkpoint, self.checkpoint = self.checkpoint, None
            engine.load_state(checkpoint.weights, checkpoint.trainer_tensors, checkpoint.trainer_facts["optimizer"])


def open_shards(
    config: RunConfig, access: Access, ranks: Ranks, *, resume: bool, say: Callable[[str], None]
) -> ShardSet:
    """The training data: of a run that goes on, the version of each set that it began with, else the newest.

    It is the same on every rank, while sets grow and where a shared file system shows them to the ranks differently.
    """
    wanted: list[str] = []
    if ranks.is_first:
        goes_on = _goes_on(RunFolder(config.run.folder).status(), resume=resume)
        card = last_card(config.run.folder) if goes_on else None
        wanted = list(card.dataset_parts or [card.dataset_identity]) if card else []
        shards = open_sets(config.data, access, wanted)
        for part in shards.parts:
            if part.identity in wanted and part.identity != read_description(open_store(part.path)).identity:
                say(
                    f"{part.path}: the set has grown since: this run goes on with the {len(part):,} videos that it "
                    "began with."
                )
        wanted = [part.identity for part in shards.parts]
    wanted = ranks.broadcast(wanted)
    if not ranks.is_first:
        shards = open_sets(config.data, access, wanted)
        for part, identity in zip(shards.parts, wanted, strict=True):
            if part.identity != identity:
                raise InputError(
                    f"{part.path} is not on rank {ranks.rank} what it is on the first (identity {part.identity}, not "
                    f"{identity}): let all ranks read the same shard set, and start again."
                )
    return shards


def find_start(config: RunConfig, card: ModelCard, ranks: Ranks, *, resume: bool, rows: slice | None = None) -> Start:
    """Go on with the run in `run.folder` if the user says so, or if a launcher has started this very launch again.

    `card` is that of a run which begins here. The first rank, which holds the folder's lock, looks, and the others
    follow: a shared file system may show them different things. Each reads its `rows` of a bank over ranks, None: all.
    """
    resumed, status, found = (
        _look(config.run.folder, rows, resume=resume) if ranks.is_first else (False, Status(), None)
    )
    path = ranks.broadcast(found and found[0])
    progress, checkpoint, lines = Progress(card), None, 0
    if path is not None:
        checkpoint = found[1] if found else read_checkpoint(path, rows)
        remedy = f"remove {path}, and the run goes on from the checkpoint before it"
        facts = typed(_Facts, checkpoint.trainer_facts, path / "trainer.json", remedy)
        lines = facts.metrics_lines
        progress = Progress(checkpoint.card, checkpoint.step, **{name: getattr(facts, name) for name in FACTS})
        _refuse_another_run(progress, config, card, path)
        if ranks.is_first and progress.best_step == progress.step:
            mark_best(config.run.folder, path)  # a run may have been killed just before it did
    progress.config = config.model_dump(mode="json")
    finished = ranks.broadcast(ranks.is_first and _is_finished(config, progress, status))
    seen_s = None
    with suppress(InputError, KeyError):  # which is no reason not to start
        seen_s = last_metrics(config.run.folder)["at_ms"] / 1000 if resumed else None
    begun = status.model_copy(update=_begun(config, progress, ranks))
    ended_s = status.ended_ms and status.ended_ms / 1000
    return Start(progress, begun, finished, resumed, path, checkpoint, lines, seen_s, ended_s)


def _is_finished(config: RunConfig, progress: Progress, status: Status) -> bool:
    run, name = config.run, config.tracking.model_name if config.tracking.enabled else None
    return (
        progress.step == status.published_step == run.steps
        and status.state == "finished"
        and (name is None or registered(run.folder, name) is not None)
        and (run.folder / "model" / "model.json").exists()
    )


def _begun(config: RunConfig, progress: Progress, ranks: Ranks) -> dict[str, Any]:
    """What the status says of a run that begins here or goes on."""
    card, launch = progress.card, launch_id(os.environ)
    facts = {"dataset": card.dataset, "dataset_identity": card.dataset_identity, "commit": card.commit or "unknown"}
    facts |= {"ranks": str(ranks.size), "host": os.uname().nodename, **job_tags(os.environ)}
    where: dict[str, Any] = {"step": progress.step, "best": progress.best, "best_step": progress.best_step}
    where |= {"steps": config.run.steps, "slow": {}, "recovery": {}}
    return {**where, "state": "running", "why": "", "code": None, "ended_ms": None, "facts": facts, "launch": launch}


def new_card(config: RunConfig, shards: ShardSet) -> ModelCard:
    """The card of a model that this code is about to train."""
    return ModelCard(
        model=config.model,
        localize=config.localize,
        classes=shards.classes,
        streams=shards.streams,
        stride_frames=shards.stride_frames,
        window_frames=shards.window_frames,
        extractor=shards.extractor,
        dataset=shards.name,
        dataset_identity=shards.identity,
        dataset_parts=tuple(part.identity for part in shards.parts) if len(shards.parts) > 1 else None,
        metrics={},
        aumn_version=__version__,
        commit=source_commit(),
    )


def _goes_on(status: Status, *, resume: bool) -> bool:
    """Whether the user says so, or a launcher has started this very launch again."""
    launch = launch_id(os.environ)
    return resume or (is_restart(os.environ) and launch is not None and status.launch == launch)


def _look(folder: Path, rows: slice | None, *, resume: bool) -> tuple[bool, Status, tuple[Path, Checkpoint] | None]:
    """Whether the folder's run goes on, its status or a new run's, and the checkpoint to go on from."""
    status = RunFolder(folder).status()
    resumed = _goes_on(status, resume=resume)
    model = folder / "model"
    if not resumed and (model.exists() or any((folder / "checkpoints").glob("step_*"))):
        raise InputError(f"{folder} already holds a run: pass --resume to go on with it, or name another run.folder.")
    found = read_last_checkpoint(folder, rows) if resumed else None
    if found is None and model.exists():
        raise InputError(
            f"{folder} holds a finished model and no checkpoint, so there is nothing to go on from: use {model}, or "
            "name another run.folder."
        )
    if found is None and resume:
        raise InputError(f"{folder} {NOTHING_TO_RESUME}")
    if not resumed:
        (folder / "run.json").unlink(missing_ok=True)  # of a run by commit 0e01a02 that got to no checkpoint
        status = Status(started_ms=now_ms())
    return resumed, status, found


def _refuse_another_run(progress: Progress, config: RunConfig, card: ModelCard, path: Path) -> None:
    """The checkpoint must be of this run: the same settings, the same training data, and steps that are asked for."""
    if refused := config.refused_on_resume(progress.config):
        raise InputError(f"{path} is of a run with other settings; resume with those it started with:", *refused)
    if progress.card.dataset_identity != card.dataset_identity:
        raise InputError(
            f"{' and '.join(map(str, config.data.places))} is not what {path} was trained on (identity "
            f"{card.dataset_identity}, not {progress.card.dataset_identity}): resume with the shard set "
            f"{progress.card.dataset!r} as it was."
        )
    if progress.step > config.run.steps:
        raise InputError(
            f"{path} is at step {progress.step}, beyond run.steps={config.run.steps}: set run.steps to "
            f"{progress.step} or more."
        )
