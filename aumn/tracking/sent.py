"""`mirror.json`: what an MLflow store has of a run's folder; and what it lacks, found by comparing the two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from aumn.files import whole_file
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder, State, Status
from aumn.runfolder.metrics import read_metrics
from aumn.runfolder.typed import typed
from aumn.tracking.settings import TrackingSettings

NAME = "mirror.json"


class Version(BaseModel):
    """What a finished model became in the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    step: int
    alias: str | None


class Sent(BaseModel):
    """What `mirror.json` says: what of the folder the store has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    run: str
    """Id of the MLflow run; empty: there is none yet."""
    store: str
    """Its address, without credentials."""
    lines: int = 0
    """Of metrics.jsonl."""
    last: tuple[int, int] | None = None
    """Step and time of the last of these lines: a file that was cut back since has another line there."""
    config: str = ""
    """SHA-256 of config.yaml."""
    facts: dict[str, str] = {}
    """As in status.json."""
    state: State = "running"
    ended_ms: int | None = None
    models: dict[str, Version] = {}
    """By registered name."""
    refused: dict[str, str] = {}
    """What the store refuses for good, such as `metric val (a)`, and why. It is never sent again."""

    @classmethod
    def read(cls, folder: Path) -> Sent | None:
        """Of a run's folder; None where nothing was sent yet."""
        try:
            text = (folder / NAME).read_bytes()
        except FileNotFoundError:
            return None
        return typed(cls, text, folder / NAME, "remove it, and a new MLflow run gets all of the folder's metrics")

    def write(self, folder: Path) -> None:
        """Replace what was there. OSError where the disk refuses."""
        with whole_file(folder / NAME) as file:
            file.write_text(json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a folder holds and a store lacks; falsy where that is nothing."""

    config: str
    """The digest of settings that are new; empty where they are not."""
    facts: dict[str, str]
    first: int
    """So many lines of metrics stand before those that wait."""
    lines: list[dict[str, Any]]
    ending: Status | None
    """How the run ended, or that it goes on."""
    model: str | None
    """The name to register the finished model under."""

    def __bool__(self) -> bool:
        return bool(self.config or self.facts or self.lines or self.ending or self.model)

    def __str__(self) -> str:
        parts = []
        if self.lines:
            first, last = self.lines[0]["step"], self.lines[-1]["step"]
            parts.append(f"the metrics of step {first}" if first == last else f"the metrics of steps {first} to {last}")
        parts += [f"the model {self.model}"] * bool(self.model)
        parts += ["how the run ended"] * bool(self.ending and self.ending.state != "running")
        return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "settings and tags"


def find_waiting(folder: RunFolder, sent: Sent, tracking: TrackingSettings) -> Waiting:
    """Compare a run's folder with what its store has."""
    status, file = folder.status(), folder.path / "config.yaml"
    config = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    first, lines = _unsent_lines(folder.path, sent)
    return Waiting(
        config if config != sent.config else "",
        {name: value for name, value in status.facts.items() if sent.facts.get(name) != value},
        first,
        lines,
        status if (status.state, status.ended_ms) != (sent.state, sent.ended_ms) else None,
        _unregistered(status, sent, tracking),
    )


def _unsent_lines(folder: Path, sent: Sent) -> tuple[int, list[dict[str, Any]]]:
    """How many lines of metrics were sent, and those behind them; all lines if the file was cut back since."""
    if sent.lines:
        last, *lines = [*read_metrics(folder, sent.lines - 1)] or [{}]
        if line_key(last) == sent.last:
            return sent.lines, lines
    return 0, list(read_metrics(folder))


def line_key(line: Mapping[str, Any]) -> tuple[int, int]:
    """A line of metrics, told from the one that a resumed run writes in its place."""
    return line.get("step", -1), line.get("at_ms", 0)


def _unregistered(status: Status, sent: Sent, tracking: TrackingSettings) -> str | None:
    name = tracking.model_name
    if not (status.published_step and name) or f"model {name}" in sent.refused:
        return None
    known = sent.models.get(name)
    return name if known is None or (known.step, known.alias) != (status.published_step, tracking.alias) else None


def run_before(folder: Path) -> str:
    """The MLflow run of a run that aumn up to commit 0e01a02 began, which wrote no mirror.json; empty: there is none.

    InputError where that aumn left something undelivered, which this one does not read.
    """
    undelivered = folder / "undelivered.jsonl"
    if undelivered.exists() and undelivered.stat().st_size:
        raise InputError(
            f"{undelivered} was left by an older aumn, whose store did not take it: deliver it with that aumn (commit "
            f"0e01a02: aumn deliver {folder}), or remove the file to go on without what it holds."
        )
    for file in (folder / "run.json", *sorted(folder.glob("checkpoints/*/trainer.json"), reverse=True)):
        with suppress(OSError, ValueError):
            if run := json.loads(file.read_bytes()).get("tracking_run"):
                return str(run)
    return ""
