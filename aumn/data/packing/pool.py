"""Worker processes that die with the process that started them, even by kill -9."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
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
    left, started = iter(calls), list[_Worker]()
    try:
        for _ in range(min(workers, len(calls))):
            started.append(_Worker(task))
            started[-1].start()
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
            worker.end()


class _Worker:
    """A process that makes one call at a time."""

    def __init__(self, task: Callable[..., Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, self._theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(task, self._theirs), daemon=True)

    def start(self) -> None:
        self._process.start()
        self._theirs.close()  # so that the process's death ends the connection

    def end(self) -> None:
        """Kill the process, if it has one by now."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join(timeout=10)

    def give(self, call: tuple[Any, ...]) -> None:
        """Have it make this call; one that died meanwhile is found by `receive`."""
        with suppress(BrokenPipeError):
            self.connection.send(call)

    def receive(self) -> Any:
        """What the call returned; what it raised is raised."""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
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
    while (call := _receive(connection)) is not None:
        try:
            answer: tuple[Any, Exception | None] = (task(*call), None)
        except Exception as error:
            error.add_note(traceback.format_exc())  # of this process; the parent's own says nothing of it
            answer = (None, error)
        connection.send_bytes(_pickled(answer))


def _receive(connection: Connection) -> tuple[Any, ...] | None:
    """The next call; None when there is nobody left to make calls."""
    with suppress(EOFError):
        call: tuple[Any, ...] = connection.recv()
        return call
    return None


def _pickled(answer: tuple[Any, Exception | None]) -> bytes:
    """The answer for the other side, or what is wrong with it where it would not get there."""
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)  # noqa: S301  (our own)
    except Exception as problem:
        error = RuntimeError(f"An answer of a worker cannot be sent ({problem}): {answer[1] or answer[0]!r}")
        return pickle.dumps((None, error))
    return data


def _die_with(parent_sentinel: int) -> None:
    """End this process when its parent has ended: a worker left behind would write into the next run's files."""
    wait([parent_sentinel])
    os._exit(1)
