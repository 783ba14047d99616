"""Files added to an MLflow run afterwards."""

from __future__ import annotations

from pathlib import Path

from aumn.tracking.store import explain, open_store


def attach(run_id: str, file: Path, name: str, uri: str | None = None) -> None:
    """Keep a file with a run, in its folder `name`, where MLflow's pages show it; the run's status stays as it is."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        client.log_artifact(run_id, str(file), name)
