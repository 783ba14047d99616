"""Ranks end together, however long the first one works alone, and however it ends."""

import signal
import socket
import time
from contextlib import ExitStack

import pytest

from tests.launching import torchrun
from tests.running import Running, start

PROGRAM = """
import sys, time
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import connect
from aumn.records import InputError
try:
    with connect(timeout_s=2) as ranks:
        ranks.barrier()
        if ranks.is_first:
            time.sleep(4)
            if sys.argv[1] == "error":
                raise InputError("The model cannot be published.")
            print("published", flush=True)
except InputError as error:
    print("silent" if error.told_by_another_rank else error, flush=True)
    leave(2)
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
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = torchrun(2, tmp_path / "program.py", how, timeout_s=250)
    assert ended.returncode == code, ended.stderr
    assert sorted(ended.stdout.split("\n")) == sorted([*said, ""])
    assert ended.stdout.startswith(said[0]) or how == "error"


STARTING = """
from aumn.runtime import preemption, ranks
from aumn.records import Stopped
preemption.listen()
wait, ranks.POLL_S = ranks._wait_for_all, 0.02
def tell_and_wait(*arguments):
    print('waits', flush=True)
    wait(*arguments)
ranks._wait_for_all = tell_and_wait
try:
    with ranks.connect():
        print('connected', flush=True)
except Stopped as stop:
    print('silent' if stop.told_by_another_rank else stop, flush=True)
    preemption.leave(stop.code)
"""


@pytest.mark.parametrize("asked", [0, 1])
def test_a_rank_that_is_asked_to_stop_while_others_still_start_takes_those_that_wait_along(asked):
    """Without torchrun, which would end the others; the third rank is never started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        ranks: list[Running] = [
            stack.enter_context(start("-W", "ignore", "-c", STARTING, RANK=str(rank), **variables)) for rank in (0, 1)
        ]
        for rank in ranks:
            rank.wait_for("waits")
        time.sleep(0.5)
        ranks[asked].kill(signal.SIGTERM)
        begin_s = time.monotonic()
        ended = [rank.finish(timeout_s=30) for rank in ranks]
        assert time.monotonic() - begin_s < 20
    assert [process.returncode for process in ended] == [75, 75], [process.stderr for process in ended]
    assert "Stopped by SIGTERM: nothing is half-written" in ended[asked].stderr
    assert "silent" in ended[1 - asked].stderr
