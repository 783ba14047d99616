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
than one word, whatever it holds: a job's settings, `{folder}` (the job's own) and `{point}` (a sweep point's name).
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aumn.config.run_config import load_config
from aumn.config.yaml_files import parse_value, read_yaml
from aumn.jobs.job_schema import JobPlan, Resources, Scalar, StepPlan, Sweep, Tracking
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

    name: str
    folder: Path
    scripts: Path
    tracking: Tracking
    steps: tuple[Step, ...]

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
        raise _refusal(path, [_describe(problem) for problem in error.errors()]) from None
    folder = folder or Path("runs/jobs") / plan.name
    problems = [*_check_settings(plan, folder), *_check_needs(plan)]
    job = (
        None if problems else Job(plan.name, folder, plan.scripts, plan.tracking, tuple(_steps(plan, folder, problems)))
    )
    if job is None or problems:
        raise _refusal(path, problems)
    return job


def _refusal(path: Path, problems: Sequence[str]) -> InputError:
    return InputError(f"{path} is not a job ({len(problems)} to mend):", *problems)


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
    left = {name: {need for need in step.needs if need in plan.steps} for name, step in plan.steps.items()}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    if left:
        yield f"steps {', '.join(left)} need each other in a circle."


def _steps(plan: JobPlan, folder: Path, problems: list[str]) -> Iterator[Step]:
    """In an order in which each comes after those it needs."""
    left = dict(plan.steps)
    while left:
        name = next(name for name, step in left.items() if not set(step.needs) & left.keys())
        step = left.pop(name)
        values = {**plan.settings, "folder": str(folder)}
        points = tuple(_points(name, step, values, problems))
        problems += [f"steps.{name}, {found}" for point in points for found in _check_training(point, plan.tracking)]
        at_most = step.sweep.at_most if step.sweep else None
        yield Step(name, step.needs, points, at_most, is_sweep=step.sweep is not None)


def _points(name: str, step: StepPlan, values: Mapping[str, Scalar], problems: list[str]) -> Iterator[Point]:
    words = _words(name, step, {*values, *(["point"] if step.sweep else [])}, problems)
    if not words:
        return
    for label, fields in _combinations(name, step.sweep, problems):
        arguments = [_fill(word, {**values, "point": label}) for word in words]
        overrides = {field: value for field, value in fields.items() if not field.startswith("resources.")}
        if overrides and words[0] != "train":
            problems.append(f"steps.{name}.sweep: only train has the field {next(iter(overrides))}; use {{point}}.")
        try:
            resources = _resources(step.resources, fields)
        except ValidationError as error:
            problems += [f"steps.{name}.sweep, {label}: resources.{_describe(found)}" for found in error.errors()]
            continue
        arguments += [f"{field}={_text(value)}" for field, value in overrides.items()]
        problems += [
            f"steps.{name}.run: {_without_password(word)!r} must not hold a password, which logs and every user of the "
            "cluster would see: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
            for word in arguments
            if _without_password(word) != word
        ]
        yield Point(label, tuple(arguments), resources)


def _words(name: str, step: StepPlan, known: set[str], problems: list[str]) -> list[str]:
    """The command line cut into words, with `{...}` still in them; none where something is wrong."""
    try:
        words = shlex.split(step.run)
    except ValueError as error:
        problems.append(f"steps.{name}.run: {str(error).lower()}.")
        return []
    found = []
    if not words or words[0] not in COMMANDS:
        found.append(f"must begin with a command of aumn, one of {', '.join(COMMANDS)}")
    found += [f"{word!r} must not hold control characters" for word in words if not word.isprintable()]
    unknown = sorted({placeholder for word in words for placeholder in _PLACEHOLDER.findall(word)} - known)
    found += [f"{{{placeholder}}} is not known; there are {', '.join(sorted(known))}" for placeholder in unknown]
    problems += [f"steps.{name}.run: {text}." for text in found]
    return [] if found else words


def _resources(base: Resources, fields: Mapping[str, Scalar]) -> Resources:
    """What a point takes: the step's, with the sweep's own in place of some."""
    own = {field.partition(".")[2]: value for field, value in fields.items() if field.startswith("resources.")}
    return Resources.model_validate({**base.model_dump(), **own})


def _combinations(name: str, sweep: Sweep | None, problems: list[str]) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """Each point's name and fields."""
    if sweep is None:
        yield "", {}
        return
    axes = [_choices(axis, choices) for axis, choices in sweep.axes.items()]
    problems += [
        f"steps.{name}.sweep: the choice {label!r} must be letters, digits and . _ + = - only, since it names folders; "
        "name the choices: {name: {field: value}}."
        for axis in axes
        for label in axis
        if not re.fullmatch(r"[\w.+=-]+", label, re.ASCII)
    ]
    for chosen in itertools.product(*(axis.items() for axis in axes)):
        yield ",".join(label for label, _ in chosen), {field: v for _, fields in chosen for field, v in fields.items()}


def _choices(axis: str, choices: Mapping[str, dict[str, Scalar]] | Sequence[Scalar]) -> Mapping[str, dict[str, Scalar]]:
    """An axis's named choices; a plain value's name is that of its field and the value."""
    if isinstance(choices, Mapping):
        return choices
    return {f"{axis.rpartition('.')[2]}={_text(value)}": {axis: value} for value in choices}


def _check_training(point: Point, tracking: Tracking) -> Iterator[str]:
    """What `aumn train` would refuse hours later, once its turn has come."""
    command, *arguments = point.arguments
    if command != "train" or not arguments:
        return
    try:
        config = load_config(Path(arguments[0]), [word for word in arguments[1:] if not word.startswith("-")])
    except InputError as error:
        yield f"{point.name}: {error}" if point.name else str(error)
        return
    if tracking.enabled and config.tracking.enabled and config.tracking.uri != tracking.uri:
        yield (
            f"{point.name or 'train'}: tracking.uri={config.tracking.uri} of {arguments[0]} is not the job's, "
            f"{tracking.uri}; a job has one store."
        )


def _fill(word: str, values: Mapping[str, Scalar]) -> str:
    """In one pass, so that what a value holds is never filled in again."""
    return _PLACEHOLDER.sub(lambda found: _text(values[found[1]]), word)


def _without_password(text: str) -> str:
    """What stands before the @ of an address, and has a colon."""
    return re.sub(r"//[^/@]*:[^/@]*@", "//***@", text)


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
