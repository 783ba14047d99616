"""The plan of a tuning: what is tried, on which videos it is compared, and in which rungs of successive halving.

A rung trains its candidates anew, for a share of the steps, so that a schedule ends with the run. The best third goes
on to the next one: twelve candidates cost four full runs. The last rung has two at least, and the first candidate, the
configuration to start from, is in every rung: few steps favour what learns fast, and nothing is chosen that is not
better than it in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from aumn.config.run_config import RunConfig, changed_config
from aumn.config.yaml_files import as_override
from aumn.records import HELD_OUT, InputError
from aumn.tuning.candidates import Candidate
from aumn.tuning.statistics import Statistics

SHARES, KEPT, FINALISTS = (0.1, 0.2, 1.0), 3, 2
"""Shares of the steps, in each rung; one of so many goes on to the next; how many the last one has at least."""


class Rung(NamedTuple):
    """So many candidates, each trained for a share of its steps."""

    candidates: int
    share: float


class Plan(BaseModel):
    """`plan.json`: written once; whatever goes on with a tuning goes by it."""

    format_version: Literal[1] = 1
    asked: dict[str, Any]  # the command and the set; another one is another tuning
    settings: dict[str, dict[str, Any]]  # what candidates change
    statistics: Statistics
    candidates: list[Candidate]
    left_out: list[str]  # candidates that are not tried, and why
    held_out: list[str]
    timed: int  # of these: on so many mAP is measured; 0: the criterion decides
    tracking_run: str | None  # which holds all others, where no job's does

    def config(self, index: int = 0, share: float = 1.0, changes: Mapping[str, Any] = {}) -> RunConfig:
        """A candidate's settings, for a share of its steps, with further changes by section.field."""
        full = changed(self.settings, self.candidates[index])
        steps = max(1, round(share * full.run.steps))
        shortened = {
            "run.steps": steps,
            "optimizer.warmup_steps": min(steps, round(share * full.optimizer.warmup_steps)),
        }
        return changed(full.model_dump(mode="json"), self.candidates[index], {**shortened, **changes})

    def point(self, out: Path, index: int, share: float) -> RunConfig:
        """The same as a run of the tuning."""
        run = self.config(index, share).run
        own = {
            "run.folder": str(out / "runs" / f"{self.candidates[index].name}_{run.steps}"),
            "run.log_every": max(1, min(run.log_every, run.steps // 6)),  # so that its speed is known
            "run.keep_checkpoints": 1,
            "evaluation.videos": HELD_OUT if self.timed else None,  # once, so that reports and MLflow have it
            "evaluation.every": 1_000_000,
            "tracking.model_name": None,
            "tracking.alias": None,
        }
        return self.config(index, share, own)


def rungs(candidates: int) -> list[Rung]:
    """Those for so many candidates; a rung that all of its candidates leave decides nothing, and is left out."""
    *counts, last = (max(FINALISTS, candidates // KEPT**number) for number in range(len(SHARES)))
    last = min(last, candidates)
    before = [Rung(count, share) for count, share in zip(counts, SHARES, strict=False) if last < count <= candidates]
    return [*before, Rung(last, 1.0)]


def entrants(values: Mapping[int, float]) -> list[int]:
    """The candidates of a rung as the next one takes them: the best, the very first of the plan, then by worth.

    Of equal ones goes first which the plan has first.
    """
    order = sorted(values, key=lambda index: (-values[index], index))
    return [*order[: FINALISTS - 1], *sorted(order[FINALISTS - 1 :], key=lambda index: index != 0)]


def full_runs(candidates: int) -> float:
    """What so many candidates cost."""
    return sum(rung.candidates * rung.share for rung in rungs(candidates))


def affordable(minutes: float, full_s: float, rest_s: float, most: int) -> int:
    """How many candidates so many minutes allow: a full run takes `full_s`, and any run `rest_s` behind its steps."""

    def seconds(count: int) -> float:
        return full_runs(count) * full_s + sum(rung.candidates for rung in rungs(count)) * rest_s

    return max((count for count in range(1, most + 1) if seconds(count) <= 60 * minutes), default=1)


def to_try(
    offered: Sequence[Candidate], settings: dict[str, dict[str, Any]], given: set[str]
) -> tuple[list[Candidate], list[str]]:
    """Candidates that leave alone what the user has set, and differ from those before; and why the rest is left out."""
    kept: dict[str, Candidate] = {}
    left_out = []
    for candidate in offered:
        try:
            made = changed(settings, candidate).model_dump_json()
        except InputError as error:
            left_out.append(" ".join(str(error).split()))
            continue
        if taken := sorted(given & candidate.changes.keys()):
            left_out.append(f"{candidate.name}, since you set {', '.join(taken)}")
        elif (first := kept.setdefault(made, candidate)) is not candidate:
            left_out.append(f"{candidate.name}, which is {first.name} here")
    return list(kept.values()), left_out


def changed(settings: dict[str, Any], candidate: Candidate, more: Mapping[str, Any] = {}) -> RunConfig:
    """Settings as a candidate has them, with more changes."""
    overrides = [as_override(name, value) for name, value in {**candidate.changes, **more}.items()]
    return changed_config(settings, overrides, candidate.name)
