"""What a job's YAML may say; `job` makes steps and points of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
StepName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Scalar = bool | int | float | str
Values = Annotated[tuple[Scalar, ...], Field(min_length=1)]
Choices = Annotated[dict[str, dict[str, Scalar]], Field(min_length=1)]
OURS = (
    "array", "chdir", "comment", "dependency", "export", "job-name", "open-mode", "output", "parsable", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that `aumn submit` sets itself, or that would take the place of the script."""

RESOURCES = "resources."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Part):
    """What one point of a step takes; `aumn submit` makes them options of sbatch."""

    nodes: Count = 1
    ranks_per_node: Count = 1
    cpus_per_rank: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    memory_gb: Count | None = Field(None, description="A node's; null: the site's default.")
    minutes: Count | None = Field(None, description="Time limit; null: the site's default.")
    signal_s: Count = Field(
        120, description="A train step checkpoints and asks to be requeued so long before the limit."
    )
    restarts: Annotated[int, Field(ge=0)] = Field(10, description="Most times that the step is requeued.")
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

    def points(self) -> Iterator[tuple[str, dict[str, Scalar]]]:
        """Each point's name and fields."""
        for chosen in itertools.product(*(choices.items() for choices in self.choices())):
            yield (
                ",".join(name for name, _ in chosen),
                {field: v for _, fields in chosen for field, v in fields.items()},
            )


class StepPlan(_Part):
    """One step, as the YAML has it."""

    run: str = Field(description="An aumn command line, such as: train configs/thumos14.yaml")
    needs: tuple[StepName, ...] = Field((), description="Steps that must have ended well before.")
    resources: Resources = Resources()
    sweep: Sweep | None = None

    def points(self) -> Iterator[tuple[str, dict[str, Scalar]]]:
        """Each point's name and fields; without a sweep, one point without a name."""
        return self.sweep.points() if self.sweep else iter([("", {})])

    def resources_of(self, fields: Mapping[str, Scalar]) -> Resources:
        """What a point takes: the step's, with the sweep's own in place of some."""
        own = {name.removeprefix(RESOURCES): value for name, value in fields.items() if name.startswith(RESOURCES)}
        return Resources.model_validate({**self.resources.model_dump(), **own})


class Tracking(_Part):
    """The MLflow run that holds the job's steps."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow store; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
    experiment: str = "aumn"

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri and re.search(r"//[^/@]*:[^/@]*@", uri):
            raise ValueError(
                "must not hold a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return uri


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
