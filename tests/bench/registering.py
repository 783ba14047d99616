"""Registering a model of 1 GB on a real MLflow server, against `cp` of the same files.

Where the artifacts' folder is in this machine's reach (`mlflow server --no-serve-artifacts --default-artifact-root
FOLDER`), files are copied into it. Else they go through the server, whose own work on them is most of the time: that
row is against one plain PUT of the weights to the same server. MODEL_MB in the environment is another size.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import requests
import torch
from harness import BUILD, Row, main
from mlflow import MlflowClient

from aumn.runfolder.checkpoint import read_card, save_model
from aumn.tracking.registration import register
from aumn.tracking.store import open_store
from tests.tracking.conftest import save_card
from tests.tracking.servers import Server

ROUNDS = 3
MEGABYTES = int(os.environ.get("MODEL_MB", "1000"))


def measure() -> list[Row]:
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as made:
        folder = Path(made)
        model = save_card(folder / "model")
        weights = {"memory": torch.rand(MEGABYTES * 250_000)}
        save_model(model, weights, read_card(model))
        del weights
        open_store(f"sqlite:///{folder / 'blank.db'}")
        server = Server(folder, folder / "blank.db")
        try:
            return measure_on(server, folder, model)
        finally:
            server.end()


def measure_on(server: Server, folder: Path, model: Path) -> list[Row]:
    client = MlflowClient(server.address)
    reach = client.create_experiment("in reach", (folder / "reach").as_uri())
    through = client.create_experiment("through the server")
    put = f"{server.address}/api/2.0/mlflow-artifacts/artifacts/plain"
    sides = {
        "cp": lambda: subprocess.run(["cp", "-r", model, folder / "copy"], check=True),
        "reach": lambda: registered(client, reach, model),
        "put": lambda: [put_plain(file, f"{put}/{file.name}") for file in model.iterdir()],
        "through": lambda: registered(client, through, model),
    }
    times_s: dict[str, list[float]] = {name: [] for name in sides}
    for side in range(-1, ROUNDS):  # the first is to warm
        for name, call in sides.items():
            times_s[name] += [seconds(call)][: side + 1]
            for left in ("copy", "reach", "kept"):  # so that the disk has room
                shutil.rmtree(folder / left, ignore_errors=True)
    size = f"registering {MEGABYTES / 1000:g} GB"
    return [
        Row.of_runs(f"{size} in a folder in reach, against cp", "<= 2", times_s["reach"], times_s["cp"], "s"),
        Row.of_runs(f"{size} through the server, against PUT", "<= 1.3", times_s["through"], times_s["put"], "s"),
    ]


def seconds(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def registered(client: MlflowClient, experiment: str, model: Path) -> None:
    """By a run of its own, since a run registers the same files once."""
    run_id = client.create_run(experiment).info.run_id
    register(model, "aumn", run_id=run_id, uri=client.tracking_uri)


def put_plain(file: Path, url: str) -> None:
    with file.open("rb") as body:
        requests.put(url, data=body, timeout=300).raise_for_status()


if __name__ == "__main__":
    main(measure)
