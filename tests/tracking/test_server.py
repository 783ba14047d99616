"""Runs and models through a real MLflow server, which alone knows where files lie."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mlflow import MlflowClient

from aumn.checkpoint import read_model
from aumn.records import InputError
from aumn.tracking.promotion import promote
from aumn.tracking.registry import list_models, resolve, show_model
from tests.tracking.servers import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning"),
]


@pytest.fixture
def server(blank_database, tmp_path, monkeypatch):
    """The address of a server that holds all files itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = Server(tmp_path, blank_database)
    yield server.address
    server.end()


def test_a_server_holds_runs_and_models(server, track, artifact, tmp_path):
    tracker = track(server, experiment="remote")
    tracker.log_config({"seed": 1})
    tracker.log_metrics({"loss": 0.5}, 0)
    tracker.finish("interrupted")
    tracker = track(server, run_id=tracker.run_id)
    tracker.log_metrics({"loss": 0.7}, 0)
    tracker.log_metrics({"loss": 0.25}, 1)
    assert tracker.register_model(artifact, "aumn", "champion") == 1
    tracker.finish("finished")
    other = track(server)
    assert [other.register_model(artifact, "aumn", "champion") for _ in range(2)] == [2, 2]
    other.finish("finished")

    history = MlflowClient(server).get_metric_history(tracker.run_id, "loss")
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
