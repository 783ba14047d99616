"""What training asks of whoever records its metrics; it sees no more of MLflow than this."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "failed", "interrupted"]


class Tracker(Protocol):
    """Records one run. Only the first rank has one that does anything."""

    @property
    def run_id(self) -> str | None:
        """What continues this very run later; None where nothing is recorded."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the settings, sections within sections allowed."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of a step, soon; never waits.

        Steps of a metric come in rising order. A continued run drops the steps it already has, so going back to a
        checkpoint leaves neither gaps nor doubles, given that `flush` was called before the checkpoint was written.
        """

    def flush(self) -> None:
        """Return once all metrics so far outlive a crash of the machine. OSError where nothing takes them."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run; a later value replaces an earlier one."""

    def register_model(self, folder: Path, name: str, alias: str | None) -> int | None:
        """Register a model artifact under a name; the version it became, None where nothing is recorded (yet).

        The same files of the same run are registered once, however often this is called.
        """

    def finish(self, outcome: Outcome) -> None:
        """Record the rest, and how the run ended; what cannot be recorded now is told, with how to do it later."""


class NullTracker:
    """Records nothing: other ranks than the first, and runs with tracking off."""

    run_id = None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record nothing."""

    def flush(self) -> None:
        """Return at once."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record nothing."""

    def register_model(self, folder: Path, name: str, alias: str | None) -> None:
        """Register nothing."""

    def finish(self, outcome: Outcome) -> None:
        """Record nothing."""
