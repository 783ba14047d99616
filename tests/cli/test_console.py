"""What a command says: plain lines where nobody watches a terminal, and its last sentence, from one rank alone."""

import pytest

from aumn.cli import console, explain
from aumn.records import InputError
from aumn.runtime.preemption import stopped
from tests.launching import aumn


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
    assert explain(full, 0) == (2, told)
    assert explain(stopped(15), 0)[0] == 75


@pytest.mark.parametrize(
    "left_over", [{"RANK": "1"}, {"RANK": "word", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2"}], ids=str
)
def test_what_a_launcher_left_in_the_environment_silences_no_error(left_over, tmp_path):
    ended = aumn("train", "nope.yaml", cwd=tmp_path, **left_over)
    assert ended.returncode == 2
    assert ended.stderr.startswith("aumn: nope.yaml does not exist")
