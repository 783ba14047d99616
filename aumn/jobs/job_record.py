"""What a job's steps have measured, and leave in the tracking store: one run a job, with its steps nested in it.

Runs record themselves (`aumn train`, `aumn tune`); for the other commands, and for the job as a whole, this file does.
A store that does not answer costs these records and a warning; it holds up no submission, no look and no step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from aumn.data.shards.layout import read_description
from aumn.data.shards.stores import open_store
from aumn.data.shards.union import name_and_identity
from aumn.jobs.job import Job, training_config
from aumn.jobs.job_folder import JobFolder, PointStatus
from aumn.jobs.job_schema import TRAINS
from aumn.records import InputError
from aumn.runfolder.checkpoint import source_commit
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import last_metrics
from aumn.tracking import job_run


def record_start(folder: JobFolder) -> None:
    """Begin the run that holds the job's steps, or let it run again where there is something left to do."""
    job, tracking = folder.job, folder.job.plan.tracking
    if not folder.tracking_run and tracking.enabled:
        tags = {"job": job.plan.name, "job_folder": str(job.folder), "commit": source_commit() or "unknown"}
        params = {f"{step.name}.run": " ".join(step.points[0].arguments) for step in job.steps}
        with _recording(job.directory, "this job"):
            folder.tracking_run = job_run.begin_job(tracking.uri, tracking.experiment, job.plan.name, tags, params)
    elif folder.not_done():
        _tag(folder, {}, "RUNNING")


def record_submission(folder: JobFolder) -> None:
    """The jobs' numbers, as tags."""
    numbers: dict[str, dict[str, None]] = {}
    for (step, _), sent in folder.sent().items():
        numbers.setdefault(f"slurm.{step}", {})[sent.job_id] = None
    _tag(folder, {step: " ".join(filter(None, ids)) for step, ids in numbers.items()})


def record_end(folder: JobFolder, statuses: Sequence[PointStatus]) -> None:
    """End the job's run once nothing of it is under way."""
    states = {status.state for status in statuses}
    if not states & {"queued", "running"}:
        ends = {"failed": "FAILED", "cancelled": "KILLED", "waiting": "KILLED", "done": "FINISHED"}
        _tag(folder, {}, next(end for state, end in ends.items() if state in states))


def record_step(arguments: Sequence[str], code: int, started_ms: int) -> None:
    """Called by the first rank of every command that runs in a job, when it is done; not when it is to go on later."""
    with _recording(Path(), "this step"):
        folder = JobFolder.open(Path(os.environ["AUMN_JOB_FOLDER"]))
        label = folder.job.step(os.environ["AUMN_STEP"]).label(int(os.environ.get("AUMN_POINT", "0")))
        if arguments[0] not in TRAINS:
            uri, metrics = folder.job.plan.tracking.uri, read_evaluation(arguments, Path())
            tags = _dataset_tags(folder.job)
            job_run.record_step(uri, label, code=code, started_ms=started_ms, tags=tags, metrics=metrics)
        is_last = not folder.not_done() - {label}  # its own outcome is not written yet
        _tag(folder, {}, "FAILED" if code else "FINISHED" if is_last else None)


def describe_training(run_folder: Path) -> str:
    """Such as "step 400/1000  loss 0.5210  mAP 31.2%"; empty where nothing is logged yet, or it cannot be read."""
    with suppress(InputError, OSError):
        numbers = last_metrics(run_folder)
        shown = [f"step {numbers['step']}/{RunFolder(run_folder).status().steps}"] if numbers else []
        shown += [f"loss {numbers['loss']:.4f}"] if isinstance(numbers.get("loss"), float) else []
        shown += [f"mAP {value:.1%}" for name, value in numbers.items() if name.endswith("mAP/average")]
        return "  ".join(shown)
    return ""


def explain_ends(folder: JobFolder, statuses: Sequence[PointStatus]) -> Iterator[str]:
    """What the runs of points that failed say of it; not where they ended before their run began."""
    for status in statuses:
        run = _run_status(folder, status)
        if status.state == "failed" and run.why and status.reason == f"exit code {run.code}":
            yield f"{status.label}: {run.why}"


def describe_restarts(folder: JobFolder, statuses: Sequence[PointStatus]) -> Iterator[str]:
    """What the last restart of each training took, by part."""
    for status in statuses:
        if parts := _run_status(folder, status).recovery:
            of_each = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in parts.items())
            yield f"{status.label}: back after {sum(parts.values()):.1f} s ({of_each})"


def _run_status(folder: JobFolder, status: PointStatus) -> Status:
    if run := folder.job.run_folders.get(status.label):
        with suppress(InputError):
            return RunFolder(run).status()
    return Status()


def read_evaluation(arguments: Sequence[str], directory: Path) -> dict[str, float]:
    """The mAP that an `aumn evaluate` wrote, by `mAP/THRESHOLD` and `mAP/average`; empty for any other command."""
    if arguments[0] == "evaluate" and "--json" in arguments[:-1]:
        file = directory / arguments[arguments.index("--json") + 1]
        with suppress(OSError, ValueError, KeyError):
            result = json.loads(file.read_text())
            return {f"mAP/{tiou}": value for tiou, value in {**result["mAP"], "average": result["average"]}.items()}
    return {}


def _tag(folder: JobFolder, tags: Mapping[str, str], status: str | None = None) -> None:
    if folder.tracking_run:
        with _recording(folder.job.directory, "the state of this job"):
            tags = {**tags, **_dataset_tags(folder.job)}
            job_run.tag_job(folder.job.plan.tracking.uri, folder.tracking_run, tags, status)


@contextmanager
def _recording(directory: Path, what: str) -> Iterator[None]:
    try:
        with chdir(directory):  # where a store that is a file lies, and the configurations of the steps
            yield
    except (InputError, OSError) as error:
        print(f"aumn: {what} is not recorded in the tracking store: {error}", file=sys.stderr)


def _dataset_tags(job: Job) -> dict[str, str]:
    """Of the shard set that the job trains on, once it is packed."""
    for step in job.steps:
        if step.command == "train":
            with suppress(InputError, OSError):
                data = training_config(step.points[0]).data
                sets = [read_description(open_store(place)) for place in data.places]
                name, identity = name_and_identity(sets, data.class_names, rename=data.same_ids == "rename")
                return {"dataset": name, "dataset_identity": identity}
    return {}
