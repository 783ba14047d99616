"""Runs in a real MLflow store."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aumn.records import InputError
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.metrics import read_metrics
from aumn.tracking.job_run import attach
from aumn.tracking.mirror import push, push_rest, registered
from aumn.tracking.sent import Sent
from aumn.tracking.store import reason
from tests.tracking.conftest import save_card
from tests.tracking.runs import read_history, read_run


def test_a_run_is_mirrored(track, store):
    config = {"data": {"shards": "x"}, "model": {"units": 7, "dropout": None, "ratios": [1, 2]}, "seed": 0}
    run = track(experiment="thumos", run_name="first", config=config)
    run.note(facts={"host": "here"})
    run.note(facts={"host": "there"})
    run.end()
    found = read_run(run.path, store)
    assert {name: value for name, value in found.data.params.items() if not name.startswith("tracking.")} == {
        "data.shards": "x",
        "model.units": "7",
        "model.dropout": "null",
        "model.ratios": "[1, 2]",
        "seed": "0",
    }
    assert (found.info.run_name, found.info.status, found.data.tags["host"]) == ("first", "FINISHED", "there")
    assert found.info.end_time == run.status.ended_ms
    assert MlflowClient(store).get_experiment(found.info.experiment_id).name == "thumos"


def test_more_settings_than_mlflow_takes_at_once_and_a_long_one(track, store):
    config = {"section": {f"field_{index}": index for index in range(250)}, "long": "x" * 7000}
    params = read_run(track(config=config).end().path, store).data.params
    assert params["section.field_249"] == "249"
    assert params["long"] == "x" * 6000


def test_metrics_arrive_all_in_order_and_exactly(track, store):
    run = track()
    for step in range(700):
        run.log({"loss": 1 / (step + 1), "attention": -step}, step)
    run.log({f"ap/{index}": index / 7 for index in range(1500)}, 700)  # more than MLflow takes at once
    run.log({"loss": math.nan}, 701)
    run.end()
    *history, (step, value) = read_history(run.path, store, "loss")
    assert history == [(step, 1 / (step + 1)) for step in range(700)]
    assert (step, math.isnan(value)) == (701, True)
    assert read_history(run.path, store, "attention") == [(step, -step) for step in range(700)]
    assert len(read_run(run.path, store).data.metrics) == 1502


def test_metrics_arrive_while_the_run_goes_on(track, store):
    run = track()
    run.log({"loss": 1.0}, 0)
    for _ in range(100):
        if history := read_history(run.path, store, "loss"):
            break
        time.sleep(0.1)
    assert history == [(0, 1.0)]
    run.end()


@pytest.mark.parametrize(("state", "status"), [("failed", "FAILED"), ("stopped", "KILLED")])
def test_how_a_run_ended(track, store, state, status):
    assert read_run(track().end(state).path, store).info.status == status


def log_long_run(run, first: int, last: int, every: int = 1) -> None:
    for step in range(first, last, every):
        run.log({"loss": step, **({"mAP": step} if step % 4 == 0 else {})}, step)


def test_a_run_goes_on_from_a_checkpoint_without_gaps_or_doubles(track, store):
    run = track(run_name="long")
    log_long_run(run, 0, 10)
    run.end("stopped")
    resumed = track(run.path, resumed=True, keep=6)
    assert resumed.sent.run == run.sent.run
    log_long_run(resumed, 6, 15)
    resumed.mirror.publish()
    assert read_run(run.path, store).info.status == "RUNNING"
    resumed.end()
    assert read_history(run.path, store, "loss") == [(step, step) for step in range(15)]
    assert read_history(run.path, store, "mAP") == [(step, step) for step in (0, 4, 8, 12)]
    assert read_run(run.path, store).info.run_name == "long"


def test_a_run_that_logs_less_often_after_its_checkpoint_misses_nothing(track, store):
    """The file has as many lines as before it was cut back, and other steps in them."""
    run = track()
    log_long_run(run, 0, 10)
    run.end("stopped")
    resumed = track(run.path, resumed=True, keep=6)
    log_long_run(resumed, 6, 14, every=2)
    resumed.end()
    assert len(list(read_metrics(run.path))) == 10
    assert read_history(run.path, store, "loss") == [(step, step) for step in (*range(10), 10, 12)]


def test_settings_changed_on_resuming_are_tags(track, store):
    run = track(config={"run": {"steps": 400, "seed": 1}}).end("stopped")
    track(run.path, resumed=True, config={"run": {"steps": 800, "seed": 1, "device": "cpu"}}).end()
    found = read_run(run.path, store)
    params = {name: value for name, value in found.data.params.items() if name.startswith("run.")}
    assert params == {"run.steps": "400", "run.seed": "1", "run.device": "cpu"}
    assert {name: value for name, value in found.data.tags.items() if name.startswith("resumed.")} == {
        "resumed.run.steps": "800"
    }


def test_what_the_store_refuses_for_good_is_told_once_and_blocks_nothing_behind_it(track, store):
    said = []
    long = "section.".ljust(300, "x")
    run = track(config={long: 1, "seed": 2}, model_name="aumn", alias="x" * 300, say=said.append)
    save_card(run.path / "model")
    for step in range(30):
        run.log({"val (a)+50%": 0.5, "loss": step, "rate": 0.1}, step)
    run.note(facts={"host": "here", "a+b": "c"})
    assert run.publish(30) == "models:/aumn/1"
    run.log({"val (a)+50%": 0.6, "loss": 30, "rate": 0.1}, 30)
    run.end()
    found = read_run(run.path, store)
    assert read_history(run.path, store, "loss") == [(step, step) for step in range(31)]
    assert read_history(run.path, store, "rate") == [(step, 0.1) for step in range(31)]
    assert (found.info.status, found.data.params["seed"], found.data.tags["host"]) == ("FINISHED", "2", "here")
    aside = [f"param {long}", "tag a+b", "metric val (a)+50%", f"alias {'x' * 300}"]
    assert sorted(run.sent.refused) == sorted(aside)
    assert sorted(line.partition(" will be missing")[0] for line in said) == sorted(f"The {what}" for what in aside)
    assert push(run.path) is None


# Stores that are lost, and records of them


def assert_all_there(run, store, last_step: int = 20) -> None:
    assert read_history(run.path, store, "loss") == [(step, step) for step in range(last_step)]
    found = read_run(run.path, store)
    assert (found.info.status, found.data.params["seed"], found.data.tags["host"]) == ("FINISHED", "1", "here")
    assert found.info.start_time == run.status.started_ms
    assert registered(run.path, "aumn") == "models:/aumn/1"


@pytest.fixture
def finished(track):
    run = track(config={"seed": 1}, model_name="aumn")
    save_card(run.path / "model")
    for step in range(20):
        run.log({"loss": step}, step)
    run.note(facts={"host": "here"})
    run.publish(20)
    return run.end()


def test_another_store_gets_all_of_a_run(finished, blank_database, tmp_path):
    (tmp_path / "b").mkdir()
    other = f"sqlite:///{tmp_path / 'b' / 'mlflow.db'}"
    (tmp_path / "b" / "mlflow.db").write_bytes(blank_database.read_bytes())
    said = []
    delivered = push(finished.path, other, say=said.append)
    assert str(delivered) == "the metrics of steps 0 to 19, the model aumn and how the run ended"
    assert "has no run" in said[0]
    assert_all_there(finished, other)
    assert push(finished.path) is None


def test_a_finished_run_that_was_killed_before_all_was_sent_sends_the_rest_when_it_is_started_again(finished, store):
    (finished.path / "mirror.json").unlink()
    said = []
    push_rest(RunFolder(finished.path), said.append)
    assert said == []
    assert read_history(finished.path, store, "loss") == [(step, step) for step in range(20)]
    (finished.path / "mirror.json").unlink()
    Path(store.removeprefix("sqlite:///")).write_bytes(b"no database" * 100)
    push_rest(RunFolder(finished.path), said.append)
    assert said[0].endswith(f"The run itself is complete: aumn deliver {finished.path} sends the rest.")


def test_without_mirror_json_a_new_run_gets_all(finished, store):
    (finished.path / "mirror.json").unlink()
    assert "steps 0 to 19" in str(push(finished.path))
    assert read_history(finished.path, store, "loss") == [(step, step) for step in range(20)]
    assert registered(finished.path, "aumn") == "models:/aumn/2"  # of another run


def test_a_deleted_run_gets_nothing_until_it_is_restored(track, store, monkeypatch):
    monkeypatch.setattr("aumn.tracking.mirror.HASTY_END_S", 0.5)
    run = track()
    run.log({"loss": 1.0}, 0)
    run.mirror.publish()
    MlflowClient(store).delete_run(run.sent.run)
    run.log({"loss": 2.0}, 1)
    run.end("stopped")
    with pytest.raises(InputError, match=r"has deleted the run .*: restore it with `mlflow runs restore --run-id"):
        push(run.path)
    assert not run.sent.refused
    MlflowClient(store).restore_run(run.sent.run)
    assert str(push(run.path)) == "the metrics of step 1 and how the run ended"


def test_a_damaged_record_of_what_was_sent_is_told(finished):
    (finished.path / "mirror.json").write_text("{")
    with pytest.raises(
        InputError, match=r"mirror\.json is damaged or of another aumn .*: remove it, and a new MLflow run"
    ):
        push(finished.path)


def test_a_run_without_tracking_is_delivered_where_a_store_is_named(track, store):
    run = track(enabled=False)
    run.log({"loss": 1.0}, 0)
    run.end()
    (run.path / "mirror.json").unlink()
    assert push(run.path) is None
    assert str(push(run.path, store)) == "the metrics of step 0 and how the run ended"


# Runs of commit 0e01a02


def test_a_run_of_an_older_aumn_goes_on_in_its_mlflow_run(track, store, tmp_path):
    run_id = track().end().sent.run
    for file, facts in (("run.json", {"tracking_run": run_id}), ("checkpoints/step_00000004/trainer.json", {})):
        (tmp_path / "old" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / file).write_text(json.dumps(facts))
    run = track(tmp_path / "old", resumed=True)
    run.log({"loss": 1.0}, 5)
    run.end()
    assert run.sent.run == run_id
    assert read_history(run.path, store, "loss") == [(5, 1.0)]


def test_what_an_older_aumn_did_not_deliver_is_told(track, tmp_path):
    (tmp_path / "undelivered.jsonl").write_text('{"run": "0123", "store": "http://lab"}\n')
    with pytest.raises(InputError, match=r"undelivered\.jsonl was left by an older aumn.*: deliver it with that aumn"):
        push(tmp_path)
    with pytest.raises(InputError, match=r"or remove the file to go on without what it holds"):
        track(tmp_path, resumed=True)


# Folders


def test_artifacts_lie_beside_the_database(track, store, tmp_path):
    (tmp_path / "report.html").write_text("hello")
    run = track()
    attach(run.sent.run, tmp_path / "report.html", "report", store)
    kept = tmp_path / "a store" / "mlartifacts" / run.sent.run / "artifacts"
    assert (kept / "report" / "report.html").read_text() == "hello"
    run.end()


DEFAULT_STORE = """
import os, sys
from pathlib import Path
from aumn.tracking import registry
from aumn.tracking.job_run import attach
from aumn.tracking.mirror import Mirror
from aumn.tracking.sent import Sent
from aumn.tracking.settings import TrackingSettings
assert not {"mlflow", "torch"} & sys.modules.keys(), "imported before it is used"

run = Path(sys.argv[1]).absolute()
mirror = Mirror(run, TrackingSettings())
os.chdir("/")
mirror.wake()
sent = Sent.read(run)
attach(sent.run, Path(sys.argv[2]), "code", sent.store)
mirror.close(hasty=False)
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""


@pytest.mark.slow
def test_the_default_store_is_quiet_and_private_and_leaves_two_names_beside_the_runs_that_make_it_at_once(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DO_NOT", "CI"))}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DEFAULT_STORE, name, __file__],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "other")
    ]
    assert [(run.communicate(timeout=300)[0], run.returncode) for run in runs] == [("", 0)] * 2
    assert sorted(os.listdir(tmp_path)) == ["mlartifacts", "mlflow.db", "one", "other"]
    assert os.listdir(tmp_path / "one") == ["mirror.json"]


# Stores that cannot be used


def test_the_environment_names_the_store(track, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for uri in (None, ""):
        assert track(uri=uri).end().sent.store == store


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:./mlruns", "file:///data/mlruns/"])
def test_a_folder_is_no_store(uri, track):
    with pytest.raises(
        InputError, match=r"is a folder, which MLflow no longer writes: use a database in it, sqlite:///.*"
    ):
        track(uri=uri)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:mlflow.db"])
def test_a_sqlite_store_needs_a_file(uri, track):
    with pytest.raises(InputError, match=r"names no file: write sqlite:///<folder>/mlflow.db"):
        track(uri=uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:1", r"refused: \[Errno 111\] Connection refused\. Start the server, or correct"),
        (
            "htp://127.0.0.1",
            "unsupported URI .* Correct tracking.uri or MLFLOW_TRACKING_URI, or use sqlite:///mlflow.db",
        ),
        ("sqlite:////proc/nowhere/mlflow.db", "No such file or directory.* name a file that MLflow can write"),
        ("sqlite:////proc/self", "proc/self refused: unable to open database file. Let tracking.uri"),  # once 104 s
        ("mysql://me:secret@host/db", r"mysql://\*\*\*@host/db refused: No module named"),
        ("mysql://me:sec/ret@host/db", r"mysql://\*\*\*@host/db refused: No module named"),
        ("http://me:sec/ret@127.0.0.1:1", r"http://\*\*\*@127.0.0.1:1 is no address: write a password's / : @"),
        ("http://me:sec ret@127.0.0.1:1", r"http://\*\*\*@127.0.0.1:1 is no address: .* a space as %20"),
        ("http://me:secret@127.0.0.1:1", r"http://\*\*\*@127.0.0.1:1 refused: .*Connection refused"),
    ],
)
def test_a_store_that_refuses(uri, reason, track, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=reason) as error:
        track(uri=None)
    assert "sec" not in str(error.value).replace("seconds", "")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run*/m*"))


def test_a_file_that_is_no_database(track, tmp_path):
    (tmp_path / "notes.db").write_text("buy milk " * 1000)
    with pytest.raises(
        InputError, match=r"notes.db refused: file is not a database\. Let tracking.uri or MLFLOW_TRACKING_URI name"
    ):
        track(uri=f"sqlite:///{tmp_path / 'notes.db'}")


def test_a_folder_keeps_no_password(store, tmp_path, track):
    run = track(config={"note": "see http://me:secret@lab/x?token=secret"}).end()
    assert read_run(run.path, store).data.params["note"] == "see http://***@lab/x?***"
    Sent(run="0123", store="http://***@lab:5000").write(run.path)
    with pytest.raises(
        InputError, match=r"names the tracking store http://\*\*\*@lab:5000 and keeps no password of it"
    ):
        push(run.path)


def test_credentials_go_to_no_store_that_the_user_has_not_named(tmp_path, track, monkeypatch):
    run = track().end()
    Sent(run="0123", store="http://127.0.0.1:1").write(run.path)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    with pytest.raises(InputError, match=r"the environment's goes to no store that you have not named"):
        push(run.path)
    (run.path / "mirror.json").unlink()
    run.folder.write_config({"tracking": {"enabled": True, "uri": "http://127.0.0.1:1"}})
    with pytest.raises(InputError, match=r"names the tracking store http://127\.0\.0\.1:1 and keeps no password of it"):
        push(run.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="Connection refused"):
        push(run.path)


POOL = "HTTPConnectionPool(host='h', port=5000)"
ADVICE = (
    "To increase the timeout, set the environment variable MLFLOW_HTTP_REQUEST_TIMEOUT (current value: 30) to a larger"
)


@pytest.mark.parametrize(
    ("said", "heart"),
    [
        (f"failed with timeout exception {POOL}: Read timed out. (read timeout=30). {ADVICE}", "Read timed out."),
        (
            f'failed ({POOL}: Max retries (Caused by ReadTimeoutError("{POOL}: Read timed out."))). {ADVICE}',
            "Read timed",
        ),
    ],
)
def test_a_server_behind_a_cut_link_is_told_without_mlflows_advice(said, heart):
    told = reason(RuntimeError(said), "http://h:5000")
    assert heart in told
    assert "increase" not in told
    assert "larger" not in told
