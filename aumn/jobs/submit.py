"""Submitting a job: what is not done yet goes to SLURM, or runs here; what is done is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from aumn.jobs import queue
from aumn.jobs.job import Job, Step
from aumn.jobs.job_folder import LOCAL, NEVER, JobFolder, PointStatus
from aumn.jobs.sbatch import log_path, points_folder, script, script_arguments, submissions
from aumn.records import InputError

Say = Callable[[str], None]


def dry_run(job: Job) -> Iterator[str]:
    """A shell script that submits the whole job, as `submit` would from nothing."""
    names: dict[str, list[tuple[str, ...]]] = {}
    for step in job.steps:
        for index in range(len(step.points)) if step.is_sweep else ():
            yield f"# {points_folder(job, step)}/{index}: {' '.join(map(repr, script_arguments(step, index)))}"
        after = [chain for need in step.needs for chain in names[need]]
        mine = names.setdefault(step.name, [])
        for call in submissions(job, step, range(len(step.points)), step_environment(JobFolder(job, job.plan.name))):
            yield call.text(_dependencies(after, mine))
            chain = [f"${call.name}"]
            for later in call.follow_ups(_follow_ups(step)):
                yield later.text(_unless_well(chain))
                chain.append(f"${later.name}")
            mine.append(tuple(chain))


def submit(folder: JobFolder, say: Say) -> None:
    """Hand to SLURM whatever is neither done nor under way; `say` takes a line a submission."""
    queue.require_slurm()
    job = folder.job
    _check_places(job)
    statuses = folder.statuses()
    fresh: dict[str, list[tuple[str, ...]]] = {}  # step -> jobs submitted now, each with those that take over from it
    for step in job.steps:
        wanted = {"waiting", "failed", "cancelled"}
        if fresh.keys() & set(step.needs):
            wanted |= {"queued"}  # for a job whose place another one takes now
        again = [status for status in statuses if status.step.name == step.name and status.state in wanted]
        left = (status for status in again if status.is_active or status.reason == NEVER or status.chain)
        queue.cancel(task for status in left for task in status.task_ids)
        after = [chain for need in step.needs for chain in fresh.get(need, ())]
        after += [status.task_ids for status in statuses if status.step.name in step.needs and status.is_active]
        for call in submissions(job, step, [status.index for status in again], step_environment(folder)):
            comment = folder.announce(step.name, call.indices)
            dependencies = _dependencies(after, fresh.get(step.name, []))
            without = folder.bad_nodes()
            try:
                job_id = queue.run_sbatch(call.argv(dependencies, comment, tuple(without)), call.environment)
            except queue.TooFewNodesError:
                if not without:
                    raise
                say(f"{_describe(step, call.indices)}: too few nodes without {', '.join(without)}, so they are used")
                without = {}
                job_id = queue.run_sbatch(call.argv(dependencies, comment), call.environment)
            chain = [job_id]
            folder.record(step.name, call.indices, comment=comment, job_id=job_id)
            for later in call.follow_ups(_follow_ups(step)):
                argv = later.argv(_unless_well(chain), comment, tuple(without))
                chain.append(queue.run_sbatch(argv, later.environment))
                folder.record(step.name, call.indices, comment=comment, job_id=job_id, follow_ups=chain[1:])
            fresh.setdefault(step.name, []).append(tuple(chain))
            others = f", {', '.join(chain[1:])} to take over" if chain[1:] else ""
            say(f"{_describe(step, call.indices)}: submitted as job {job_id}{others}{_without(without, folder)}")
    if fresh:
        say(f"follow: aumn jobs {job.folder}")
    else:
        active = sum(status.is_active for status in statuses)
        say(f"{job.folder}: nothing to submit; " + (f"{active} under way." if active else "all steps are done."))


def run_here(folder: JobFolder, say: Say) -> list[str]:
    """Run what is not done, one point after the other; a failed one stops only the steps that need it.

    The labels of the points that failed, and of those that could not run for it.
    """
    statuses = folder.statuses()
    bad: list[PointStatus] = []
    if active := sum(status.is_active for status in statuses):
        raise InputError(f"{active} points of {folder.path} are under way: wait for them, or cancel them first.")
    for status in statuses:
        if status.state == "done":
            continue
        if blocked := {one.step.name for one in bad} & set(status.step.needs):
            say(f"{status.label}: left out, since {', '.join(sorted(blocked))} failed")
        elif _run_point(folder, status, say):
            continue
        bad.append(status)
    return [status.label for status in bad]


def cancel_job(folder: JobFolder, say: Say) -> None:
    """End whatever waits or runs on the cluster; training keeps its checkpoints, and a later `aumn submit` goes on."""
    active = [status for status in folder.statuses() if status.is_active]
    if here := [status.label for status in active if status.job_id.startswith(LOCAL)]:
        raise InputError(f"{', '.join(here)} runs on this machine: stop it with Ctrl-C where `aumn submit` runs.")
    queue.cancel(task for status in active for task in status.task_ids)
    say(f"cancelled: {', '.join(status.label for status in active) or 'nothing was under way'}")


def step_environment(folder: JobFolder) -> dict[str, str]:
    """What tells a step which job it belongs to; neither a secret nor anything that would have to be one."""
    # The `aumn` of this environment, so that a step runs the same code whatever its shell finds first.
    program = shutil.which("aumn", path=str(Path(sys.executable).parent)) or "aumn"
    variables = {"AUMN_JOB": folder.identity, "AUMN_JOB_FOLDER": str(folder.path), "AUMN": program}
    if folder.tracking_run:
        variables["AUMN_PARENT_RUN"] = folder.tracking_run
    if uri := folder.job.plan.tracking.uri:
        variables["MLFLOW_TRACKING_URI"] = uri
    return variables


def _run_point(folder: JobFolder, status: PointStatus, say: Say) -> bool:
    """Whether it ended well."""
    step, index = status.step, status.index
    label, log = status.label, log_path(folder.job, step, index)
    ranks = step.points[index].resources.ranks
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    argv = [sys.executable, *launcher, "-m", "aumn", *step.points[index].arguments]
    own = {**step_environment(folder), "AUMN_STEP": step.name, "AUMN_POINT": str(index)}
    say(f"{label}: {ranks} rank{'s' * (ranks > 1)}, log in {log}")
    with log.open("ab") as out:
        process = subprocess.Popen(argv, cwd=folder.job.directory, env={**os.environ, **own}, stdout=out, stderr=out)
        name = folder.record_local(step.name, index, process.pid)
        try:
            code = process.wait()
        except BaseException:  # we are asked to stop; Ctrl-C reached the step too, another signal did not
            process.terminate()
            process.wait(60)
            raise
    folder.outcome_file(step.name, index).write_text(f"{name} {code}\n")  # as the batch scripts do
    say(f"{label}: done" if code == 0 else f"{label}: FAILED with exit code {code}: {last_line(log)}")
    return code == 0


def _dependencies(after: Collection[Sequence[str]], groups_before: Sequence[Sequence[str]]) -> list[str]:
    """A step's groups of points run one after the other, well or not, so that at_most holds over all of them.

    A job with others that take over from it is waited for alone (`job_schema`), until any of them has ended well.
    """
    if chain := next((chain for chain in after if len(chain) > 1), None):
        return ["?".join(f"afterok:{job_id}" for job_id in chain)]
    well = [f"afterok:{':'.join(job_id for (job_id,) in after)}"] if after else []
    return well + [f"afterany:{job_id}" for (job_id,) in groups_before[-1:]]


def _unless_well(chain: Sequence[str]) -> list[str]:
    """A job that takes over waits until all before it have ended, none of them well; else it is of no use."""
    return [f"afternotok:{job_id}" for job_id in chain]


def _follow_ups(step: Step) -> int:
    return step.points[0].resources.follow_ups


def _check_places(job: Job) -> None:
    """What sbatch would find out only when the job has begun."""
    if not job.directory.is_dir():
        raise InputError(f"{job.directory}, from which this job was submitted, is gone: give its `aumn submit` again.")
    for step in job.steps:
        if not script(job, step).is_file():
            raise InputError(
                f"{script(job, step)} does not exist: let `scripts` in the job's YAML name a folder with train.sbatch "
                "and step.sbatch, or leave it out."
            )


def _describe(step: Step, indices: Sequence[int]) -> str:
    if not step.is_sweep:
        return step.name
    names = ", ".join(step.points[index].name for index in indices)
    return f"{step.name}, {len(indices)} point{'s' * (len(indices) > 1)} ({names})"


def _without(bad: Mapping[str, str], folder: JobFolder) -> str:
    """What is said of nodes that a submission goes round."""
    if not bad:
        return ""
    named = ", ".join(f"{node} ({why})" for node, why in bad.items())
    return f", without {named}; remove a line of {folder.path / 'bad_nodes'} to have its node back"


def last_line(log: Path) -> str:
    """What a step said last, of what aumn says of its end."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith("aumn: ")]
    return lines[-1] if lines else f"see {log}"
