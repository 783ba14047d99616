"""Worker processes that die with the process that started them, even by kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from aumn.records import InputError

Result = TypeVar("Result")


def run_in_processes(task: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """The result of each call as it finishes, in any order; with one worker in this very process.

    Whatever ends this early, an error of a call, a signal or the caller's own loss of interest, kills the workers: a
    call must leave nothing half done that matters. No pool of the standard library's: theirs keep semaphores, and a
    process that leaves at once (`os._exit`) leaks them, with a warning behind its last sentence.
    """
    if min(workers, len(calls)) <= 1:
        yield from (task(*call) for call in calls)
        return
    left = iter(calls)
    started = [_Worker(task) for _ in range(min(workers, len(calls)))]
    try:
        busy: dict[Any, _Worker] = {worker.connection: worker for worker in started}
        for worker, call in zip(started, left, strict=False):  # in this order, since zip ends with the shorter one
            worker.give(call)
        while busy:
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                result = worker.receive()
                for call in islice(left, 1):
                    worker.give(call)
                    busy[connection] = worker
                yield result
    finally:
        for worker in started:
            worker.process.kill()
        for worker in started:
            worker.process.join(timeout=10)


class _Worker:
    """A process that makes one call at a time."""

    def __init__(self, task: Callable[..., Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(task, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the process's death ends the connection

    def give(self, call: tuple[Any, ...]) -> None:
        """Have it make this call; one that died meanwhile is found by `receive`."""
        with suppress(BrokenPipeError):
            self.connection.send(call)

    def receive(self) -> Any:
        """What the call returned; what it raised is raised."""
        try:
            result, error = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise InputError(
                "A worker process was killed, perhaps for want of memory: run the same command again with fewer "
                "--workers; what is finished is kept."
            ) from None
        if error is not None:
            raise error
        return result


def _work(task: Callable[..., Any], connection: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent is asked to stop too, and ends us
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        call = connection.recv()
        try:
            answer: tuple[Any, Exception | None] = (task(*call), None)
        except Exception as error:
            answer = (None, error)
        connection.send(answer)


def _die_with(parent_sentinel: int) -> None:
    """End this process when its parent has ended: a worker left behind would write into the next run's files."""
    wait([parent_sentinel])
    os._exit(1)
