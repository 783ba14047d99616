"""A job's steps as calls of sbatch: pure, so that a test can read what a cluster would be told.

Everything is an argument vector or an environment variable; no shell ever parses a value.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aumn.jobs.job import Job, Step
from aumn.jobs.job_schema import TRAINS, Resources

SHARE = Path(__file__).parents[1] / "share"
"""configs/, jobs/ and slurm/ as they come with aumn; in the repository, links to the folders beside `aumn/`."""


@dataclass(frozen=True)
class Submission:
    """One call of sbatch: a step, or those of its points that take the same resources."""

    name: str  # a shell variable's, for the job's number in `text`
    indices: tuple[int, ...]
    environment: Mapping[str, str]
    options: tuple[str, ...]
    command: tuple[str, ...]  # the batch script and its arguments

    def follow_ups(self, count: int) -> list[Submission]:
        """Jobs that take over where the script cannot requeue itself."""
        environment = {**self.environment, "AUMN_FOLLOWS": "1"}
        return [replace(self, name=f"{self.name}_{n}_later", environment=environment) for n in range(1, count + 1)]

    def argv(self, dependencies: Sequence[str], comment: str, without: Sequence[str] = ()) -> list[str]:
        """What is run: `dependencies` are such as afterok:123, by the comment the job is found again.

        `without` are nodes to go round, beyond those that an option excludes.
        """
        after = (f"--dependency={','.join(dependencies)}", "--kill-on-invalid-dep=yes") if dependencies else ()
        excluded = [option.partition("=")[2] for option in self.options if option.startswith("--exclude=")]
        exclude = [f"--exclude={','.join([*excluded, *without])}"] if without else []
        return ["sbatch", *self.options, *exclude, f"--comment={comment}", *after, *self.command]

    def text(self, dependencies: Sequence[str]) -> str:
        """The same as a line for a shell; `dependencies` may name another submission's number, as afterok:$train."""
        variables = [shlex.quote(f"{name}={value}") for name, value in self.environment.items()]
        after = [f'--dependency="{",".join(dependencies)}" --kill-on-invalid-dep=yes'] if dependencies else []
        words = [*map(shlex.quote, self.options), *after, *map(shlex.quote, self.command)]
        return f"{self.name}=$(env {' '.join(variables)} sbatch {' '.join(words)})"


def submissions(job: Job, step: Step, indices: Sequence[int], environment: Mapping[str, str]) -> Iterator[Submission]:
    """The calls that submit these points of a step, one for all that take the same resources."""
    groups: dict[Resources, list[int]] = {}
    for index in indices:
        groups.setdefault(step.points[index].resources, []).append(index)
    arguments = ("--points", str(points_folder(job, step))) if step.is_sweep else script_arguments(step, 0)
    for number, (resources, members) in enumerate(groups.items()):
        name = step.name if number == 0 else f"{step.name}_{number}"
        variables = {**environment, "AUMN_STEP": step.name, "AUMN_MOST_RESTARTS": str(resources.restarts)}
        if resources.spare_nodes:
            variables["AUMN_SPARE_NODES"] = str(resources.spare_nodes)
        options = tuple(_options(job, step, members, resources))
        yield Submission(name, tuple(members), variables, options, (str(script(job, step)), *arguments))


def log_path(job: Job, step: Step, index: int | str) -> Path:
    """Where a point's output goes, restarts and retries included."""
    return job.folder / "logs" / (f"{step.name}.{index}.log" if step.is_sweep else f"{step.name}.log")


def sbatch_name(job: Job, step: str) -> str:
    """What squeue lists a step under."""
    return f"{job.plan.name}.{step}"


def script(job: Job, step: Step) -> Path:
    """The batch script that runs a step: the job's own copy or, where it names none, aumn's."""
    folder = job.directory / job.plan.scripts
    if job.plan.scripts == Path("slurm") and not folder.exists():
        folder = SHARE / "slurm"
    return folder / ("train.sbatch" if step.command == "train" else "step.sbatch")


def script_arguments(step: Step, index: int) -> tuple[str, ...]:
    """What a batch script is given for a point; train.sbatch says `train` itself."""
    arguments = step.points[index].arguments
    return arguments[1:] if step.command == "train" else arguments


def points_folder(job: Job, step: Step) -> Path:
    """Where a sweep's points have their arguments, in a file each, a line each."""
    return job.folder / "points" / step.name


def _options(job: Job, step: Step, indices: Sequence[int], resources: Resources) -> Iterator[str]:
    yield "--parsable"
    yield f"--job-name={sbatch_name(job, step.name)}"
    yield f"--chdir={job.directory}"
    yield f"--output={log_path(job, step, '%a')}"
    yield from ("--open-mode=append", "--export=ALL", f"--nodes={resources.nodes + resources.spare_nodes}")
    yield f"--ntasks-per-node={resources.ranks_per_node}"
    yield f"--cpus-per-task={resources.cpus_per_rank}"
    if resources.gpus_per_node:
        yield f"--gpus-per-node={resources.gpus_per_node}"
    if resources.memory_gb:
        yield f"--mem={resources.memory_gb}G"
    if resources.minutes:
        yield f"--time={resources.minutes}"
    yield "--requeue" if resources.restarts else "--no-requeue"
    if step.command in TRAINS:
        yield f"--signal=USR1@{resources.signal_s}"
    if step.is_sweep:
        yield f"--array={','.join(map(str, indices))}" + (f"%{step.at_most}" if step.at_most else "")
    yield from resources.options
