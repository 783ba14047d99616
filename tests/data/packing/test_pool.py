"""Worker processes: results in any order, errors with their place, and nobody left behind."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from aumn.data.packing.pool import run_in_processes
from aumn.records import InputError


def task(value: int, how: str = "") -> object:
    if how == "sleep":
        time.sleep(60)
    if how == "raise":
        raise InputError(f"value {value} cannot be used.")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """A worker finds `task` by its module's name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_every_call_is_made_once(workers):
    calls = [(value,) for value in range(7)]
    assert sorted(run_in_processes(task, calls, workers)) == [0, 1, 4, 9, 16, 25, 36]
    assert list(run_in_processes(task, [], workers)) == []


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("raise", InputError, r"value 3 cannot be used\."),
        ("die", InputError, r"A worker process was killed, .* fewer --workers; what is finished is kept"),
    ],
)
def test_what_a_call_raises_is_raised_and_ends_all(how, error, said):
    with pytest.raises(error, match=said) as raised:
        list(run_in_processes(task, [(1, "sleep"), (3, how), (4,)], 2))
    assert not multiprocessing.active_children()
    if how == "raise":
        assert "in task\n" in raised.value.__notes__[0]  # where in the worker


def test_who_wants_no_more_results_leaves_no_worker():
    results = run_in_processes(task, [(2,), (1, "sleep"), (1, "sleep")], 2)
    assert next(results) == 4
    results.close()
    assert not multiprocessing.active_children()


def test_an_interruption_while_workers_start_kills_those_that_have(monkeypatch):
    start, started = multiprocessing.process.BaseProcess.start, []

    def interrupted(process):
        if started:
            raise KeyboardInterrupt
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_in_processes(task, [(1,), (2,)], 2))
    assert not started[0].is_alive()
