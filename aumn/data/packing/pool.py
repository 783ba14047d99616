"""Worker processes that die with the process that started them, even by kill -9.

No pool of the standard library's. A worker of ProcessPoolExecutor outlives a parent that is killed, and its semaphores
are leaked, with a warning behind the last sentence, by a parent that leaves at once (`os._exit`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from aumn.records import InputError

Result = TypeVar("Result")


def run_in_processes(task: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """The result of each call as it finishes, in any order; with one worker in this very process.

    Whatever ends this early, an error of a call, a signal or the caller's own loss of interest, kills the workers: a
    call must leave nothing half done that matters.
    """
    if min(workers, len(calls)) <= 1:
        yield from (task(*call) for call in calls)
        return
    spawn = multiprocessing.get_context("spawn")
    left, processes, busy = map(ForkingPickler.dumps, calls), [], set[Any]()
    try:
        for _ in range(min(workers, len(calls))):
            ours, theirs = spawn.Pipe()
            processes.append(spawn.Process(target=_work, args=(task, theirs), daemon=True))
            processes[-1].start()
            theirs.close()  # so that the process's death ends the connection
            _give(ours, next(left))
            busy.add(ours)
        ahead = None
        while busy:
            ahead = ahead or next(left, None)  # made while all are at work, since to make a call takes time
            ready: list[Any] = wait(list(busy))
            for connection in ready:
                try:
                    result, error = connection.recv()
                except (EOFError, OSError):
                    raise InputError(
                        "A worker process was killed, perhaps for want of memory: run the same command again with "
                        "fewer --workers; what is finished is kept."
                    ) from None
                if error is not None:
                    raise error
                if call := ahead or next(left, None):
                    _give(connection, call)
                    ahead = None
                else:
                    busy.remove(connection)
                yield result
    finally:
        for process in processes:
            if process.pid is not None:  # it has been started
                process.kill()
                process.join(timeout=10)


def _give(connection: Any, call: memoryview) -> None:
    with suppress(BrokenPipeError):  # a worker that died meanwhile is found when its result is waited for
        connection.send_bytes(call)


def _work(task: Callable[..., Any], connection: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent is asked to stop too, and ends us
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    with suppress(EOFError):  # nobody is left to make calls
        while True:
            call = connection.recv()
            try:
                answer: tuple[Any, Exception | None] = (task(*call), None)
            except Exception as error:
                error.add_note(traceback.format_exc())  # of this process; the parent's own says nothing of it
                answer = (None, error)
            connection.send(answer)


def _die_with(parent_sentinel: int) -> None:
    """End this process when its parent has ended: a worker left behind would write into the next run's files."""
    wait([parent_sentinel])
    os._exit(1)
