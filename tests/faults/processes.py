"""Commands as a user starts them, whose processes can be found and ended by id, also when their parents are gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.launching import QUIET

INTERRUPTED = threading.Event()  # set by the main thread; every wait of every round then ends
POLL_S = 0.004


class HungError(Exception):
    """Something did not end, or did not happen, in the time that is more than enough for it."""


class Command:
    """A running command. Its processes are those whose working directory is its own, whoever their parents are."""

    def __init__(self, arguments: Sequence[object], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.log, self.start_s = folder, log, time.monotonic()
        variables = {**os.environ, **QUIET, "PYTHONFAULTHANDLER": "1", **environment}
        with log.open("ab", buffering=0) as output:
            output.write(f"$ {' '.join(map(str, arguments))}\n".encode())
            self._first_byte = output.tell() - 1
            self.launcher = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def has_ranks(self) -> bool:
        return any(launcher in self.launcher.args for launcher in ("torch.distributed.run", "tests.faults.two_nodes"))

    def output(self) -> str:
        """What it has printed so far, each line behind a line feed."""
        return self.log.read_bytes()[self._first_byte :].decode(errors="replace")

    def has_ended(self) -> bool:
        return self.launcher.poll() is not None

    def children(self) -> list[psutil.Process]:
        """Under torchrun the ranks; else the workers, in the order they were started."""
        own = [process for process in processes_in(self.folder) if _parent(process) == self.launcher.pid]
        return sorted(own, key=lambda process: process.pid)

    def wait(self, timeout_s: float) -> int:
        """The exit code."""
        wait_until(self.has_ended, timeout_s, "the command did not end")
        return int(self.launcher.returncode)


def wait_until(happened: Callable[[], bool], timeout_s: float, else_: str) -> None:
    end_s = time.monotonic() + timeout_s
    while not happened():
        if INTERRUPTED.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > end_s:
            raise HungError(f"{else_} in {timeout_s:.0f} s")
        time.sleep(POLL_S)


def end_all(folder: Path) -> int:
    """Kill every process that works in the folder; how many there were. Before it ends, Python tells where it was."""
    found = list(processes_in(folder))
    for process in found:
        signal_to(process, signal.SIGABRT)
        signal_to(process, signal.SIGCONT)
    _, alive = psutil.wait_procs(found, timeout=2)
    for process in alive:
        signal_to(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=10)
    return len(found)


def processes_in(folder: Path) -> Iterator[psutil.Process]:
    """Living processes that work in the folder or below it; the working directory is inherited by all children."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:  # it has ended, or is another user's
            continue


def signal_to(process: psutil.Process | subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        process.send_signal(number)


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return 0
