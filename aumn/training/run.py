"""A training run put together: shards, loader, network, engine, tracker; then steps, and a model in the end.

Training opens features and video-level labels. The mAP that a run may follow meanwhile is measured by `Validation`,
which alone opens temporal ground truth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import torch

from aumn.config.run_config import RunConfig
from aumn.data.loader import TrainingLoader, split_holdout
from aumn.data.shards.shard_set import ShardSet
from aumn.model.aumn import TwoStream
from aumn.model.losses import Objective
from aumn.records import InputError, Stopped
from aumn.runfolder.saving import CheckpointWriter
from aumn.runtime import preemption
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.ranks import Ranks
from aumn.tracking.tracker import NullTracker, Tracker
from aumn.training.finite import FiniteWatch
from aumn.training.loop import train
from aumn.training.recorder import Recorder
from aumn.training.resume import Progress, find_start, is_finished
from aumn.training.validation import Validation

GO_ON = "the same command with --resume goes on from the last whole checkpoint"


def run_training(
    config: RunConfig,
    ranks: Ranks,
    *,
    resume: bool,
    say: Callable[[str], None],
    advance: Callable[[int, int], None],
) -> None:
    """Train as `config` says, on all ranks together; checkpoints, the final model and its registration included.

    `say` takes lines for people, `advance` the steps done and in all; both are called on every rank.
    """
    shards = ShardSet.open(config.data.shards)
    indices = shards.indices(config.data.subset)
    training, held_out = split_holdout(
        indices, shards.ids(indices), config.data.holdout_share, config.data.holdout_seed
    )
    loader = _build_loader(shards, training, config, ranks)
    start = find_start(config, shards, ranks, resume=resume)
    if ranks.broadcast(is_finished(config, start)):  # a shared file system may show the ranks different things
        say(
            f"{config.run.folder} is finished: step {config.run.steps} of {config.run.steps}, its model is in "
            f"{config.run.folder / 'model'}. Set run.steps higher to go on."
        )
        return
    torch.manual_seed(config.run.seed)
    network = TwoStream.build(
        shards.streams, len(shards.classes), config.model, scores_snippets=config.loss.pseudo_labels > 0
    )
    device = ranks.device(config.run.device)
    engine = build_engine(config.run.engine, network, ranks, device, optimizer=config.optimizer, engine=config.engine)
    start.load_into(engine)
    progress = start.progress
    validation = Validation.of(config, shards, held_out, progress.card)
    tracker = _open_tracker(config, ranks, progress, say)
    say(
        f"{config.run.folder}: {len(training)} training videos, {len(held_out)} held out; steps {progress.step} to "
        f"{config.run.steps} of {config.batch.global_videos} videos on {ranks.size} rank{'s' * (ranks.size > 1)}."
    )
    run, watch, record = config.run, FiniteWatch(engine), start.record
    writer = CheckpointWriter(
        run.folder, keep_last=run.keep_checkpoints, last=start.path, secure=tracker.flush, say=say
    )
    recorder = Recorder(config, engine, network, watch, validation, tracker, progress, record, writer, say, advance)
    try:
        with _outcome(tracker), closing(writer):
            _train_and_publish(config, engine, loader, watch, recorder)
    finally:
        if recorder.all_stop:
            ranks.barrier()  # a launcher ends the others as soon as one has left
    recorder.note(finished=True)


def _train_and_publish(
    config: RunConfig, engine: Engine, loader: TrainingLoader, watch: FiniteWatch, recorder: Recorder
) -> None:
    progress = recorder.progress
    recorder.note(tracking_run=progress.tracking_run, finished=False)
    with preemption.finish_first(GO_ON):
        recorder.catch_up()
        train(
            engine,
            loader,
            config.run,
            config.optimizer,
            Objective(config.loss, config.run.steps, config.model.independent_classes),
            first_step=progress.step,
            watch=watch,
            after_step=recorder.after_step,
        )
    try:
        recorder.publish()  # by the first rank
    except Stopped as stop:
        raise preemption.stopped(stop.signal, GO_ON) from None


@contextmanager
def _outcome(tracker: Tracker) -> Iterator[None]:
    """Tell the tracker how the block ended."""
    try:
        yield
    except BaseException as error:
        with suppress(InputError):  # a store that cannot be told must not hide what went wrong
            tracker.finish("interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
        raise
    tracker.finish("finished")


def _build_loader(shards: ShardSet, training: list[int], config: RunConfig, ranks: Ranks) -> TrainingLoader:
    return TrainingLoader(
        shards,
        training,
        global_videos=config.batch.global_videos,
        micro_videos=config.batch.micro_videos,
        snippets=config.data.snippets,
        seed=config.run.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        pin_memory=config.run.device == "cuda",
    )


def _open_tracker(config: RunConfig, ranks: Ranks, progress: Progress, say: Callable[[str], None]) -> Tracker:
    """The first rank's tracker; it goes on with the run's own record where there is one."""
    if not (config.tracking.enabled and ranks.is_first):
        return NullTracker()
    from aumn.tracking.job_run import job_tags
    from aumn.tracking.mlflow_tracker import MlflowTracker
    from aumn.tracking.registry import check_names
    from aumn.tracking.spool import NAME as SPOOL

    check_names(config.tracking.model_name, config.tracking.alias)
    tracker = MlflowTracker(
        config.tracking.uri,
        experiment=config.tracking.experiment,
        run_name=config.tracking.run_name or config.run.folder.name,
        run_id=progress.tracking_run,
        spool=config.run.folder / SPOOL,
        say=say,
    )
    progress.tracking_run = tracker.run_id
    tracker.log_config(config.model_dump(mode="json"))
    card = progress.card
    tags = {"dataset": card.dataset, "dataset_identity": card.dataset_identity, "commit": card.commit or "unknown"}
    tracker.set_tags(tags | {"ranks": str(ranks.size), "host": os.uname().nodename} | job_tags(os.environ))
    return tracker
