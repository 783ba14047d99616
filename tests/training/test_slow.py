"""Which rank is slow: what is said of made-up readings, and of ranks that are held up on purpose."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aumn.jobs.scaling import write_report
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.metrics import read_curves
from aumn.runfolder.saving import RunWriter
from aumn.runtime.own_time import OwnTime
from aumn.training.slow import Place, SlowRanks, place_of
from tests.launching import succeed, together
from tests.tiny import Tiny

HELD_UP = Path(__file__).with_name("slow_ranks.py")
EVEN, TWICE = (1.0, 1.0, 1.0), (1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ([(10, EVEN)] * 20, []),
        ([(10, EVEN), *[(10, TWICE)] * 4], []),  # 40 steps
        ([(10, EVEN), *[(10, TWICE)] * 5], ["Slow for 50 steps: rank 2 on n3 (GPU 2) takes 2.0 times as long, "]),
        ([(10, EVEN), *[(10, TWICE)] * 20], ["Slow for 50 steps: rank 2 on n3 (GPU 2) takes 2.0 times as long, "]),
        ([(10, TWICE), *[(10, EVEN)] * 4, *[(10, TWICE)] * 4, (10, EVEN), *[(10, TWICE)] * 4], []),
        ([(10, EVEN), *[(10, (1.0, 1.0, 1.29))] * 20], []),
        ([(100, EVEN), (100, (30.0, 1.0, 1.0)), (100, EVEN)], []),  # a hiccup
        ([(100, EVEN), (100, (1.4, 1.0, 1.0)), (100, (1.2, 0.8, 0.8))], ["Slow for 200 steps: rank 0 on n1 (GPU 0) "]),
        ([(10, EVEN), *[(10, (0.002, 0.001, 0.001))] * 20], []),  # twice a tenth of a millisecond a step
        ([(10, (1.0, 1.0)), *[(10, (1.0, 3.0))] * 6], ["Slow for 50 steps: rank 1 on n2 (GPU 1) takes 3.0 times "]),
        (
            [(10, EVEN), *[(10, TWICE)] * 6, *[(10, EVEN)] * 6],
            ["Slow for 50 steps: rank 2 ", "No longer slow: rank 2 on n3 (GPU 2)."],
        ),
        (
            [(10, (1.0,) * 9)] + [(10, (1.0,) * 5 + (1.5, 4.0, 2.0, 3.0))] * 5,
            ["Slow for 50 steps: rank 6 .* 4.0 times as long, rank 8 .* 3.0 .*, rank 7 .* 2.0 .* and 1 more, against"],
        ),
    ],
)
def test_a_rank_is_named_once_when_it_begins_to_be_slow_and_once_when_that_is_over(readings, said):
    found = []
    ranks = SlowRanks([Place(rank, f"n{rank + 1}", f"GPU {rank}") for rank in range(9)], found.append, None)
    for steps, own_s in readings:
        ranks.add(steps, own_s)
    assert len(found) == len(said)
    for line, pattern in zip(found, said, strict=True):
        assert re.match(pattern.replace("(", r"\(").replace(")", r"\)"), line), line


def test_the_folder_says_what_is_slow_now_and_the_jobs_file_what_ever_was(tmp_path, monkeypatch):
    bad = tmp_path / "bad_nodes"
    monkeypatch.setenv("AUMN_BAD_NODES", str(bad))
    writer, folder = RunWriter(tmp_path, 1, print), RunFolder(tmp_path)
    ranks = SlowRanks([Place(rank, f"n{1 + rank // 2}") for rank in range(4)], print, writer)
    other = SlowRanks([Place(rank, f"n{1 + rank // 2}") for rank in range(4)], print, None)  # not the first rank's
    for _ in range(6):
        other.add(10, (1.0, 1.0, 2.0, 1.5))
        numbers = ranks.add(10, (1.0, 1.0, 2.0, 1.5))
    assert numbers == {"own_s": 0.1, "slowest_own_s": 0.2, "slowest_rank": 2}
    assert folder.status().slow == {"n2": 2.0}
    assert folder.status().facts["slow_ranks"] == (
        "rank 2 on n2 takes 2.0 times as long, rank 3 on n2 takes 1.5 times as long"
    )
    for _ in range(6):
        ranks.add(10, (1.0, 1.0, 1.0, 1.0))
    assert (folder.status().slow, folder.status().facts["slow_ranks"]) == ({}, "")
    assert re.fullmatch(r"n2 \d{10} slow, 2\.0 times the median\n", bad.read_text())
    writer.close()


def test_a_place_is_slurms_node_and_the_gpu_that_the_rank_was_given(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "H200")
    assert str(place_of(9, 1, torch.device("cuda", 1))) == "rank 9 on gpu07 (GPU 6, H200)"
    assert str(place_of(9, 1, torch.device("cpu"))) == "rank 9 on gpu07"


def test_on_cuda_events_take_the_time_and_those_to_come_are_not_waited_for(monkeypatch):
    clock_ms = iter(range(0, 1000, 100))

    class Event:
        done = False

        def __init__(self, enable_timing):
            assert enable_timing

        def query(self):
            return Event.done

        def elapsed_time(self, end):
            return end.at_ms - self.at_ms

    def record_event(event):
        event.at_ms = next(clock_ms)
        return event

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(record_event=record_event))
    own = OwnTime(torch.device("cuda", 0))
    for _ in range(2):
        own.begin()
        own.end()
        own.end()  # a step's later sums
    assert own.read() == 0.0
    Event.done = True
    assert (own.read(), own.read()) == (0.2, 0.2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs on one rank, on three alike, and on three of which the second is held up; what they printed."""
    tiny, said = Tiny(tmp_path_factory.mktemp("tiny")), {}
    options = ("run.steps=66", "run.log_every=6", "evaluation.videos=null")
    for name, seconds in {"alone": "0.01", "alike": "0.01,0.01,0.01", "slow": "0.01,0.08,0.01"}.items():
        _, _, *arguments = tiny.command(name, *options)
        ranks = len(seconds.split(","))
        said[name] = succeed(together(ranks, HELD_UP, seconds, *arguments, cwd=tiny.root)).stderr
    return tiny, said


def test_the_rank_that_is_held_up_is_named_with_its_node_and_without_it_nobody(trained):
    tiny, said = trained
    (line,) = [line for line in said["slow"].splitlines() if "Slow for" in line]
    assert re.search(r"Slow for 54 steps: rank 1 on n2 takes [2-9]\.\d times as long, against", line), line
    status, curves = RunFolder(tiny.root / "slow").status(), read_curves(tiny.root / "slow")
    assert list(status.slow) == ["n2"]
    assert 1.3 <= status.slow["n2"] < 10
    assert status.facts["slow_ranks"].startswith("rank 1 on n2 takes ")
    assert curves["slowest_rank"].keys() == curves["loss"].keys(), "else a run that goes on would lack some"
    assert set(curves["slowest_rank"].values()) == {1}
    assert (
        min(curves["slowest_own_s"].values()) >= 0.06
    )  # the first reading has the step that begins it in the next one
    assert "Slow for" not in said["alike"] + said["alone"]
    assert RunFolder(tiny.root / "alike").status().slow == {}
    assert tiny.model("slow") == tiny.model("alike")


def test_the_scaling_table_names_the_slow_ranks_of_its_runs(trained, tmp_path):
    tiny, _ = trained
    runs = {name: tiny.root / name for name in ("alone", "slow", "alike")}
    table = write_report(runs, tmp_path / "out", "the job x").read_text()
    assert "Slow ranks made these runs slower than their nodes can be: slow (rank 1 on n2 takes " in table
    assert "alike (" not in table
