"""MLflow runs beside those of the mirror: a job's, with its steps and sweep points nested in it; and files for any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from aumn.tracking.store import connected, find_experiment

PARENT = "mlflow.parentRunId"


def job_tags(environment: Mapping[str, str]) -> dict[str, str]:
    """What a run inside a job says of itself: its parent, its step, and SLURM's number for it."""
    names = {
        PARENT: "AUMN_PARENT_RUN",
        "step": "AUMN_STEP",
        "point": "AUMN_POINT",
        "slurm_job_id": "SLURM_JOB_ID",
        "slurm_nodes": "SLURM_JOB_NODELIST",
    }
    if not environment.get("AUMN_PARENT_RUN"):
        names = {tag: variable for tag, variable in names.items() if variable.startswith("SLURM_")}
    return {tag: environment[variable] for tag, variable in names.items() if environment.get(variable)}


def begin_job(uri: str | None, experiment: str, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    """Start the run of a job; its id."""
    with connected(uri) as client:
        experiment_id = find_experiment(client, experiment)
        run_id = str(client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)
        for key, value in params.items():
            client.log_param(run_id, key, value[:6000])
        return run_id


def tag_job(uri: str | None, run_id: str, tags: Mapping[str, str], status: str | None = None) -> None:
    """Add to what a job's run says, and give it a status; one that it has already stays, with the time of its end."""
    with connected(uri) as client:
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if status is None or client.get_run(run_id).info.status == status:
            return
        if status == "RUNNING":
            client.update_run(run_id, status)
        else:
            client.set_terminated(run_id, status)


def record_step(
    uri: str | None, name: str, *, code: int, started_ms: int, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> None:
    """A step that has ended, as a run nested in its job's (`job_tags` of this process)."""
    mine = job_tags(os.environ)
    with connected(uri) as client:
        experiment_id = client.get_run(mine[PARENT]).info.experiment_id
        run = client.create_run(experiment_id, started_ms, run_name=name, tags={**mine, **tags})
        for key, value in metrics.items():
            client.log_metric(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id, "FAILED" if code else "FINISHED")


def attach(run_id: str, file: Path, name: str, uri: str | None = None) -> None:
    """Keep a file with a run, in its folder `name`, where MLflow's pages show it; the run's status stays as it is."""
    with connected(uri) as client:
        client.log_artifact(run_id, str(file), name)
