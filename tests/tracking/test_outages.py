"""A store that goes away, for a while or for good, under a tracker that goes on."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from aumn.tracking.delivery import deliver
from aumn.tracking.spool import NAME, Spool
from mlflow import MlflowClient

from aumn.data.packing.packing import pack
from aumn.records import InputError
from aumn.synth import synthesize
from aumn.tracking.registry import describe, show_model
from tests.launching import aumn, succeed
from tests.tracking.reading import read_history, read_run
from tests.tracking.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning")

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


def log_steps(tracker, steps) -> float:
    """Log as training does, with a checkpoint every fifth step; the longest that a step took."""
    longest_s = 0.0
    for step in steps:
        start_s = time.perf_counter()
        tracker.log_metrics({"loss": 1 / (step + 1), "rate": 0.1}, step)
        if step % 5 == 0:
            tracker.flush()
        longest_s = max(longest_s, time.perf_counter() - start_s)
    return longest_s


def wait_until(condition, limit_s: float = 60) -> None:
    give_up_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_s, "waited in vain"
        time.sleep(0.05)


def assert_complete(tracker, last_step: int = STEPS) -> None:
    assert read_history(tracker, "loss") == [(step, 1 / (step + 1)) for step in range(last_step)]
    assert read_history(tracker, "rate") == [(step, 0.1) for step in range(last_step)]


@pytest.mark.slow
def test_a_server_that_is_killed_or_hangs_stalls_no_step_and_misses_nothing(
    blank_database, track, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    server, said = Server(tmp_path, blank_database), []
    try:
        tracker = track(server.address, spool=tmp_path / "run" / NAME, say=said.append)
        log_steps(tracker, range(10))
        server.hang()
        assert log_steps(tracker, range(10, 20)) < 1
        wait_until(lambda: len(said) == 1)
        server.go_on()
        wait_until(lambda: len(said) == 2)
        server.kill()
        assert log_steps(tracker, range(20, 30)) < 1
        wait_until(lambda: len(said) == 3)
        server.start()
        wait_until(lambda: len(said) == 4)
        log_steps(tracker, range(30, STEPS))
        tracker.finish("finished")
        assert_complete(tracker)
        assert read_run(tracker).info.status == "FINISHED"
    finally:
        server.end()
    assert "timed out" in said[0]
    assert "Connection refused" in said[2]
    for gone, back in (said[:2], said[2:]):
        assert f"Training goes on; {tmp_path / 'run' / NAME} keeps its metrics until the store answers again" in gone
        assert "The tracking store is back after" in back
        assert "the metrics of step" in back
    assert not os.listdir(tmp_path / "run")


def test_for_good_the_end_says_what_is_missing_and_one_command_delivers_it(
    track, store, breakable, artifact, tmp_path, monkeypatch
):
    monkeypatch.setattr("aumn.tracking.mlflow_tracker.END_GRACE_S", 1)
    said = []
    tracker = track(run_name="unlucky", spool=artifact.parent / NAME, say=said.append)
    log_steps(tracker, range(10))
    wait_until(lambda: len(read_history(tracker, "loss")) == 10)
    breakable.smash()
    tracker.log_config({"seed": 1})
    log_steps(tracker, range(10, STEPS))
    assert tracker.register_model(artifact, "aumn", "champion") is None
    tracker.finish("finished")
    ended_ms = time.time() * 1000
    assert len(said) == 2, said
    assert (
        f"Not delivered to the tracking store {store}: the metrics of steps 10 to 39, the model aumn and how the "
        in (said[1])
    )
    assert f"It lies in {tmp_path / NAME}; deliver it later with: aumn deliver {tmp_path}" in said[1]

    with pytest.raises(InputError, match=r"The tracking store .* refused"):
        deliver(tmp_path)
    breakable.mend()
    assert str(deliver(tmp_path)) == "the metrics of steps 10 to 39, the model aumn and how the run ended"
    assert deliver(tmp_path) is None
    assert not (tmp_path / NAME).exists()
    assert_complete(tracker)
    run = read_run(tracker)
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "1")
    assert run.info.end_time < ended_ms
    (version,) = show_model("aumn", store)
    assert (version.aliases, version.run_id) == (("champion",), tracker.run_id)


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
    assert (
        f"metrics of steps 3 to 6, the model tiny and how the run ended. It lies in {tmp_path / 'run' / NAME}" in said
    )
    command = ("deliver", tmp_path / "run")
    assert (
        "delivered the metrics of steps 3 to 6, the model tiny and how the run ended" in succeed(aumn(*command)).stdout
    )
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("aumn").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert (run.info.status, run.data.tags["resumed.run.steps"]) == ("FINISHED", "6")
    assert describe("models:/tiny@challenger", store).config["run"]["steps"] == 6


KILLED = """
import os, sys
from pathlib import Path
from aumn.tracking.mlflow_tracker import MlflowTracker
store, spool, run_id, first, last = sys.argv[1:]
tracker = MlflowTracker(store, spool=Path(spool), run_id=run_id)
for step in range(int(first), int(last)):
    tracker.log_metrics({"loss": 1 / (step + 1), "rate": 0.1}, step)
tracker.flush()
os.kill(os.getpid(), 9)
"""


def run_until_killed(tracker, spool: Path, first: int, last: int) -> None:
    command = [sys.executable, "-c", KILLED, tracker.uri, spool, tracker.run_id, str(first), str(last)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_killed_in_an_outage_and_resumed_in_it_and_after_it(track, store, breakable, tmp_path):
    spool = tmp_path / "run" / NAME
    tracker = track(spool=spool)
    log_steps(tracker, range(10))
    tracker.finish("interrupted")
    breakable.smash()
    run_until_killed(tracker, spool, 5, 20)
    run_until_killed(tracker, spool, 15, 30)
    breakable.mend()
    resumed = track(run_id=tracker.run_id, spool=spool)
    log_steps(resumed, range(25, STEPS))
    resumed.finish("finished")
    assert_complete(resumed)
    assert read_run(resumed).info.status == "FINISHED"


def test_what_an_earlier_run_left_in_the_folder_is_delivered_to_it(track, store, breakable, tmp_path):
    spool = tmp_path / "run" / NAME
    earlier = track(spool=spool)
    breakable.smash()
    log_steps(earlier, range(STEPS))
    earlier.finish("failed")
    breakable.mend()
    tracker = track(spool=spool)
    tracker.log_metrics({"loss": 7.0}, 0)
    tracker.finish("finished")
    assert_complete(earlier)
    assert read_run(earlier).info.status == "FAILED"
    assert read_history(tracker, "loss") == [(0, 7.0)]


def test_two_processes_cannot_have_one_run(track, tmp_path, monkeypatch):
    monkeypatch.setattr("aumn.tracking.spool.LOCK_WAIT_S", 0.2)
    tracker = track(spool=tmp_path / "run" / NAME)
    with pytest.raises(InputError, match=r"undelivered\.jsonl is in use: another process trains this run or delivers"):
        track(spool=tmp_path / "run" / NAME, run_id=tracker.run_id)
    with pytest.raises(InputError, match=r"is in use"):
        deliver(tmp_path / "run")
    tracker.finish("finished")


# The spool


def open_spool(path: Path) -> Spool:
    spool = Spool(path)
    spool.address("0123", "http://lab")
    return spool


def test_a_spool_outlives_a_full_disk_and_a_cut_line(tmp_path):
    """The disk is a limit on a file's size, which ends a write half-way as a full disk does."""
    path, letters = tmp_path / NAME, [{"tags": {"host": "x" * 100}, "number": number} for number in range(6)]
    ignored, limits = signal.getsignal(signal.SIGXFSZ), resource.getrlimit(resource.RLIMIT_FSIZE)
    spool = open_spool(path)
    spool.append(letters[0])
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
        for letter in letters[1:5]:
            spool.append(letter)
        with pytest.raises(OSError, match=r"No space left|too large"):
            spool.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    spool.append(letters[5])
    spool.sync()
    spool._file.close()  # as a kill does
    with path.open("ab") as file:
        file.write(b'{"metrics": {"lo')
    found = open_spool(path)
    assert found.first(10) == letters
    found.drop(6)
    found.close()
    assert not path.exists()


def test_a_spool_writes_again_what_the_disk_lost_when_it_failed(tmp_path, monkeypatch):
    """As Linux does it: what could not be written back is dropped, told by one fsync, and the next one is well."""
    path, letters = tmp_path / NAME, [{"tags": {}, "number": number} for number in range(3)]
    spool = open_spool(path)
    spool.append(letters[0])
    spool.sync()
    spool.append(letters[1])

    def fail(_descriptor):
        path.write_bytes(bytes(path.stat().st_size))
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            spool.sync()
    spool.append(letters[2])
    spool.sync()
    spool._file.close()  # as a kill does
    found = Spool(path)
    assert (found.run, found.first(10)) == ("0123", letters)
    found.close()


def test_a_spool_opened_while_its_predecessor_ends_writes_to_the_file_that_is_there(tmp_path):
    ending = threading.Timer(0.5, Spool(tmp_path / NAME).close)
    ending.start()
    spool = open_spool(tmp_path / NAME)
    ending.join()
    spool.append({"tags": {"host": "here"}})
    spool.close()
    found = Spool(tmp_path / NAME)
    assert (found.run, found.first(10)) == ("0123", [{"tags": {"host": "here"}}])
    found.close()


def test_a_spool_that_may_not_be_removed_is_left_there_empty(tmp_path, monkeypatch):
    def refuse(path, missing_ok):
        raise PermissionError(13, os.strerror(13), str(path))

    spool = open_spool(tmp_path / NAME)
    spool.append({"tags": {}})
    spool.drop(1)
    monkeypatch.setattr(Path, "unlink", refuse)
    spool.close()
    assert (tmp_path / NAME).read_bytes() == b""


def test_a_damaged_spool_is_told(tmp_path):
    (tmp_path / NAME).write_text('{"run": "0123", "store": "http://lab"}\nbuy milk\n')
    with pytest.raises(InputError, match=r"undelivered\.jsonl is damaged in line 2: mend the line, or remove the file"):
        deliver(tmp_path)


def test_a_spool_holds_no_password(track, tmp_path):
    spool = Spool(tmp_path / NAME)
    spool.address("0123", "http://***@lab:5000")
    spool.append({"tags": {}})
    spool.close()
    with pytest.raises(InputError, match=r"does not keep the password of the tracking store http://\*\*\*@lab:5000"):
        deliver(tmp_path)


def test_only_a_folder_can_be_delivered_and_an_empty_one_is_done(tmp_path):
    with pytest.raises(InputError, match=r"nowhere is no folder: name the run\.folder of a training run"):
        deliver(tmp_path / "nowhere")
    assert deliver(tmp_path) is None
