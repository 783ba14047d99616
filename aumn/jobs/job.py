"""A job: the steps of a pipeline or sweep as data, read from YAML and checked whole before anything runs.

    name: thumos14
    settings: {features: /data/thumos14}
    steps:
      pack:
        run: pack {features} data_shards/thumos14 --annotations {features}/gt.json
        resources: {cpus_per_rank: 8, minutes: 60}
      train:
        needs: [pack]
        run: train configs/thumos14.yaml run.folder={folder}/{point}
        resources: {nodes: 2, ranks_per_node: 2}
        sweep: {axes: {model.units: [1, 7, 64]}, at_most: 2}

`run` is an aumn command line. It is cut into words first and `{...}` is filled in afterwards, so a value is never more
than one word, whatever it holds: a job's settings, `{folder}` (the job's own, absolute) and `{point}` (a sweep point's
name). Other paths start in the folder that the job was submitted from.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aumn.config.run_config import RunConfig, load_config
from aumn.config.yaml_files import parse_value, read_yaml
from aumn.jobs.job_schema import PLACEHOLDER, JobPlan, Resources, Scalar, describe, text_of, validate
from aumn.records import InputError


@dataclass(frozen=True)
class Point:
    """One run of a step: the arguments of `aumn`, and what it takes."""

    name: str  # of a sweep's point, else empty
    arguments: tuple[str, ...]
    resources: Resources


@dataclass(frozen=True)
class Step:
    """A step, ready to run; a step without a sweep has one point."""

    name: str
    needs: tuple[str, ...]
    points: tuple[Point, ...]
    at_most: int | None
    is_sweep: bool

    @property
    def command(self) -> str:
        """The command of aumn that every point runs."""
        return self.points[0].arguments[0]

    def label(self, index: int) -> str:
        """What people call one of its points."""
        return f"{self.name}[{self.points[index].name}]" if self.is_sweep else self.name


@dataclass(frozen=True)
class Job:
    """All steps, each after those that it needs."""

    plan: JobPlan
    folder: Path  # the job's own, absolute
    directory: Path  # where its steps run, and where relative paths in it start
    steps: tuple[Step, ...]
    run_folders: Mapping[str, Path] = field(default_factory=dict)  # of the points that train, by label

    def step(self, name: str) -> Step:
        """By its name."""
        return next(step for step in self.steps if step.name == name)


def load_job(path: Path, overrides: Sequence[str] = (), *, folder: Path | None = None) -> Job:
    """Read a job and apply `a.b=value` overrides (values are YAML); InputError lists every problem.

    `folder` is the job's own, for its state and its logs; None: runs/jobs/NAME.
    """
    content = read_yaml(path, "a job, such as one of jobs/*.yaml")
    for override in overrides:
        _apply(content, override)
    try:
        plan = JobPlan.model_validate(content)
    except ValidationError as error:
        _refuse(path, [describe(problem) for problem in error.errors()])
        raise
    folder = Path(os.path.abspath(folder or Path("runs/jobs") / plan.name))
    _refuse(path, validate(plan, folder))
    job = build(plan, folder, Path.cwd())
    run_folders, problems = _find_run_folders(job)
    _refuse(path, problems)
    return replace(job, run_folders=run_folders)


def build(plan: JobPlan, folder: Path, directory: Path) -> Job:
    """The steps of a plan that `validate` has nothing to say of; opens no file."""
    values = {**plan.settings, "folder": str(folder)}
    return Job(plan, folder, directory, tuple(_build_step(name, plan, values) for name in plan.in_order()))


def training_config(point: Point) -> RunConfig:
    """The settings that a point of a train step trains with; InputError where `aumn train` would refuse them."""
    words = [word for word in point.arguments[1:] if not word.startswith("-")]
    if not words:
        raise InputError("train names no run configuration; write such as: train configs/thumos14.yaml.")
    return load_config(Path(words[0]), words[1:])


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise InputError(f"{path} is not a job ({len(problems)} to mend):", *problems)


def _apply(content: Any, override: str) -> None:
    names, value = parse_value(override)
    if not isinstance(content, dict) or "=" not in override:
        raise InputError(f"--set {override!r} must read field=value, e.g. steps.train.resources.nodes=2.")
    for name in names[:-1]:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise InputError(f"--set {override!r}: {name} holds no fields; name a field such as settings.features.")
    content[names[-1]] = value


def _build_step(name: str, plan: JobPlan, values: Mapping[str, Scalar]) -> Step:
    step, points = plan.steps[name], []
    for point, fields, resources in step.points():
        words = [_fill(word, {**values, "point": point}) for word in shlex.split(step.run)]
        words += [f"{field}={text_of(value)}" for field, value in fields.items()]
        points.append(Point(point, tuple(words), Resources.model_validate(resources)))
    at_most = step.sweep.at_most if step.sweep else None
    return Step(name, step.needs, tuple(points), at_most, is_sweep=step.sweep is not None)


def _fill(word: str, values: Mapping[str, Scalar]) -> str:
    """In one pass, so that what a value holds is never filled in again."""
    return PLACEHOLDER.sub(lambda found: text_of(values[found[1]]), word)


def _find_run_folders(job: Job) -> tuple[dict[str, Path], list[str]]:
    """Of the points that train; and what `aumn train` would refuse hours later, once its turn has come."""
    folders, problems, tracking = {}, [], job.plan.tracking
    for step in job.steps:
        for index, point in enumerate(step.points if step.command == "train" else ()):
            label = step.label(index)
            try:
                config = training_config(point)
            except InputError as error:
                problems.append(f"steps.{label}: {error}")
                continue
            folders[label] = Path(os.path.abspath(config.run.folder))
            if tracking.enabled and config.tracking.enabled and config.tracking.uri != tracking.uri:
                problems.append(
                    f"steps.{label}: tracking.uri={config.tracking.uri} of {point.arguments[1]} is not the job's, "
                    f"{tracking.uri}; a job has one store."
                )
    return folders, problems
