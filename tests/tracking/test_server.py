"""Runs and models through a real MLflow server, which alone knows where files lie."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aumn.checkpoint import read_model
from aumn.records import InputError
from aumn.tracking.mlflow_tracker import MlflowTracker
from aumn.tracking.registry import list_models, promote, resolve, show_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning"),
]

START_S = 120


@pytest.fixture
def server(blank_database, tmp_path, monkeypatch):
    """The address of a server that holds all files itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # halves the start
    database = tmp_path / "server.db"
    database.write_bytes(blank_database.read_bytes())
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    places = ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(tmp_path / "kept")]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", address.split(":")[1], *places], stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://{address}/health", process)
        yield f"http://{address}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(START_S):
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no answer from {address} in {START_S} s")


def test_a_server_holds_runs_and_models(server, artifact, tmp_path):
    tracker = MlflowTracker(server, experiment="remote")
    tracker.log_config({"seed": 1})
    tracker.log_metrics({"loss": 0.5}, 0)
    tracker.flush()
    tracker = MlflowTracker(server, run_id=tracker.run_id)
    tracker.log_metrics({"loss": 0.7}, 0)
    tracker.log_metrics({"loss": 0.25}, 1)
    assert [tracker.register_model(artifact, "aumn", "champion") for _ in range(2)] == [1, 2]
    tracker.finish("finished")

    history = tracker._client.get_metric_history(tracker.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (1, 0.25)]
    assert [(model.name, model.newest_version, model.aliases) for model in list_models(server)] == [
        ("aumn", 2, {"champion": 2})
    ]
    assert promote("aumn", 1, "champion", server) == 2
    assert [version.aliases for version in show_model("aumn", server)] == [(), ("champion",)]
    assert show_model("aumn", server)[0].tags["dataset"] == "spliced"

    with ThreadPoolExecutor(3) as ranks:  # they ask at once
        found = list(ranks.map(resolve, ["models:/aumn@champion"] * 3, [server] * 3))
    assert len(set(found)) == 1
    assert found[0].parent == tmp_path / "cache" / "aumn" / "models"
    assert os.listdir(found[0].parent) == [found[0].name]
    assert torch.equal(read_model(found[0])[0]["memory"], torch.arange(6.0).reshape(3, 2))
    with pytest.raises(InputError, match=r"Model aumn has no version 3; the versions are 2, 1"):
        resolve("models:/aumn/3", server)
