"""A store that goes away, for a while or for good, under a run that goes on; test_server.py has a server that does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aumn.data.packing.packing import pack
from aumn.records import InputError
from aumn.synth import synthesize
from aumn.tracking.mirror import push
from aumn.tracking.registry import describe, show_model
from tests.answering import answer
from tests.launching import aumn, succeed
from tests.tracking.conftest import save_card
from tests.tracking.runs import TrackedRun, read_history, read_run

STEPS = 40


class Breakable:
    """A sqlite store that no longer can be written, as on a full or read-only disk, until it is mended."""

    def __init__(self, store: str) -> None:
        self._journal = Path(store.removeprefix("sqlite:///") + "-journal")

    def smash(self) -> None:
        self._journal.mkdir()  # where sqlite must put a file before it changes anything

    def mend(self) -> None:
        self._journal.rmdir()


@pytest.fixture
def breakable(store) -> Breakable:
    return Breakable(store)


def log_steps(run: TrackedRun, steps) -> float:
    """Log as training does, with a checkpoint every fifth step; the longest that a step took."""
    longest_s = 0.0
    for step in steps:
        start_s = time.perf_counter()
        run.log({"loss": 1 / (step + 1), "rate": 0.1}, step)
        if step % 5 == 0:
            run.metrics.sync()
        longest_s = max(longest_s, time.perf_counter() - start_s)
    return longest_s


def wait_until(condition, limit_s: float = 60) -> None:
    give_up_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_s, "waited in vain"
        time.sleep(0.05)


def assert_complete(run: TrackedRun, store: str, last_step: int = STEPS) -> None:
    assert read_history(run.path, store, "loss") == [(step, 1 / (step + 1)) for step in range(last_step)]
    assert read_history(run.path, store, "rate") == [(step, 0.1) for step in range(last_step)]


def test_for_good_the_end_says_what_is_missing_and_one_command_delivers_it(
    track, store, breakable, tmp_path, monkeypatch
):
    monkeypatch.setattr("aumn.tracking.mirror.END_GRACE_S", 1)
    said, folder = [], tmp_path / "run"
    run = track(folder, model_name="aumn", alias="champion", say=said.append)
    save_card(folder / "model")
    log_steps(run, range(10))
    wait_until(lambda: len(read_history(folder, store, "loss")) == 10)
    breakable.smash()
    run.folder.write_config({"seed": 1, **run.folder.config()})
    log_steps(run, range(10, STEPS))
    assert run.publish(STEPS) is None
    run.end()
    ended_ms = time.time() * 1000
    assert len(said) == 2, said
    assert said[1] == (
        f"Not delivered to the tracking store {store}: the metrics of steps 10 to 39, the model aumn and how the run "
        f"ended. They stay in {folder}; deliver them later with: aumn deliver {folder}"
    )

    with pytest.raises(InputError, match=r"The tracking store .* refused"):
        push(folder)
    breakable.mend()
    assert str(push(folder)) == "the metrics of steps 10 to 39, the model aumn and how the run ended"
    assert push(folder) is None
    assert_complete(run, store)
    found = read_run(folder, store)
    assert (found.info.status, found.data.params["seed"]) == ("FINISHED", "1")
    assert found.info.end_time < ended_ms
    (version,) = show_model("aumn", store)
    assert (version.aliases, version.run_id) == (["champion"], run.sent.run)


SETTINGS = """
data: {{shards: {folder}/shards, snippets: 8}}
model: {{embedding_width: 8, units: 3, bottleneck: 2}}
batch: {{global_videos: 4}}
run: {{folder: {folder}/run, steps: 6, log_every: 1, checkpoint_every: 2}}
tracking: {{uri: "{store}", model_name: tiny, alias: challenger}}
"""


@pytest.mark.slow
def test_training_resumed_without_its_store_ends_well_and_is_delivered_later(store, breakable, tmp_path):
    synthesize(tmp_path / "features", videos=9, seed=0, classes=2, units=5, width=6, mean_snippets=16)
    pack(tmp_path / "features", tmp_path / "shards", tmp_path / "features" / "gt.json", name="tiny", workers=1)
    config = tmp_path / "tiny.yaml"
    config.write_text(SETTINGS.format(folder=tmp_path, store=store))
    succeed(aumn("train", config, "run.steps=2", "tracking.model_name=null", "tracking.alias=null"))
    breakable.smash()
    said = succeed(aumn("train", config, "--resume")).stderr
    breakable.mend()
    assert said.count("Training goes on") == 1, said
    assert "registered" not in said
    assert f"metrics of steps 3 to 6, the model tiny and how the run ended. They stay in {tmp_path / 'run'}" in said
    *_, delivered = answer("deliver", tmp_path / "run")  # behind what MLflow logs in this process
    assert delivered.endswith(": delivered the metrics of steps 3 to 6, the model tiny and how the run ended.")
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("aumn").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert (run.info.status, run.data.tags["resumed.run.steps"]) == ("FINISHED", "6")
    assert describe("models:/tiny@challenger", store).config["run"]["steps"] == 6


KILLED = """
import os, sys
from pathlib import Path
from tests.tracking.runs import TrackedRun
store, folder, first, last = sys.argv[1:]
run = TrackedRun(Path(folder), uri=store, resumed=True, keep=int(first))
for step in range(int(first), int(last)):
    run.log({"loss": 1 / (step + 1), "rate": 0.1}, step)
run.metrics.sync()
os.kill(os.getpid(), 9)
"""


def run_until_killed(run: TrackedRun, store: str, first: int, last: int) -> None:
    command = [sys.executable, "-c", KILLED, store, run.path, str(first), str(last)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_killed_in_an_outage_and_resumed_in_it_and_after_it(track, store, breakable):
    run = track()
    log_steps(run, range(10))
    run.end("stopped")
    breakable.smash()
    run_until_killed(run, store, 5, 20)
    run_until_killed(run, store, 15, 30)
    breakable.mend()
    resumed = track(run.path, resumed=True, keep=25)
    log_steps(resumed, range(25, STEPS))
    resumed.end()
    assert_complete(resumed, store)
    assert read_run(run.path, store).info.status == "FINISHED"


def test_killed_between_sending_and_noting_it_sends_nothing_twice(track, store):
    run = track()
    before = run.sent
    log_steps(run, range(STEPS))
    run.end()
    before.write(run.path)
    assert "steps 0 to 39" in str(push(run.path))
    assert_complete(run, store)


def test_what_an_earlier_run_left_in_the_folder_is_delivered_to_it(track, store, breakable, monkeypatch):
    monkeypatch.setattr("aumn.tracking.mirror.HASTY_END_S", 0.5)
    earlier = track()
    breakable.smash()
    log_steps(earlier, range(STEPS))
    earlier.end("failed")
    with pytest.raises(InputError, match=r"holds what an earlier run could not deliver\. .* refused: .*or remove"):
        track(earlier.path)
    breakable.mend()
    earlier_id = earlier.sent.run
    run = track(earlier.path)
    run.log({"loss": 7.0}, 0)
    run.end()
    assert read_history(run.path, store, "loss") == [(0, 7.0)]
    client = MlflowClient(store)
    assert client.get_run(earlier_id).info.status == "FAILED"
    assert [metric.step for metric in client.get_metric_history(earlier_id, "loss")] == list(range(STEPS))


def test_two_processes_cannot_have_one_run(track, monkeypatch):
    monkeypatch.setattr("aumn.files.LOCK_WAIT_S", 0.2)
    run = track()
    with pytest.raises(InputError, match=r"is in use: another process trains this run or delivers its metrics"):
        track(run.path, resumed=True)
    with pytest.raises(InputError, match=r"is in use"):
        push(run.path)
    run.end()


def test_a_full_disk_stops_no_delivery(track, store, monkeypatch):
    """What was sent is then found out from the store again."""
    run = track()

    def refuse(_path):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as full:
        full.setattr("aumn.tracking.sent.whole_file", refuse)
        log_steps(run, range(STEPS))
        run.end()
    assert_complete(run, store)
    assert "steps 0 to 39" in str(push(run.path))
    assert_complete(run, store)


def test_damaged_metrics_are_told(track):
    run = track()
    run.log({"loss": 1.0}, 0)
    run.end()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("buy milk\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged in line 2: mend it, or remove the file"):
        push(run.path)


def test_only_a_folder_can_be_delivered_and_an_empty_one_is_done(tmp_path):
    with pytest.raises(InputError, match=r"nowhere is no folder: name the run\.folder of a training run"):
        push(tmp_path / "nowhere")
    assert push(tmp_path) is None
    assert not os.listdir(tmp_path)
