"""Where a run starts: anew, from a checkpoint of its own, or not at all where it is finished."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aumn import __version__
from aumn.config.run_config import RunConfig
from aumn.data.shards.shard_set import ShardSet
from aumn.records import InputError
from aumn.runfolder.checkpoint import (
    Checkpoint,
    ModelCard,
    mark_best,
    read_checkpoint,
    read_last_checkpoint,
    source_commit,
)
from aumn.runfolder.run_record import RunRecord
from aumn.runtime.attempts import is_restart, launch_id
from aumn.runtime.engines import Engine
from aumn.runtime.ranks import Ranks


@dataclass
class Progress:
    """Where a run stands, as its checkpoints hold it."""

    card: ModelCard
    step: int = 0
    tracking_run: str | None = None
    best: float = -1.0
    best_step: int = 0
    evaluation_due: bool = False  # of this very step: the run was stopped before, or in the midst of it
    config: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For a checkpoint, beside its step and its card."""
        names = ("tracking_run", "best", "best_step", "evaluation_due", "config")
        return {name: getattr(self, name) for name in names}


@dataclass
class Start:
    """Where to start, the same on every rank. Without a checkpoint: from the beginning."""

    progress: Progress
    record: RunRecord
    path: Path | None = None
    checkpoint: Checkpoint | None = None

    def load_into(self, engine: Engine) -> None:
        """Let the engine go on from the checkpoint, if there is one; what it held is let go."""
        if self.checkpoint is not None:
            checkpoint, self.checkpoint = self.checkpoint, None
            engine.load_state(checkpoint.weights, checkpoint.trainer_tensors, checkpoint.trainer_facts["optimizer"])


def find_start(config: RunConfig, shards: ShardSet, ranks: Ranks, *, resume: bool) -> Start:
    """Go on with the run in `run.folder` if the user says so, or if a launcher has started this very launch again.

    The first rank looks, and the others follow: a shared file system may show them different things.
    """
    found, record = _look(config.run.folder, resume=resume) if ranks.is_first else (None, RunRecord())
    path, record = ranks.broadcast((found and found[0], record))
    if path is None:
        return Start(_begin(config, shards, record.tracking_run), record)
    checkpoint = found[1] if found else read_checkpoint(path)
    facts = {name: value for name, value in checkpoint.trainer_facts.items() if name != "optimizer"}
    progress = Progress(card=checkpoint.card, step=checkpoint.step, **facts)
    _refuse_another_run(progress, config, shards, path)
    progress.config = config.model_dump(mode="json")
    if ranks.is_first and progress.best_step == progress.step:
        mark_best(config.run.folder, path)  # a run may have been killed just before it did
    return Start(progress, record, path, checkpoint)


def is_finished(config: RunConfig, start: Start) -> bool:
    """Whether the run has all its steps, and its model is wherever it should be."""
    run, tracking = config.run, config.tracking
    return (
        start.progress.step == run.steps
        and start.record.finished
        and start.record.holds(run.steps, tracking.model_name if tracking.enabled else None)
        and (run.folder / "model" / "model.json").exists()
    )


def _look(folder: Path, *, resume: bool) -> tuple[tuple[Path, Checkpoint] | None, RunRecord]:
    """The checkpoint to go on from, and the run's record, renewed for this launch."""
    record, launch = RunRecord.read(folder), launch_id(os.environ)
    again = is_restart(os.environ) and record.launch is not None and record.launch == launch
    exists = (folder / "model").exists() or any((folder / "checkpoints").glob("step_*"))
    if exists and not (resume or again):
        raise InputError(f"{folder} already holds a run: pass --resume to go on with it, or name another run.folder.")
    found = read_last_checkpoint(folder) if resume or again else None
    if found is None and (folder / "model").exists():
        raise InputError(
            f"{folder} holds a finished model and no checkpoint, so there is nothing to go on from: use "
            f"{folder / 'model'}, or name another run.folder."
        )
    if found is None and resume:
        raise InputError(f"{folder} holds no checkpoint to resume from: start the run without --resume.")
    _check_writable(folder)
    return found, replace(record, launch=launch) if resume or again else RunRecord(launch=launch)


def _begin(config: RunConfig, shards: ShardSet, tracking_run: str | None) -> Progress:
    card = ModelCard(
        model=config.model,
        localize=config.localize,
        classes=shards.classes,
        streams=shards.streams,
        stride_frames=shards.stride_frames,
        dataset=shards.name,
        dataset_identity=shards.identity,
        metrics={},
        aumn_version=__version__,
        commit=source_commit(),
    )
    return Progress(card, tracking_run=tracking_run, config=config.model_dump(mode="json"))


def _check_writable(folder: Path) -> None:
    """Find out now, not at the first checkpoint."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise InputError(f"run.folder={folder} cannot be written in {nearest}: choose a folder that you may write to.")


def _refuse_another_run(progress: Progress, config: RunConfig, shards: ShardSet, path: Path) -> None:
    """The checkpoint must be of this run: the same settings, the same training data, and steps that are asked for."""
    if differing := config.differing_from(progress.config):
        raise InputError(
            f"{path} is of a run with other settings; resume with those it started with:",
            *(f"{name}: the run has {before!r}, now {now!r}" for name, (before, now) in differing.items()),
        )
    if progress.card.dataset_identity != shards.identity:
        raise InputError(
            f"{shards.path} is not what {path} was trained on (identity {shards.identity}, not "
            f"{progress.card.dataset_identity}): resume with the shard set {progress.card.dataset!r} as it was."
        )
    if progress.step > config.run.steps:
        raise InputError(
            f"{path} is at step {progress.step}, beyond run.steps={config.run.steps}: set run.steps to "
            f"{progress.step} or more."
        )
