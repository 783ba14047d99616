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

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aumn.config.run_config import RunConfig, load_config
from aumn.config.yaml_files import parse_value, read_yaml
from aumn.jobs.job_schema import JobPlan, Resources, Scalar, StepPlan, Sweep
from aumn.records import InputError

COMMANDS = ("evaluate", "localize", "models", "pack", "report", "scaling", "synth", "train")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


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
    plan = _read_plan(path, overrides)
    folder = Path(os.path.abspath(folder or Path("runs/jobs") / plan.name))
    _refuse(path, validate(plan, folder))
    job = build(plan, folder, Path.cwd())
    run_folders, problems = _find_run_folders(job)
    _refuse(path, [*_find_passwords(job), *problems])
    return replace(job, run_folders=run_folders)


def validate(plan: JobPlan, folder: Path) -> list[str]:
    """What is wrong with a plan, a sentence each; `build` takes one that has no problem."""
    problems = [*_check_settings(plan, folder), *_check_needs(plan)]
    for name, step in plan.steps.items():
        found = (*_check_command(step, {*plan.settings, "folder"}), *_check_sweep(step))
        problems += [f"steps.{name}.{problem}" for problem in found]
    return problems


def build(plan: JobPlan, folder: Path, directory: Path) -> Job:
    """The steps of a plan without problems; opens no file."""
    values = {**plan.settings, "folder": str(folder)}
    steps = [_build_step(name, plan.steps[name], values) for name in _in_order(plan)]
    return Job(plan, folder, directory, tuple(steps))


def training_config(point: Point) -> RunConfig:
    """The settings that a point of a train step trains with; InputError where `aumn train` would refuse them."""
    words = [word for word in point.arguments[1:] if not word.startswith("-")]
    if not words:
        raise InputError("train names no run configuration; write such as: train configs/thumos14.yaml.")
    return load_config(Path(words[0]), words[1:])


def _read_plan(path: Path, overrides: Sequence[str]) -> JobPlan:
    content = read_yaml(path, "a job, such as one of jobs/*.yaml")
    for override in overrides:
        _apply(content, override)
    try:
        return JobPlan.model_validate(content)
    except ValidationError as error:
        _refuse(path, [_describe(problem) for problem in error.errors()])
        raise


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


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("tuple[", "dict[")))
    if problem["type"] == "missing":
        return f"{where} is missing; it has no default."
    if problem["type"] == "extra_forbidden":
        return f"{where} is no field of a job; docs/jobs.md lists them."
    rule, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    shown = _without_password(repr(value))
    return f"{where}={shown}: {rule[0].lower()}{rule[1:]}."


def _check_settings(plan: JobPlan, folder: Path) -> Iterator[str]:
    """Values become words of a command line and lines of a file, and must not pass for something else there."""
    for name, value in {**plan.settings, "folder": str(folder)}.items():
        text = _text(value)
        if name in plan.settings and name in {"folder", "point"}:
            yield f"settings.{name}: {{{name}}} is filled in by aumn; choose another name."
        if text.startswith("-") or not text.isprintable():
            yield f"settings.{name}={text!r} must not begin with - nor hold control characters: it is in a command."
    if re.search(r"[\\%]", str(folder)):
        yield f"the job's folder {str(folder)!r} must not hold % or \\, which mean something to sbatch."


def _check_needs(plan: JobPlan) -> Iterator[str]:
    for name, step in plan.steps.items():
        for need in step.needs:
            if need not in plan.steps:
                yield f"steps.{name}.needs: there is no step {need}; the steps are {', '.join(plan.steps)}."
    ordered = _in_order(plan)
    if circle := [name for name in plan.steps if name not in ordered]:
        yield f"steps {', '.join(circle)} need each other in a circle."


def _in_order(plan: JobPlan) -> list[str]:
    """Names of steps, each behind those it needs and else as written; a circle is left out."""
    ordered: list[str] = []

    def is_ready(name: str) -> bool:
        return name not in ordered and all(need in ordered for need in plan.steps[name].needs if need in plan.steps)

    while ready := next(filter(is_ready, plan.steps), None):
        ordered.append(ready)
    return ordered


def _check_command(step: StepPlan, names: set[str]) -> Iterator[str]:
    known = names | ({"point"} if step.sweep else set())
    try:
        words = shlex.split(step.run)
    except ValueError as error:
        yield f"run: {str(error).lower()}."
        return
    if not words or words[0] not in COMMANDS:
        yield f"run: must begin with a command of aumn, one of {', '.join(COMMANDS)}."
    yield from (f"run: {word!r} must not hold control characters." for word in words if not word.isprintable())
    for placeholder in sorted({name for word in words for name in _PLACEHOLDER.findall(word)} - known):
        yield f"run: {{{placeholder}}} is not known; there are {', '.join(sorted(known))}."


def _check_sweep(step: StepPlan) -> Iterator[str]:
    axes = [_choices(axis, choices) for axis, choices in step.sweep.axes.items()] if step.sweep else []
    for label in (label for axis in axes for label in axis if not re.fullmatch(r"[\w.+=-]+", label, re.ASCII)):
        yield (
            f"sweep: the choice {label!r} must be letters, digits and . _ + = - only, since it names folders; "
            "name the choices: {name: {field: value}}."
        )
    fields = [name for axis in axes for choice in axis.values() for name in choice if not name.startswith("resources.")]
    if fields and step.run.split()[:1] != ["train"]:
        yield f"sweep: only train has the field {fields[0]}; use {{point}}."
    for label, chosen in _combinations(step.sweep):
        try:
            _resources(step.resources, chosen)
        except ValidationError as error:
            yield from (f"sweep, {label}: resources.{_describe(found)}" for found in error.errors())


def _find_passwords(job: Job) -> Iterator[str]:
    for step in job.steps:
        for word in sorted({word for point in step.points for word in point.arguments}):
            if _without_password(word) != word:
                yield (
                    f"steps.{step.name}.run: {_without_password(word)!r} must not hold a password, which logs and "
                    "every user of the cluster would see: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in "
                    "the environment."
                )


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


def _build_step(name: str, step: StepPlan, values: Mapping[str, Scalar]) -> Step:
    points = []
    for label, fields in _combinations(step.sweep):
        words = [_fill(word, {**values, "point": label}) for word in shlex.split(step.run)]
        words += [f"{field}={_text(value)}" for field, value in fields.items() if not field.startswith("resources.")]
        points.append(Point(label, tuple(words), _resources(step.resources, fields)))
    at_most = step.sweep.at_most if step.sweep else None
    return Step(name, step.needs, tuple(points), at_most, is_sweep=step.sweep is not None)


def _resources(base: Resources, fields: Mapping[str, Scalar]) -> Resources:
    """What a point takes: the step's, with the sweep's own in place of some."""
    own = {field.partition(".")[2]: value for field, value in fields.items() if field.startswith("resources.")}
    return Resources.model_validate({**base.model_dump(), **own})


def _combinations(sweep: Sweep | None) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """Each point's name and fields; without a sweep, one point without a name."""
    axes = [_choices(axis, choices) for axis, choices in sweep.axes.items()] if sweep else []
    for chosen in itertools.product(*(axis.items() for axis in axes)):
        yield ",".join(label for label, _ in chosen), {field: v for _, fields in chosen for field, v in fields.items()}


def _choices(axis: str, choices: Mapping[str, dict[str, Scalar]] | Sequence[Scalar]) -> Mapping[str, dict[str, Scalar]]:
    """An axis's named choices; a plain value's name is that of its field and the value."""
    if isinstance(choices, Mapping):
        return choices
    return {f"{axis.rpartition('.')[2]}={_text(value)}": {axis: value} for value in choices}


def _fill(word: str, values: Mapping[str, Scalar]) -> str:
    """In one pass, so that what a value holds is never filled in again."""
    return _PLACEHOLDER.sub(lambda found: _text(values[found[1]]), word)


def _without_password(text: str) -> str:
    """What stands before the @ of an address, and has a colon."""
    return re.sub(r"//[^/@]*:[^/@]*@", "//***@", text)


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
