"""Worker processes that die with the process that started them, even by kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from aumn.records import InputError, Stopped

Result = TypeVar("Result")


def run_in_processes(task: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """The result of each call as it finishes, in any order; with one worker in this very process."""
    workers = min(workers, len(calls))
    if workers <= 1:
        yield from (task(*call) for call in calls)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker) as pool:
        futures = [pool.submit(task, *call) for call in calls]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise InputError(
                "A worker process was killed, perhaps for want of memory: run the same command again with fewer "
                "--workers; what is finished is kept."
            ) from None
        except (Stopped, KeyboardInterrupt, GeneratorExit):  # do not wait for what is being written
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent is asked to stop too, and ends us
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(parent_sentinel: int) -> None:
    """End this process when its parent has ended: a worker left behind would write into the next run's files."""
    wait([parent_sentinel])
    os._exit(1)
