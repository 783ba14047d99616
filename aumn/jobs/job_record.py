"""What a job's steps leave in the tracking store: one run a job, with its steps nested in it.

`aumn train` records itself; for the other commands, and for the job as a whole, this file does. A store that does not
answer costs these records and no step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from aumn.config.run_config import load_config
from aumn.data.shards.layout import read_description
from aumn.jobs.job import Job
from aumn.jobs.job_folder import JobFolder, PointStatus
from aumn.records import InputError
from aumn.runfolder.checkpoint import source_commit
from aumn.tracking import job_run


def open_folder(job: Job) -> JobFolder:
    """The job's folder, as an earlier submission left it or new, with the run that holds its steps."""
    if JobFolder.exists(job.folder):
        before = JobFolder.open(job.folder)
        before.refuse_another(job)
        folder = JobFolder(job, before.tracking_run)
        if folder.not_done():
            _tag(folder, {}, "RUNNING")
    else:
        folder = JobFolder(job, _begin(job) if job.tracking.enabled else None)
    folder.write()
    return folder


def record_submission(folder: JobFolder) -> None:
    """The jobs' numbers, as tags."""
    numbers: dict[str, list[str]] = {}
    for (step, _), job_id in folder.job_ids().items():
        if job_id not in numbers.setdefault(f"slurm.{step}", []):
            numbers[f"slurm.{step}"].append(job_id)
    _tag(folder, {step: " ".join(ids) for step, ids in numbers.items()} | _dataset_tags(folder.job))


def record_end(folder: JobFolder, statuses: Sequence[PointStatus]) -> None:
    """End the job's run once nothing of it is under way."""
    states = {status.state for status in statuses}
    if not states & {"queued", "running"}:
        ends = {"failed": "FAILED", "cancelled": "KILLED", "waiting": "KILLED", "done": "FINISHED"}
        _tag(folder, _dataset_tags(folder.job), next(end for state, end in ends.items() if state in states))


def record_step(arguments: Sequence[str], code: int, started_ms: int) -> None:
    """Called by the first rank of every command that runs in a job, when it is done; not when it is to go on later."""
    try:
        folder = JobFolder.open(Path(os.environ["AUMN_JOB_FOLDER"]))
        step = folder.job.step(os.environ["AUMN_STEP"])
        label = step.label(int(os.environ.get("AUMN_POINT", "0")))
        tags = _dataset_tags(folder.job)
        if arguments[0] != "train":
            uri, metrics = folder.job.tracking.uri, _metrics(arguments)
            job_run.record_step(uri, label, code=code, started_ms=started_ms, tags=tags, metrics=metrics)
        _tag(folder, tags, _end_by(folder, label, code))
    except (InputError, OSError) as error:
        print(f"aumn: this step is not recorded in the tracking store: {error}", file=sys.stderr)


def _begin(job: Job) -> str:
    tags = {"job": job.name, "job_folder": str(job.folder), "commit": source_commit() or "unknown"}
    params = {f"{step.name}.run": " ".join(step.points[0].arguments) for step in job.steps}
    params |= {
        f"{step.name}.points": " ".join(point.name for point in step.points) for step in job.steps if step.is_sweep
    }
    params |= {f"{step.name}.ranks": str(step.points[0].resources.ranks) for step in job.steps}
    return job_run.begin_job(job.tracking.uri, job.tracking.experiment, job.name, tags, params)


def _tag(folder: JobFolder, tags: Mapping[str, str], status: str | None = None) -> None:
    if folder.tracking_run:
        job_run.tag_job(folder.job.tracking.uri, folder.tracking_run, tags, status)


def _end_by(folder: JobFolder, label: str, code: int) -> str | None:
    """How the job's run ends by this step's end; its own outcome is not written yet."""
    if code:
        return "FAILED"
    return None if folder.not_done() - {label} else "FINISHED"


def _dataset_tags(job: Job) -> dict[str, str]:
    """Of the shard set that the job trains on, once it is packed."""
    for step in job.steps:
        if step.command == "train":
            arguments = [word for word in step.points[0].arguments[1:] if not word.startswith("-")]
            with suppress(InputError, OSError):
                found = read_description(load_config(Path(arguments[0]), arguments[1:]).data.shards)
                return {"dataset": found.name, "dataset_identity": found.identity}
    return {}


def _metrics(arguments: Sequence[str]) -> dict[str, float]:
    """The mAP that an evaluation wrote."""
    if arguments[0] != "evaluate" or "--json" not in arguments[:-1]:
        return {}
    with suppress(OSError, ValueError, KeyError):
        result = json.loads(Path(arguments[arguments.index("--json") + 1]).read_text())
        return {f"mAP/{tiou}": value for tiou, value in {**result["mAP"], "average": result["average"]}.items()}
    return {}
