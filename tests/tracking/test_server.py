"""Runs and models through a real MLflow server, which alone knows where files lie."""

import base64
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from mlflow import MlflowClient

from aumn.inference.one_video import load_network, localize_video
from aumn.records import InputError
from aumn.runfolder.checkpoint import read_card, read_model, save_model
from aumn.tracking.mirror import push, registered
from aumn.tracking.promotion import compare, promote
from aumn.tracking.registry import resolve, show_model
from tests.answering import answer
from tests.tracking.conftest import add_version, aliases, save_card
from tests.tracking.runs import read_run
from tests.tracking.servers import Server
from tests.tracking.test_outages import STEPS, assert_complete, log_steps, wait_until
from tests.tracking.test_pyfunc import make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(blank_database, tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), blank_database)
    yield server
    server.end()


@pytest.fixture
def server(running, tmp_path, monkeypatch) -> str:
    """The address of a server that holds all files itself; they are cached anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return running.address


def test_a_server_holds_runs_and_models(server, track, artifact, tmp_path):
    run = track(tmp_path, server, experiment="remote", config={"seed": 1}, model_name="aumn", alias="champion")
    run.log({"loss": 0.5}, 0)
    run.end("stopped")
    resumed = track(tmp_path, server, resumed=True, model_name="aumn", alias="champion")
    resumed.log({"loss": 0.7}, 0)
    resumed.log({"loss": 0.25}, 1)
    assert resumed.publish() == "models:/aumn/1"
    resumed.end()
    other = track(uri=server)
    assert [add_version(artifact, other, "champion") for _ in range(2)] == [2, 2]
    other.end()

    history = MlflowClient(server).get_metric_history(run.sent.run, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (1, 0.25)]
    assert aliases(server, "aumn") == {"champion": 2}
    assert "aumn 2 champion: 2" in answer("models", "list", "--tracking-uri", server)
    done = promote("aumn", "1", "champion", server)
    assert (done.version, done.before) == (1, 2)
    newest, older = show_model("aumn", server)
    assert (newest.aliases, older.aliases, newest.tags["dataset"]) == ([], ["champion"], "spliced")

    with ThreadPoolExecutor(3) as ranks:  # they ask at once
        found = list(ranks.map(resolve, ["models:/aumn@champion"] * 3, [server] * 3))
    assert len(set(found)) == 1
    assert found[0].parent == tmp_path / "cache" / "aumn" / "models"
    assert os.listdir(found[0].parent) == [found[0].name]
    assert torch.equal(read_model(found[0])[0]["memory"], torch.arange(6.0).reshape(3, 2))
    assert not compare("models:/aumn/1", "models:/aumn@champion", server).settings
    with pytest.raises(InputError, match=r"Model aumn has no version 3; the versions are 2, 1"):
        resolve("models:/aumn/3", server)


def test_mlflow_loads_a_model_through_a_server(server, track, tmp_path, monkeypatch):
    import mlflow

    add_version(make_model(tmp_path), track(uri=server), "champion", name="aumn-whole")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    model = mlflow.pyfunc.load_model("models:/aumn-whole@champion")
    network, card = load_network(resolve("models:/aumn-whole@champion"))
    arrays = model.input_example
    frame = model.predict(arrays, params={"fps": 25.0})
    assert list(frame.score) == list(localize_video(network, card, arrays, fps=25.0).score_N)


def test_a_folder_in_reach_that_a_server_names_gets_a_models_files_itself(server, track, artifact, tmp_path):
    """As with `mlflow server --default-artifact-root FOLDER`: nothing goes through the server."""
    MlflowClient(server).create_experiment("in reach", (tmp_path / "kept").as_uri())
    add_version(artifact, track(uri=server, experiment="in reach"), name="in-reach")
    found = resolve("models:/in-reach/1", server)
    assert found.is_relative_to(tmp_path / "kept")
    weights = "model.safetensors"
    assert (found / weights).read_bytes() == (artifact / weights).read_bytes()
    assert not (found / weights).samefile(artifact / weights)


class Refusing(BaseHTTPRequestHandler):
    """Answers nobody, and remembers who asked."""

    def do_GET(self) -> None:
        self.server.seen.append(self.headers["Authorization"])
        self.send_error(401, "Unauthorized")

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize("where", ["the environment", "the address"])
def test_credentials_reach_the_server_and_nobody_else(where, track, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        if where == "the address":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@{host}")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}")
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
        with pytest.raises(InputError, match=r"The tracking store http://.* refused: .*401") as error:
            track(uri=None)
        server.shutdown()
    assert set(server.seen) == {"Basic " + base64.b64encode(b"me:s3cret").decode()}
    assert "s3cret" not in str(error.value)


def test_a_server_that_is_killed_or_hangs_stalls_no_step_and_misses_nothing(running, track, tmp_path, monkeypatch):
    """It is killed while it takes a large model, too, which has no version before all of it is there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    said = []
    run = track(tmp_path / "run", uri=running.address, say=said.append)
    log_steps(run, range(10))
    running.hang()
    assert log_steps(run, range(10, 20)) < 1
    wait_until(lambda: len(said) == 1)
    running.go_on()
    wait_until(lambda: len(said) == 2)
    weights = {"memory": torch.arange(20e6)}
    other = track(tmp_path / "other", uri=running.address, experiment="large", model_name="large", say=print)
    save_model(other.path / "model", weights, read_card(save_card(tmp_path / "card")))
    other.note(published_step=1)
    wait_until(lambda: [*running.kept.rglob(".artifact.uploading.*")])
    running.kill()
    assert log_steps(run, range(20, 30)) < 1
    wait_until(lambda: len(said) == 3)
    monkeypatch.setattr("aumn.tracking.mirror.END_GRACE_S", 0)
    other.end()
    assert registered(other.path, "large") is None
    running.start()
    wait_until(lambda: len(said) == 4)
    log_steps(run, range(30, STEPS))
    run.end()
    assert_complete(run, running.address)
    assert read_run(run.path, running.address).info.status == "FINISHED"
    assert "timed out" in said[0]
    assert "Connection refused" in said[2]
    for gone, back in (said[:2], said[2:]):
        assert f"Training goes on; {tmp_path / 'run'} keeps its metrics until the store answers again" in gone
        assert "The tracking store is back after" in back
        assert "the metrics of step" in back
    assert push(run.path) is None
    client = MlflowClient(running.address)
    assert not client.search_registered_models("name = 'large'")
    assert str(push(other.path)) == "the model large and how the run ended"
    assert torch.equal(read_model(resolve("models:/large/1", running.address))[0]["memory"], weights["memory"])
    assert len(client.search_logged_models([client.get_experiment_by_name("large").experiment_id])) == 1
