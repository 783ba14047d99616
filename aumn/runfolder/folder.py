"""A run's folder: all that is known of the run. One process writes it, the first rank; any process may read it.

    config.yaml            the settings as resolved, of the latest launch
    lock                   held while somebody writes; see `files.hold`
    metrics.jsonl          every number logged; see `metrics`
    status.json            where the run stands, how it ended, what it was published as: `Status`
    checkpoints/step_*/    see `checkpoint`
    best                   a symbolic link to the checkpoint with the best mAP of held-out videos
    model/                 the finished model
    mirror.json            what the MLflow store has of all this; `tracking` alone writes it

Nothing else knows anything of a run that this folder does not: resuming, reports, the table of jobs, promotion and the
mirror in MLflow read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from aumn.files import hold, holder_of, whole_file
from aumn.records import InputError
from aumn.runfolder.typed import typed

State = Literal["running", "finished", "failed", "stopped"]


class Status(BaseModel):
    """What `status.json` says. Steps count from 1; 0 means none yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    state: State = "running"
    """`stopped`: by a signal, or for want of other ranks, to go on later; `failed`: see `why`."""
    why: str = ""
    """One sentence on a run that stopped or failed, whichever rank found it."""
    code: int | None = None
    """The exit code that it ended with; None while it runs, or where it was killed. slurm/train.sbatch goes by it."""
    step: int = 0
    """Of the newest whole checkpoint."""
    steps: int = 0
    """Asked for."""
    best: float = -1.0
    """Highest mAP on held-out videos so far."""
    best_step: int = 0
    published_step: int = 0
    """Of the finished model in `model/`."""
    launch: str | None = None
    """What all attempts of one launch share; see `runtime.attempts.launch_id`."""
    started_ms: int = 0
    ended_ms: int | None = None
    recovery: dict[str, float] = {}
    """Seconds that the last restart by a launcher took, by part; see `training.recovery`."""
    slow: dict[str, float] = {}
    """Nodes with ranks that are slow now, and how many times the median's own time these take."""
    facts: dict[str, str] = {}
    """Where and on what it runs: ranks, host, commit, dataset, dataset_identity, a job's step; MLflow's tags."""


class RunFolder:
    """Reads a run's folder; writes are for the process inside `writing`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self, launch: str | None = None, attempt_wait_s: float = 0.0) -> Iterator[None]:
        """Be the folder's one writer for the length of a `with` block; InputError where another process is.

        `launch` is what all attempts of one launch share; see `runtime.attempts.launch_id`. An earlier one of them is
        waited for.
        """
        refusal = (
            f"run.folder={self.path} is in use: another process trains this run or delivers its metrics. Wait until "
            "it has ended, or name another run.folder"
        )
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(self.path / "lock", refusal, launch=launch, attempt_wait_s=attempt_wait_s))
            except OSError as error:
                raise InputError(
                    f"run.folder={self.path} cannot be written: {error}. Choose a folder that you may write to."
                ) from None
            for place in (self.path / "checkpoints", self.path / "model"):  # else the end of the training would tell
                if place.is_symlink() and not place.exists():
                    raise InputError(f"{place} is a link to {place.readlink()}, which is not there: mend or remove it.")
            yield

    def status(self) -> Status:
        """What is known of the run; an empty Status where nothing can be read, which costs a convenience."""
        file = self.path / "status.json"
        try:
            text = file.read_bytes()
        except OSError:
            return self._status_before()
        return typed(Status, text, file, "remove it, and the run goes on from its checkpoints")

    def holder(self) -> dict[str, Any]:
        """Who writes it, or was the last to; see `files.holder_of`."""
        return holder_of(self.path / "lock")

    def write_status(self, status: Status, *, by: int = 0) -> None:
        """Replace what is known of the run. OSError where the disk refuses.

        `by` is the rank that does: the folder's writer may do the same at this moment.
        """
        text = json.dumps(status.model_dump(), indent=2, ensure_ascii=False) + "\n"
        with whole_file(self.path / (f".status.{by}.json" if by else "status.json")) as file:
            file.write_text(text, encoding="utf-8")
        if by:
            (self.path / f".status.{by}.json").replace(self.path / "status.json")

    def config(self) -> dict[str, Any]:
        """The settings by section, as resolved; empty where none were written."""
        try:
            settings: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            return {}
        return settings

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Replace the settings. OSError where the disk refuses."""
        with whole_file(self.path / "config.yaml") as file:
            file.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def _status_before(self) -> Status:
        """Of a run that aumn 0.1 (up to commit 0e01a02) began, which wrote run.json."""
        try:
            facts = json.loads((self.path / "run.json").read_bytes())
            state: State = "finished" if facts["finished"] else "stopped"
            return Status(state=state, launch=facts["launch"], published_step=facts["published_step"])
        except (OSError, ValueError, KeyError, TypeError):
            return Status()
