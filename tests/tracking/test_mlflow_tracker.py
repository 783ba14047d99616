"""Runs in a real MLflow store."""

import os
import subprocess
import sys
import time

import pytest
from aumn.tracking.tracker import NullTracker, Tracker

from aumn.records import InputError
from aumn.tracking.history import attach
from tests.tracking.reading import read_history, read_run

# mlflow 3.17 with sqlalchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning")


def test_a_run_is_recorded(track):
    tracker: Tracker = track(experiment="thumos", run_name="first")
    tracker.log_config({"data": {"shards": "x"}, "model": {"units": 7, "dropout": None, "ratios": [1, 2]}, "seed": 0})
    tracker.set_tags({"host": "here"})
    tracker.set_tags({"host": "there"})
    tracker.finish("finished")
    run = read_run(tracker)
    assert run.data.params == {
        "data.shards": "x",
        "model.units": "7",
        "model.dropout": "null",
        "model.ratios": "[1, 2]",
        "seed": "0",
    }
    assert (run.info.run_name, run.info.status, run.data.tags["host"]) == ("first", "FINISHED", "there")


def test_more_settings_than_mlflow_takes_at_once_and_a_long_one(track):
    tracker = track()
    tracker.log_config({"section": {f"field_{index}": index for index in range(250)}, "long": "x" * 7000})
    tracker.finish("finished")
    params = read_run(tracker).data.params
    assert len(params) == 251
    assert params["section.field_249"] == "249"


def test_metrics_arrive_all_in_order_and_exactly(track):
    tracker = track()
    for step in range(700):
        tracker.log_metrics({"loss": 1 / (step + 1), "attention": -step}, step)
    tracker.finish("finished")
    assert read_history(tracker, "loss") == [(step, 1 / (step + 1)) for step in range(700)]
    assert read_history(tracker, "attention") == [(step, -step) for step in range(700)]


def test_one_step_may_have_more_metrics_than_mlflow_takes_at_once(track):
    tracker = track()
    tracker.log_metrics({f"ap/{index}": index / 7 for index in range(1500)}, 3)
    tracker.finish("finished")
    assert len(read_run(tracker).data.metrics) == 1500


def test_metrics_arrive_while_the_run_goes_on(track):
    tracker = track()
    tracker.log_metrics({"loss": 1.0}, 0)
    for _ in range(100):
        if history := read_history(tracker, "loss"):
            break
        time.sleep(0.1)
    assert history == [(0, 1.0)]
    tracker.finish("finished")


@pytest.mark.parametrize(
    ("outcome", "status"), [("finished", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")]
)
def test_how_a_run_ended(track, outcome, status):
    tracker = track()
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.finish(outcome)
    assert read_run(tracker).info.status == status
    assert read_history(tracker, "loss") == [(0, 1.0)]


def test_a_run_goes_on_from_a_checkpoint_without_gaps_or_doubles(track):
    tracker = track(run_name="long")
    for step in range(10):
        tracker.log_metrics({"loss": step, **({"mAP": step} if step % 4 == 0 else {})}, step)
        if step == 6:
            tracker.flush()
    tracker.finish("interrupted")
    resumed = track(run_id=tracker.run_id)  # from its checkpoint of step 5
    for step in range(5, 15):
        resumed.log_metrics({"loss": step, **({"mAP": step} if step % 4 == 0 else {})}, step)
    resumed.finish("finished")
    assert read_history(resumed, "loss") == [(step, step) for step in range(15)]
    assert read_history(resumed, "mAP") == [(step, step) for step in (0, 4, 8, 12)]
    assert read_run(resumed).info.run_name == "long"


def test_settings_changed_on_resuming_are_tags(track):
    tracker = track()
    tracker.log_config({"run": {"steps": 400, "seed": 1}})
    tracker.finish("interrupted")
    resumed = track(run_id=tracker.run_id)
    resumed.log_config({"run": {"steps": 800, "seed": 1, "device": "cpu"}})
    resumed.finish("finished")
    run = read_run(resumed)
    assert run.data.params == {"run.steps": "400", "run.seed": "1", "run.device": "cpu"}
    assert {name: value for name, value in run.data.tags.items() if name.startswith("resumed.")} == {
        "resumed.run.steps": "800"
    }


def test_artifacts_lie_beside_the_database(track, store, tmp_path):
    (tmp_path / "report.html").write_text("hello")
    tracker = track()
    attach(tracker.run_id, tmp_path / "report.html", "report", store)
    kept = tmp_path / "a store" / "mlartifacts" / tracker.run_id / "artifacts"
    assert (kept / "report" / "report.html").read_text() == "hello"


def test_two_trackers_at_once_do_not_meet(track):
    first, second = track(), track()
    first.log_metrics({"loss": 1.0}, 0)
    second.log_metrics({"loss": 2.0}, 0)
    first.finish("finished")
    second.finish("failed")
    assert (read_history(first, "loss"), read_history(second, "loss")) == ([(0, 1.0)], [(0, 2.0)])


def test_the_null_tracker_records_nothing(tmp_path):
    tracker: Tracker = NullTracker()
    tracker.log_config({"seed": 1})
    tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.register_model(tmp_path, "name", None) is None
    tracker.finish("finished")
    assert tracker.run_id is None


DEFAULT_STORE = """
import os, sys
from pathlib import Path
from aumn.tracking import registry
from aumn.tracking.history import attach
from aumn.tracking.mlflow_tracker import MlflowTracker
assert not {"mlflow", "torch"} & sys.modules.keys(), "imported before it is used"

tracker = MlflowTracker(spool=Path("run/undelivered.jsonl"))
address = tracker.uri
os.chdir("/")
tracker.log_metrics({"loss": 1.0}, 0)
attach(tracker.run_id, Path(sys.argv[1]), "code", address)
tracker.finish("finished")
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""


def test_the_default_store_is_quiet_and_private_and_leaves_two_names_beside_the_run(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DO_NOT", "CI"))}
    command = [sys.executable, "-c", DEFAULT_STORE, __file__]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert sorted(os.listdir(tmp_path)) == ["mlartifacts", "mlflow.db", "run"]
    assert not os.listdir(tmp_path / "run")


# Stores that cannot be used


def test_the_environment_names_the_store(track, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert track(None).uri == store
    assert track("").uri == store


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:./mlruns", "file:///data/mlruns/"])
def test_a_folder_is_no_store(uri, track):
    with pytest.raises(
        InputError, match=r"is a folder, which MLflow no longer writes: use a database in it, sqlite:///.*"
    ):
        track(uri)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:mlflow.db"])
def test_a_sqlite_store_needs_a_file(uri, track):
    with pytest.raises(InputError, match=r"names no file: write sqlite:///<folder>/mlflow.db"):
        track(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:1", r"refused: \[Errno 111\] Connection refused\. Start the server, or correct"),
        (
            "htp://127.0.0.1",
            "unsupported URI .* Correct tracking.uri or MLFLOW_TRACKING_URI, or use sqlite:///mlflow.db",
        ),
        ("sqlite:////proc/nowhere/mlflow.db", "No such file or directory.* name a file that MLflow can write"),
        ("mysql://me:secret@host/db", r"mysql://\*\*\*@host/db refused: No module named"),
    ],
)
def test_a_store_that_refuses(uri, reason, track, tmp_path):
    with pytest.raises(InputError, match=reason) as error:
        track(uri)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run*"))


def test_a_file_that_is_no_database(track, tmp_path):
    (tmp_path / "notes.db").write_text("buy milk " * 1000)
    with pytest.raises(
        InputError, match=r"notes.db refused: file is not a database\. Let tracking.uri or MLFLOW_TRACKING_URI name"
    ):
        track(f"sqlite:///{tmp_path / 'notes.db'}")


def test_a_run_of_another_store_cannot_go_on(track):
    with pytest.raises(InputError, match=r"has no run 0123456789abcdef to continue: set tracking.uri to the store"):
        track(run_id="0123456789abcdef")
