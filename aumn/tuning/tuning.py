"""`aumn tune`: the plan, its runs, their ranking from rung to rung, and the configuration that comes of it.

Everything lies in one folder, and whatever is there is not done again: the same command goes on where it was.

    plan.json      see `plan`; written once
    runs/*/        a run a point; see `points`
    config.yaml    what was chosen, with its reasons
    table.md       what was tried, and what it was worth
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aumn.config.run_config import RunConfig, load_config, names_of
from aumn.config.yaml_files import as_override, read_yaml
from aumn.data.shards.shard_set import ShardSet
from aumn.data.shards.union import open_sets
from aumn.files import hold, whole_file
from aumn.jobs.sbatch import SHARE
from aumn.model.settings import ModelSettings
from aumn.records import InputError, Stopped
from aumn.runfolder.typed import typed
from aumn.runtime import preemption
from aumn.runtime.ranks import Ranks
from aumn.tracking import job_run
from aumn.training.finite import NotFiniteError
from aumn.training.run import access_of, note_held_out, run_training
from aumn.tuning.candidates import candidates
from aumn.tuning.criterion import judge
from aumn.tuning.plan import Plan, affordable, entrants, rungs, to_try
from aumn.tuning.points import HeldOut, Record, measure, read_record, read_scores, write_record
from aumn.tuning.statistics import Statistics
from aumn.tuning.writing import Result, write

Say = Callable[[str], None]
Watch = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

HOLDOUT, HOLDS_OUT = "data.holdout_share=0.25", {"data.holdout_share", "data.holdout_videos"}
RECOMMENDED = SHARE / "configs" / "recommended.yaml"
MEASURING_S = 86_400
"""How long ranks wait for the first one to try rules, which is alone at it."""
GOES_ON = "the same command goes on where it was"
FAILED = -1.0
"""What a candidate is worth that could not be trained."""


class Asked(BaseModel):
    """What the command says; a tuning that goes on must be asked for alike."""

    shards: str
    config: str | None = None  # to start from; None: configs/recommended.yaml
    overrides: list[str] = []
    budget: int | None = None  # None: all there are
    minutes: float | None = None

    def facts(self, shards: ShardSet) -> dict[str, Any]:
        """All that makes the plan what it is."""
        return {**self.model_dump(mode="json"), "identity of the shard set": shards.identity}

    @property
    def given(self) -> set[str]:
        """What the user has set, by section.field."""
        return names_of(self.overrides)

    def base(self, out: Path) -> RunConfig:
        """The configuration to start from, with what the user has set, and videos held out."""
        if theirs := sorted(self.given & {"data.shards", "run.folder"}):
            raise InputError(f"{', '.join(theirs)}: leave it out; SHARDS is the shard set, and --out the folder.")
        path = Path(self.config) if self.config else RECOMMENDED
        raw = read_yaml(path, "a run configuration, such as one of configs/*.yaml")
        data = raw.get("data") if isinstance(raw, dict) else None
        given = self.given | {f"data.{name}" for name in (data if isinstance(data, dict) else {})}
        places = [as_override("data.shards", self.shards), as_override("run.folder", str(out / "run"))]
        return load_config(path, [*places, *([] if HOLDS_OUT & given else [HOLDOUT]), *self.overrides])


def tune(asked: Asked, out: Path, ranks: Ranks, *, say: Say, watch: Watch, only: str | None = None) -> str | None:
    """Try candidates and write `out`/config.yaml; the table of what they were worth.

    `only` is "plan", or "RUNG.PLACE" for one point, as tasks of an array run them: then nothing is written in the end.
    `watch` shows a run's steps to people.
    """
    if only and not re.fullmatch(r"plan|\d+\.\d+", only):
        raise InputError(f"--only={only} must be `plan`, or RUNG.PLACE, such as 0.3.")
    planned = ranks.broadcast(_find_plan(asked, out, say).model_dump_json() if ranks.is_first else "")
    if only == "plan":
        return None
    tuning = _Tuning(asked, Plan.model_validate_json(planned), out, ranks, say, watch)
    plan, results = tuning.plan, list[Result]()
    going_on = list(range(tuning.count(only)))
    for number, rung in enumerate(rungs(len(going_on))):
        points = {index: plan.point(out, index, rung.share) for index in going_on[: rung.candidates]}
        names = [f"{number}.{place}" for place in range(len(points))]
        for name, point in zip(names, points.values(), strict=True):
            if only in (None, name):
                tuning.train(point, name, f"run {name} of {len(points)} in rung {number}")
        if only and only.startswith(f"{number}."):
            break
        values = ranks.broadcast(tuning.values(list(points.values())) if ranks.is_first else None)
        results.append(Result(rung, dict(zip(points, values, strict=True))))
        going_on = entrants(results[-1].values)
    if only is not None:
        if only not in names:
            say(f"{out}: its plan has no run {only}, so there is nothing to do.")
        return None
    return tuning.finish(results, points[going_on[0]]) if ranks.is_first else None


@dataclass
class _Tuning:
    """A plan under way."""

    asked: Asked
    plan: Plan
    out: Path
    ranks: Ranks
    say: Say
    watch: Watch

    @cached_property
    def held_out(self) -> HeldOut:
        config = self.plan.config()
        return HeldOut.of(config.data, _open(config))

    def count(self, only: str | None) -> int:
        """How many candidates there is time for; the first run tells it."""
        most, minutes = len(self.plan.candidates), self.asked.minutes
        if minutes is None:
            return most
        point = self.plan.point(self.out, 0, rungs(most)[0].share)
        if only in (None, "0.0"):
            self.train(point, "0.0", "to see how long a run takes")
        count = 0
        if self.ranks.is_first:
            record, steps = self.record(point), self.plan.config().run.steps
            if not record.step_s:
                why = record.why or f"its {point.run.steps} steps are too few"
                raise InputError(
                    f"--minutes: how long a run takes is told by the first one, and {why}: give --budget instead."
                )
            count = affordable(minutes, record.step_s * steps, record.rest_s, most)
            self.say(
                f"a full run takes {record.step_s * steps / 60:.1f} minutes: time for {count} of {most} candidates"
            )
        return int(self.ranks.broadcast(count))

    def train(self, config: RunConfig, name: str, which: str) -> None:
        """A point, unless it is done."""
        folder, ranks, failed = config.run.folder, self.ranks, ""
        if ranks.broadcast(ranks.is_first and read_record(folder) is not None):
            return
        self.say(f"{which}: {folder.name}, {config.run.steps} steps")
        resume = ranks.broadcast(ranks.is_first and any((folder / "checkpoints").glob("step_*")))
        # What a log says of the set is the same of all runs, and what they measure stands in their folders.
        heard = self.say if name == "0.0" else lambda _line: None
        try:
            with _nested(self.plan.tracking_run, name), self.watch(folder.name) as advance:
                run_training(config, ranks, resume=resume, say=heard, advance=advance)
        except NotFiniteError as error:
            if ranks.size > 1:  # they have ended together
                raise
            failed = str(error)
        except Stopped as stop:
            if not stop.signal:
                raise
            told = preemption.stopped(stop.signal, GOES_ON)
            told.teller = stop.teller
            raise told from None
        if ranks.is_first:
            record = (
                Record(rules=config.localize, why=failed)
                if failed
                else measure(config, self.held_out, ranks, self.asked.given)
            )
            write_record(folder, record)
        ranks.wait_at_most(MEASURING_S)
        ranks.barrier()

    def values(self, points: Sequence[RunConfig]) -> list[float]:
        """What each of a rung's points is worth."""
        records = [self.record(point) for point in points]
        if self.plan.timed:
            return [FAILED if record.map is None else record.map for record in records]
        trained = [
            (point.run.folder, record.rules) for point, record in zip(points, records, strict=True) if not record.why
        ]
        judged = iter(judge([(read_scores(folder, self.held_out.shards), rules) for folder, rules in trained]))
        return [FAILED if record.why else next(judged) for record in records]

    def finish(self, results: Sequence[Result], chosen: RunConfig) -> str:
        """Write what comes of it; what holds the runs in the tracking store has ended."""
        if why := (record := self.record(chosen)).why:
            raise InputError(f"None of the configurations could be trained; the first: {why}")
        told = write(self.plan, results, record, self.out)
        if self.plan.tracking_run:
            with suppress(InputError):  # the store is a mirror
                job_run.tag_job(chosen.tracking.uri, self.plan.tracking_run, {}, "FINISHED")
        return told

    def record(self, point: RunConfig) -> Record:
        """Of a point that is done."""
        if (record := read_record(point.run.folder)) is None:
            raise InputError(f"{point.run.folder} is not done: let all runs of this rung end first; {GOES_ON}.")
        return record


def _open(config: RunConfig) -> ShardSet:
    return open_sets(config.data, access_of(config.data))


def _find_plan(asked: Asked, out: Path, say: Say) -> Plan:
    """The folder's plan, or a new one."""
    file, base = out / "plan.json", asked.base(out)
    shards = _open(base)
    if not file.exists():
        with hold(out / "lock", f"{out} is being planned by another aumn tune: wait until that is done"):
            if not file.exists():
                plan = _make_plan(asked, base, shards, out, say)
                with whole_file(file) as partial:
                    partial.write_text(plan.model_dump_json(indent=1) + "\n")
    plan = typed(Plan, file.read_bytes(), file, f"remove {out} to start anew")
    ModelSettings.know_rates(plan.settings["model"])
    other = [f"{name} {value}" for name, value in plan.asked.items() if asked.facts(shards).get(name) != value]
    settings = base.model_dump(mode="json")
    for section, fields in plan.settings.items():  # as a file had them that may have changed since
        same = settings.get(section, {}) | {"folder": fields.get("folder")}  # which may be called otherwise
        other += [f"{section}.{name} {value}" for name, value in fields.items() if same.get(name) != value]
    if other:
        raise InputError(
            f"{out} holds a tuning with {', '.join(other)}: give the same command, which goes on with it, or name "
            "another --out."
        )
    by = f"compared by mAP on the {plan.timed:,} of them that are timed" if plan.timed else "none of them is timed"
    say(f"{plan.statistics.describe()}\n{note_held_out(plan.held_out)}; {by}")
    for line in plan.left_out:
        say(f"not tried: {line}")
    return plan


def _make_plan(asked: Asked, base: RunConfig, shards: ShardSet, out: Path, say: Say) -> Plan:
    if (out / "config.yaml").exists():
        raise InputError(f"{out} holds a config.yaml and no plan: name another --out.")
    base.check_streams(shards.streams)
    held_out, tracking, parent = HeldOut.of(base.data, shards), base.tracking, None
    statistics, settings = Statistics.of(shards, held_out.training), base.model_dump(mode="json")
    offered = candidates(statistics)
    if asked.config and Path(asked.config).name != RECOMMENDED.name:
        offered[0] = offered[0].model_copy(update={"name": "given", "reason": f"{asked.config} as it is"})
    kept, left_out = to_try(offered, settings, asked.given)
    if tracking.enabled and "AUMN_PARENT_RUN" not in os.environ:
        tags = {"dataset": shards.name, "dataset_identity": shards.identity}
        try:
            parent = job_run.begin_job(tracking.uri, tracking.experiment, out.name, tags, {"shards": asked.shards})
        except InputError as error:
            say(f"the runs will stand side by side in the tracking store, and in none of their own: {error}")
    return Plan(
        asked=asked.facts(shards),
        settings=settings,
        statistics=statistics,
        candidates=kept[: asked.budget],
        left_out=left_out,
        held_out=held_out.names,
        timed=len(held_out.indices) if held_out.truth else 0,
        tracking_run=parent,
    )


@contextmanager
def _nested(parent: str | None, name: str) -> Iterator[None]:
    """Runs in the block are nested in another one, as those of a job's steps are."""
    rung, _, place = name.partition(".")
    names = {}
    if parent and "AUMN_PARENT_RUN" not in os.environ:  # a job's
        names = {"AUMN_PARENT_RUN": parent, "AUMN_STEP": f"rung_{rung}", "AUMN_POINT": place}
    os.environ.update(names)
    try:
        yield
    finally:
        for variable in names:
            del os.environ[variable]
