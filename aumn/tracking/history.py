"""What a tracked run has recorded, read back, and files added to it afterwards; its status stays as it is."""

from __future__ import annotations

from pathlib import Path

from aumn.tracking.store import explain, open_store


def read_metrics(run_id: str, uri: str | None = None) -> dict[str, tuple[list[int], list[float]]]:
    """Every metric of a run as steps and values, by name and step."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        names = sorted(client.get_run(run_id).data.metrics)
        histories = {name: client.get_metric_history(run_id, name) for name in names}
    points = {name: sorted((point.step, point.value) for point in history) for name, history in histories.items()}
    return {name: ([step for step, _ in rows], [value for _, value in rows]) for name, rows in points.items()}


def attach(run_id: str, file: Path, name: str, uri: str | None = None) -> None:
    """Keep a file with a run, in its folder `name`, where MLflow's pages show it."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        client.log_artifact(run_id, str(file), name)
