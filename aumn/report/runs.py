"""A run's folder as the report reads it: its model, its settings, and what was recorded while it trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, last_checkpoint, read_card, read_trainer_facts


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    folder: Path
    model: Path  # the finished model, or the last checkpoint of a run that is not done
    card: ModelCard
    config: dict[str, Any]
    step: int
    tracking_run: str | None

    @property
    def tracking_uri(self) -> str | None:
        """The store that the run was recorded in, as its config names it."""
        uri: str | None = self.config["tracking"]["uri"]
        return uri


@dataclass(frozen=True, slots=True)
class Training:
    """Each metric's values by step, and where some are missing a sentence that says why."""

    curves: dict[str, dict[int, float]]
    note: str | None = None


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, rather than one of detections."""
    return (path / "checkpoints").is_dir()


def open_run(path: Path) -> Run:
    """Read what a run left in its folder."""
    checkpoint = last_checkpoint(path)
    if checkpoint is None:
        raise InputError(f"{path} holds no checkpoint yet: give a run that has trained, or a folder of detections.")
    facts = read_trainer_facts(checkpoint)
    model = path / "model" if (path / "model").exists() else checkpoint
    return Run(path, model, read_card(model), facts["config"], facts["step"], facts["tracking_run"])


def facts_of(run: Run) -> dict[str, str]:
    """Where a run's model comes from, for people."""
    card = run.card
    return {
        "Run": f"{run.folder}, step {run.step:,}",
        "Trained on": f"{card.dataset} ({card.dataset_identity})",
        "Network": ", ".join(f"{name} {value}" for name, value in card.model.model_dump().items()),
        "Code": f"aumn {card.aumn_version}, commit {card.commit or 'unknown'}",
    }
