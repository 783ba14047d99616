"""Plain lines where nobody watches a terminal, and nothing from ranks that are not the first."""

import pytest

from aumn.cli import console


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
