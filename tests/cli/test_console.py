"""What a command says: plain lines where nobody watches a terminal, and its last sentence, from one rank alone."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from aumn import cli
from aumn.cli import console, explain
from aumn.records import InputError
from aumn.runtime import preemption
from aumn.runtime.ending import as_told
from aumn.runtime.preemption import stopped
from tests.launching import QUIET, aumn


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def test_lines_tell_rate_and_time_left_every_ten_seconds_and_at_the_end(clock, capsys):
    with console.progress("packing", "videos") as advance:
        clock[0] += 50  # imports, before the first report
        for done in range(0, 5001, 250):
            advance(done, 5000)
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [
        "packing: 0/5,000 videos, 0.0/s",
        "packing: 2,500/5,000 videos, 250.0/s, 10 s left",
        "packing: 5,000/5,000 videos, 250.0/s",
    ]


def test_other_ranks_are_silent(capsys):
    with console.progress("packing", "videos", silent=True) as advance:
        advance(5, 5)
    assert capsys.readouterr().err == ""


def test_a_reason_is_one_sentence_of_the_rank_that_tells_it():
    found = InputError("The shard is damaged.")
    assert [explain(found, rank) for rank in (0, 1)] == [(2, "The shard is damaged."), (2, None)]
    found.teller = 1
    assert [explain(found, rank) for rank in (0, 1)] == [(2, None), (2, "The shard is damaged.")]
    full = OSError(28, "No space left on device", "out.json")
    told = "out.json: No space left on device. Check the path, its permissions and the free space."
    assert explain(as_told(full), 0) == (2, told)
    assert explain(stopped(15), 0)[0] == 75


def test_what_a_library_made_of_a_signal_is_the_signal(monkeypatch):
    """Here pyarrow tries again to import pandas, whatever was raised in its first try, and then pandas fails."""
    error = ValueError("Option 'io.hdf.dropna_table' has already been registered")
    assert as_told(error) is None
    for name, value in {"signal": 15, "raised": True}.items():
        monkeypatch.setattr(preemption._request, name, value)
    assert explain(as_told(error), 0)[0] == 75


def test_a_reason_is_told_by_its_rank_whoever_started_the_ranks(monkeypatch, capsys):
    """A script that sets RANK and WORLD_SIZE, say, rather than torchrun or srun."""
    found = InputError("The shard is damaged.")
    found.teller = 1
    monkeypatch.setattr(cli, "app", partial(raise_, found))
    monkeypatch.setattr(preemption, "request_exit", lambda: None)
    for rank, said in [("0", ""), ("1", "aumn: The shard is damaged.\n")]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert (cli._run([]), capsys.readouterr().err) == (2, said)


def raise_(error: BaseException, **_options: object) -> None:
    raise error


@pytest.mark.parametrize(
    "left_over", [{"RANK": "1"}, {"RANK": "word", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2"}], ids=str
)
def test_what_a_launcher_left_in_the_environment_silences_no_error(left_over, tmp_path):
    ended = aumn("train", "nope.yaml", cwd=tmp_path, **left_over)
    assert ended.returncode == 2
    assert ended.stderr.startswith("aumn: nope.yaml does not exist")


@pytest.mark.parametrize(
    ("stdout", "code", "said"),
    [
        ("closed", 0, ""),
        ("a pipe that nobody reads", 1, ""),
        ("/dev/full", 2, "aumn: The output: No space left on device. Check the path, its permissions and the free"),
    ],
)
def test_output_that_nobody_takes_is_no_traceback(stdout, code, said, tmp_path):
    video = {"subset": "testing", "duration": 9, "annotations": [{"label": "a", "segment": [1, 2]}]}
    (tmp_path / "gt.json").write_text(json.dumps({"database": {"v": video}}))
    (tmp_path / "found.json").write_text(
        json.dumps({"results": {"v": [{"label": "a", "score": 1, "segment": [1, 2]}]}})
    )
    command = [sys.executable, "-m", "aumn", "evaluate", "found.json", "--annotations", "gt.json", "--tiou", "0.5"]
    kept = {"cwd": tmp_path, "env": os.environ | QUIET, "stderr": subprocess.PIPE, "text": True, "timeout": 60}
    if stdout == "closed":
        ended = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], check=False, **kept)
    elif stdout.startswith("/"):
        with Path(stdout).open("w") as full:
            ended = subprocess.run(command, stdout=full, check=False, **kept)
    else:
        read, write = os.pipe()
        os.close(read)
        ended = subprocess.run(command, stdout=write, check=False, **kept)
        os.close(write)
    assert (ended.returncode, ended.stderr[: len(said)] if said else ended.stderr) == (code, said)


def test_a_line_is_written_whole_beside_those_of_other_threads(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: None))
    console.say("step 1")
    assert [text for text in written if text] == ["step 1\n"]
