"""Files that belong to a run, such as its report, which MLflow's UI then shows."""

from __future__ import annotations

from pathlib import Path

from aumn.tracking.recipient import find_run
from aumn.tracking.store import explain, open_store


def log_artifacts(path: Path, place: str, *, run_id: str, uri: str | None = None) -> None:
    """Keep a file, or a folder's contents, with a run that exists, in its folder `place`. InputError if refused."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        find_run(client, run_id)
        log = client.log_artifacts if path.is_dir() else client.log_artifact
        log(run_id, str(path), place)
