"""Ranks end together, however long the first one works alone, and however it ends."""

import re
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from aumn.runtime import ending
from aumn.runtime.ranks import Ranks
from tests.launching import torchrun
from tests.running import Running, start

PROGRAM = """
import sys, time
from aumn.runtime.preemption import leave, listen
from aumn.runtime.ranks import connect
from aumn.records import InputError, Stopped
listen()  # torchrun signals the other ranks as soon as one has left
def end(ranks, how):
    if how == "disk" and ranks.rank == 1:
        raise OSError(28, "No space left on device", "part-00001")
    if how == "disk" or not ranks.is_first:
        return ranks.gather(0) if how == "disk" else None
    time.sleep(4)
    if how == "error":
        raise InputError("The model cannot be published.")
    print("published", flush=True)
try:
    with connect(timeout_s=2) as ranks:
        ranks.barrier()
        end(ranks, sys.argv[1])
except (InputError, Stopped) as error:
    print(error if error.teller == ranks.rank else "silent", flush=True)
    leave(error.code)
print("left", flush=True)
leave()
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("well", 0, ["published", "left", "left"]),
        ("error", 1, ["The model cannot be published.", "silent"]),
    ],
)
def test_the_others_wait_for_the_first_rank_beyond_the_timeout(tmp_path, how, code, said):
    ended = run(tmp_path, how)
    assert ended.returncode == code, ended.stderr
    assert sorted(ended.stdout.split("\n")) == sorted([*said, ""])
    assert ended.stdout.startswith(said[0]) or how == "error"


def test_an_error_of_the_system_on_one_rank_is_told_once_and_ends_the_others_without_a_traceback(tmp_path):
    ended = run(tmp_path, "disk")
    told = "part-00001: No space left on device. Check the path, its permissions and the free space."
    assert sorted(ended.stdout.split("\n")) == ["", told, "silent"], ended.stderr
    assert "[rank0]: Traceback" not in ended.stderr


def run(folder, how):
    (folder / "program.py").write_text(PROGRAM)
    return torchrun(2, folder / "program.py", how, timeout_s=250)


ALONE = """
import os, time
from itertools import count
from aumn.runtime import ending, patience, preemption
from aumn.runtime.ranks import connect
from aumn.records import Stopped
preemption.listen()
wait, ending.POLL_S, ending.ANSWER_S, ending.HEAR_S = ending.Ending.wait_for_all, 0.02, 1, 1
patience.LEAST_S, preemption.STUCK_S = float(os.environ["LEAST_S"]), 1
def tell_and_wait(own, seconds):
    print('waits', flush=True)
    wait(own, seconds)
ending.Ending.wait_for_all = tell_and_wait
try:
    with connect() as ranks:
        own = patience.Patience(ranks, start_s=600)
        with preemption.finish_first():
            for step in count(1):
                with own.step(step):
                    asked = ranks.ask(preemption.asked)()
                print('step', step, flush=True)
                if asked:
                    raise preemption.stopped(asked, 'saved')
                time.sleep(0.1)
except Stopped as stop:
    print(stop if stop.teller == int(os.environ['RANK']) else 'silent', flush=True)
    preemption.leave(stop.code)
"""


@contextmanager
def ranks_alone(size, least_s=2, started=2):
    """Ranks without torchrun, which would end the others, and keep the store for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LEAST_S": str(least_s)}
    with ExitStack() as stack:
        ranks: list[Running] = [
            stack.enter_context(start("-W", "ignore", "-c", ALONE, RANK=str(rank), **variables))
            for rank in range(started)
        ]
        for rank in ranks:
            rank.wait_for("waits")
        yield ranks


@pytest.mark.parametrize("asked", [0, 1])
def test_a_rank_that_is_asked_to_stop_while_others_still_start_takes_those_that_wait_along(asked):
    """The third rank is never started."""
    with ranks_alone(3) as ranks:
        time.sleep(0.5)
        ranks[asked].kill(signal.SIGTERM)
        begin_s = time.monotonic()
        ended = [rank.finish(timeout_s=30) for rank in ranks]
        assert time.monotonic() - begin_s < 20
    assert [process.returncode for process in ended] == [75, 75], [process.stderr for process in ended]
    assert "Stopped by SIGTERM: nothing is half-written" in ended[asked].stderr
    assert "silent" in ended[1 - asked].stderr


def ask_while_the_first_is_held(ranks, number):
    """Let the second one wait in a step, and hear a signal there."""
    ranks[1].wait_for("step 6")
    ranks[0].kill(signal.SIGSTOP)
    time.sleep(0.3)
    ranks[1].kill(number)


def test_ranks_that_wait_for_one_that_hangs_end_together_with_one_sentence():
    """The first serves the store; each of the two finds the other one's end behind its own limit."""
    with ranks_alone(3, started=3) as ranks:
        ranks[0].wait_for("step 6")
        ranks[2].kill(signal.SIGSTOP)
        ended = [rank.finish(timeout_s=60) for rank in ranks[:2]]
    assert [rank.returncode for rank in ended] == [75, 75], [rank.stderr for rank in ended]
    assert sum(len(re.findall(r"Step \d+: another rank has not answered", rank.stderr)) for rank in ended) == 1
    assert not any("Traceback" in rank.stderr for rank in ended)


def test_a_rank_that_is_cut_off_from_the_others_and_their_store_ends_within_bounds():
    """The first rank serves the store and answers nothing any more, neither that it lives nor that it has ended."""
    with ranks_alone(2) as ranks:
        ranks[1].wait_for("step 5")
        ranks[0].kill(signal.SIGSTOP)
        begin_s = time.monotonic()
        alone = ranks[1].finish(timeout_s=60)
        assert time.monotonic() - begin_s < 20  # the step's 2 s, the store's 1 s, and a busy machine
        ranks[0].kill(signal.SIGCONT)
        first = ranks[0].finish(timeout_s=60)
    for ended in (alone, first):
        assert ended.returncode == 75, ended.stderr
        assert "Traceback" not in ended.stderr
    assert re.search(
        r"Step \d+: another rank has not answered for [\d.]+ s \(10 times the slowest step so far, [\d.]+ s, 2 s at "
        r"least; run.step_timeout_s sets another\). It hangs, or the link to it is cut; run the same command again",
        alone.stderr,
    )
    assert "silent" in first.stderr  # its store has heard the other one's reason


def test_a_rank_that_is_asked_to_stop_in_a_step_whose_others_are_lost_does_not_wait_until_it_is_killed():
    with ranks_alone(2, least_s=600) as ranks:
        ask_while_the_first_is_held(ranks, signal.SIGTERM)
        begin_s = time.monotonic()
        ended = ranks[1].finish(timeout_s=60)
        assert time.monotonic() - begin_s < 20  # ten steps, or the second of a call that nothing interrupts
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.count("Stopped by SIGTERM: nothing is half-written; run the same command again") == 1


def test_a_rank_that_is_asked_to_stop_with_time_to_spare_waits_for_one_that_is_late():
    """SIGUSR1 comes a minute or two before the end: steps are not lost for the hiccup of a disk."""
    with ranks_alone(2, least_s=600) as ranks:
        ask_while_the_first_is_held(ranks, signal.SIGUSR1)
        time.sleep(3)  # the second that SIGTERM would leave, and ten steps
        ranks[0].kill(signal.SIGCONT)
        ended = [rank.finish(timeout_s=60) for rank in ranks]
    assert [rank.returncode for rank in ended] == [75, 75]
    assert sum(rank.stderr.count("Stopped by SIGUSR1: saved") for rank in ended) == 1


def test_a_rank_that_asks_for_a_common_number_behind_a_cut_ends(monkeypatch):
    """As one whose data are late does, ten times a second; torch's call has no limit."""
    monkeypatch.setattr(ending, "ANSWER_S", 0.1)
    answered = threading.Event()
    ranks = Ranks(1, 2, store=SimpleNamespace(add=lambda _name, _number: answered.wait(3)))
    with pytest.raises(ending.StoreGoneError) as gone:
        ranks.count("no_data", 0)
    answered.set()
    assert ending.as_told(gone.value).code == 1
