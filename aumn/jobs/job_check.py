"""What is wrong with a job's plan, told all at once before anything runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aumn.addresses import has_password, hide
from aumn.jobs.job_schema import RESOURCES, JobPlan, StepPlan, text_of

COMMANDS = ("evaluate", "localize", "models", "pack", "report", "scaling", "synth", "train")
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def validate(plan: JobPlan, folder: Path) -> list[str]:
    """The problems of a plan, a sentence each; `job.build` takes one that has none."""
    problems = [*_check_passwords(plan), *_check_settings(plan, folder), *_check_needs(plan)]
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
    fields = [field for _, chosen in step.points() for field in chosen if not field.startswith(RESOURCES)]
    if fields and step.run.split()[:1] != ["train"]:
        yield f"sweep: only train has the field {fields[0]}; use {{point}}."
    for label, chosen in step.points():
        try:
            step.resources_of(chosen)
        except ValidationError as error:
            yield from (f"sweep, {label}: resources.{describe(found)}" for found in error.errors())
