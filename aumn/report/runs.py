"""A run's folder as the report reads it, which may be training: model, settings, where it stands, curves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, last_checkpoint, read_card, read_trainer_facts
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import Curve, read_curves
from aumn.tracking.sent import Sent

MOST_TRIES = 20


@dataclass(frozen=True, slots=True)
class Training:
    """Each metric's values by step, and where some are missing a sentence that says why."""

    curves: dict[str, Curve]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    folder: Path
    model: Path  # the finished model, or the last checkpoint of a run that is not done
    card: ModelCard
    config: dict[str, Any]
    step: int  # of the model
    status: Status
    tracking_run: str | None  # id of its MLflow run

    def facts(self) -> dict[str, str]:
        """Where the model comes from, for people."""
        card, status = self.card, self.status
        unfinished = f" of {status.steps:,}, {status.state}" if status.state != "finished" and status.steps else ""
        return {
            "Run": f"{self.folder}, step {self.step:,}{unfinished}",
            "Trained on": f"{card.dataset} ({card.dataset_identity})",
            "Network": ", ".join(f"{name} {value}" for name, value in dict(card.model).items()),
            "Code": f"aumn {card.aumn_version}, commit {card.commit or 'unknown'}",
        }

    def training(self) -> Training:
        """The curves of metrics.jsonl, and where those of aumn 0.1 are, which wrote no such file."""
        curves, note = read_curves(self.folder), None
        if (self.folder / "run.json").exists():
            uri = self.config["tracking"]["uri"] or "the store that MLFLOW_TRACKING_URI named then"
            kept = f"in MLflow alone: run {self.tracking_run} of {uri}" if self.tracking_run else "nowhere"
            until = f" up to step {min(map(min, curves.values())):,}" if curves else ""
            note = (
                f"This run's curves{until} are {kept}. aumn 0.1 (commit 0e01a02) trained it and wrote no metrics.jsonl."
            )
        elif not curves:
            note = f"{self.folder} holds no metrics.jsonl, so there are no curves."
        return Training(curves, note)


def open_run(path: Path, copy: Path | None = None) -> Run:
    """Read what a run has left in its folder so far.

    A run that still trains drops old checkpoints: where it drops the one that is being read, this reads again from the
    newest. With `copy` the model is copied to that new folder, where it stays, and the Run names it there.
    """
    for _ in range(MOST_TRIES):
        before = set(path.glob("checkpoints/step_*"))
        try:
            return _read(path, copy)
        except (InputError, OSError):
            if set(path.glob("checkpoints/step_*")) == before:
                raise
            if copy:
                shutil.rmtree(copy, ignore_errors=True)
    raise InputError(f"{path}: training drops its checkpoints faster than they are read: wait until it has ended.")


def _read(path: Path, copy: Path | None) -> Run:
    checkpoint = last_checkpoint(path)
    if checkpoint is None:
        raise InputError(f"{path} holds no checkpoint yet: give a run that has trained, or a folder of detections.")
    facts, status, sent = read_trainer_facts(checkpoint), RunFolder(path).status(), Sent.read(path)
    finished = (path / "model").exists()
    model = path / "model" if finished else checkpoint
    if copy:
        model = shutil.copytree(model, copy, ignore=shutil.ignore_patterns("trainer.*"))
    return Run(
        folder=path,
        model=model,
        card=read_card(model),
        config=RunFolder(path).config() or facts["config"],
        step=(finished and status.published_step) or facts["step"],
        status=status,
        tracking_run=(sent.run if sent else None) or facts.get("tracking_run"),
    )
