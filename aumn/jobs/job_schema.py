"""What a job's YAML may say, and what is wrong with it, told all at once; `job` makes steps and points of it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from aumn.addresses import has_password, hide
from aumn.config.section import Count

StepName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Scalar = bool | int | float | str
Values = Annotated[tuple[Scalar, ...], Field(min_length=1)]
Choices = Annotated[dict[str, dict[str, Scalar]], Field(min_length=1)]
OURS = (
    "array", "chdir", "comment", "dependency", "export", "job-name", "open-mode", "output", "parsable", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that `aumn submit` sets itself, or that would take the place of the script."""

COMMANDS = ("evaluate", "extract", "localize", "models", "pack", "report", "scaling", "synth", "train", "tune")
TRAINS = ("train", "tune")
"""Those of them that train: they are told in time that a limit comes near, and record themselves."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Part):
    """What one point of a step takes; `aumn submit` makes them options of sbatch."""

    nodes: Count = 1
    spare_nodes: Annotated[int, Field(ge=0, le=8)] = Field(
        0, description="So many nodes more are asked for, and a train step runs on the first healthy ones of all."
    )
    ranks_per_node: Count = 1
    cpus_per_rank: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    memory_gb: Count | None = Field(None, description="A node's; null: the site's default.")
    minutes: Count | None = Field(None, description="Time limit; null: the site's default.")
    signal_s: Count = Field(
        120, description="A step that trains checkpoints and asks to be requeued so long before the limit."
    )
    restarts: Annotated[int, Field(ge=0)] = Field(10, description="Most times that the step is requeued.")
    follow_ups: Annotated[int, Field(ge=0)] = Field(
        0, description="So many jobs wait to take over a train step where `scontrol requeue` is missing."
    )
    options: tuple[str, ...] = Field((), description="Further options of sbatch, such as --qos=long.")

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node

    @model_validator(mode="after")
    def _check_signal(self) -> Resources:
        if self.minutes is not None and self.minutes * 60 <= self.signal_s:
            raise ValueError(f"minutes={self.minutes} ends before signal_s={self.signal_s} is over; allow more minutes")
        return self

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            name = re.match(r"--([a-z-]+)(=|$)", option)
            if not name or any(own.startswith(name[1]) for own in OURS):  # sbatch takes --dep for --dependency
                raise ValueError(f"{option!r} must read --name or --name=value, and not be one of {', '.join(OURS)}")
        return options


class Sweep(_Part):
    """A step's points: every combination of its axes.

    An axis is a field with its values, or named choices, each of several fields. Fields are a run configuration's, or
    `resources.x` for what the point takes.
    """

    axes: dict[str, Values | Choices] = Field(min_length=1)
    at_most: Count | None = Field(None, description="How many points run at once; null: as many as fit.")

    def choices(self) -> list[Mapping[str, dict[str, Scalar]]]:
        """Each axis's choices by name; a plain value's name is that of its field and the value."""
        return [
            choices
            if isinstance(choices, Mapping)
            else {f"{axis.rpartition('.')[2]}={text_of(value)}": {axis: value} for value in choices}
            for axis, choices in self.axes.items()
        ]


class StepPlan(_Part):
    """One step, as the YAML has it."""

    run: str = Field(description="An aumn command line, such as: train configs/thumos14.yaml")
    needs: tuple[StepName, ...] = Field((), description="Steps that must have ended well before.")
    resources: Resources = Resources()
    sweep: Sweep | None = None

    def points(self) -> Iterator[tuple[str, dict[str, Scalar], dict[str, Any]]]:
        """Each point's name, its own fields of the run configuration, and its resources, the step's where not its own.

        Without a sweep, there is one point without a name.
        """
        axes = self.sweep.choices() if self.sweep else []
        for chosen in itertools.product(*(choices.items() for choices in axes)):
            given = {field: value for _, fields in chosen for field, value in fields.items()}
            own = {field: value for field, value in given.items() if not field.startswith("resources.")}
            taken = {name.removeprefix("resources."): given[name] for name in given.keys() - own.keys()}
            yield ",".join(name for name, _ in chosen), own, {**self.resources.model_dump(), **taken}


class Tracking(_Part):
    """The MLflow run that holds the job's steps."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow store; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
    experiment: str = "aumn"


class JobPlan(_Part):
    """The YAML file."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    settings: dict[str, Scalar] = {}
    scripts: Path = Field(
        Path("slurm"), description="Folder with train.sbatch and step.sbatch; where it is not there, aumn's own."
    )
    tracking: Tracking = Tracking()
    steps: dict[StepName, StepPlan] = Field(min_length=1)

    def in_order(self) -> list[str]:
        """Names of the steps, each behind those it needs and else as written; a circle is left out."""
        ordered: list[str] = []

        def is_ready(name: str) -> bool:
            return name not in ordered and not set(self.steps[name].needs) & self.steps.keys() - set(ordered)

        while ready := next(filter(is_ready, self.steps), None):
            ordered.append(ready)
        return ordered


def text_of(value: Scalar) -> str:
    """A value as a word of a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def validate(plan: JobPlan, folder: Path) -> list[str]:
    """The problems of a plan, a sentence each; `job.build` takes one that has none."""
    problems = [*_check_passwords(plan), *_check_settings(plan, folder), *_check_needs(plan), *_check_follow_ups(plan)]
    for name, step in plan.steps.items():
        found = (*_check_command(step, {*plan.settings, "folder"}), *_check_sweep(step))
        problems += [f"steps.{name}.{problem}" for problem in found]
    return problems


def describe(problem: Any) -> str:
    """A sentence on what the YAML's schema found wrong."""
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("tuple[", "dict[")))
    if problem["type"] == "missing":
        return f"{where} is missing; it has no default."
    if problem["type"] == "extra_forbidden":
        return f"{where} is no field of a job; docs/jobs.md lists them."
    rule, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    shown = hide(repr(value), str(value))
    return f"{where}={shown}: {rule[0].lower()}{rule[1:]}."


def _check_passwords(plan: JobPlan) -> Iterator[str]:
    for word in filter(has_password, re.split(r"[\s\"]+", plan.model_dump_json())):
        yield (
            f"the address {hide(word, word)} must not hold a password, which logs and every user of the cluster would "
            "see: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
        )


def _check_settings(plan: JobPlan, folder: Path) -> Iterator[str]:
    """Values become words of a command line and lines of a file, and must not pass for something else there."""
    for name, value in {**plan.settings, "folder": str(folder)}.items():
        text = text_of(value)
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
    ordered = plan.in_order()
    if circle := [name for name in plan.steps if name not in ordered]:
        yield f"steps {', '.join(circle)} need each other in a circle."


def _check_follow_ups(plan: JobPlan) -> Iterator[str]:
    """What SLURM's dependencies cannot say: it waits for all of several jobs or for any of them."""
    chains = {name for name, step in plan.steps.items() if any(taken["follow_ups"] for _, _, taken in step.points())}
    for name, step in plan.steps.items():
        if name in chains and (step.sweep or step.run.split()[:1] != ["train"]):
            yield f"steps.{name}.resources.follow_ups: only a train step without a sweep can have jobs that take over."
        groups = {tuple(taken.values()) for _, _, taken in step.points()}
        if (chained := chains & set(step.needs)) and (len(step.needs) > 1 or len(groups) > 1):
            yield (
                f"steps.{name} cannot wait for whichever of the jobs of {', '.join(sorted(chained))} ends well and for "
                "others: let it need that step alone and all its points take the same, or leave out follow_ups."
            )


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
    for placeholder in sorted({name for word in words for name in PLACEHOLDER.findall(word)} - known):
        yield f"run: {{{placeholder}}} is not known; there are {', '.join(sorted(known))}."


def _check_sweep(step: StepPlan) -> Iterator[str]:
    for name in (name for choices in step.sweep.choices() for name in choices) if step.sweep else ():
        if not re.fullmatch(r"[\w.+=-]+", name, re.ASCII):
            yield (
                f"sweep: the choice {name!r} must be letters, digits and . _ + = - only, since it names folders; "
                "name the choices: {name: {field: value}}."
            )
    fields = [field for _, fields, _ in step.points() for field in fields]
    if fields and step.run.split()[:1] != ["train"]:
        yield f"sweep: only train has the field {fields[0]}; use {{point}}."
    for label, _, resources in step.points():
        try:
            if Resources.model_validate(resources).spare_nodes and step.run.split()[:1] != ["train"]:
                yield "resources.spare_nodes: only train looks whether its nodes are healthy."
        except ValidationError as error:
            yield from (f"sweep, {label}: resources.{describe(found)}" for found in error.errors())
