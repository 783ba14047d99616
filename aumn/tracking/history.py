"""What a tracked run has recorded, read back, and files added to it afterwards; its status stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

from aumn.tracking.spool import NAME
from aumn.tracking.store import explain, open_store

Curve = dict[int, float]
"""A metric's value at each step, steps ascending."""


def read_metrics(run_id: str, uri: str | None = None) -> dict[str, Curve]:
    """Every metric that a store has of a run."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        names = sorted(client.get_run(run_id).data.metrics)
        histories = {name: client.get_metric_history(run_id, name) for name in names}
    return {name: dict(sorted((point.step, point.value) for point in rows)) for name, rows in histories.items()}


def read_undelivered(folder: Path) -> dict[str, Curve]:
    """The metrics that wait in a run's folder until its store takes them; see `spool`."""
    curves: dict[str, Curve] = {}
    for line in (folder / NAME).read_text(encoding="utf-8").splitlines() if (folder / NAME).exists() else ():
        try:
            letter = json.loads(line)
        except ValueError:  # a last line that a kill cut short
            continue
        for name, value in letter.get("metrics", {}).items():
            curves.setdefault(name, {})[letter["step"]] = float(value)
    return curves


def attach(run_id: str, file: Path, name: str, uri: str | None = None) -> None:
    """Keep a file with a run, in its folder `name`, where MLflow's pages show it."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        client.log_artifact(run_id, str(file), name)
