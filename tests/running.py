"""Real processes under way, for tests that kill, stop and signal them; see `launching` for those that only wait."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .launching import QUIET, launcher


class Running:
    """A command under way. What it and its ranks print lies in one file, so that no pipe can fill up."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process, self.log = process, log

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, *, timeout_s: float = 240) -> re.Match[str]:
        """Wait until the output matches."""
        self.wait_until(lambda: re.search(pattern, self.output), what=repr(pattern), timeout_s=timeout_s)
        return re.search(pattern, self.output)

    def wait_until(self, happened: Callable[[], object], *, what: str = "it", timeout_s: float = 240) -> None:
        """Poll until `happened()`, e.g. a path's `exists`; the command must not end before."""
        deadline_s = time.monotonic() + timeout_s
        while not happened():
            ended = self.process.poll() is not None and not happened()
            assert not ended, f"ended ({self.process.returncode}) before {what}:\n{self.output}"
            assert time.monotonic() < deadline_s, f"no {what} in {timeout_s} s:\n{self.output}"
            time.sleep(0.005)

    def ranks(self) -> dict[int, int]:
        """Rank to process id, of the ranks alive; without a launcher the command itself is rank 0."""
        found = {}
        for pid in descendants(self.process.pid):
            with suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                mine = [variable[5:] for variable in variables if variable.startswith(b"RANK=")]
                if mine and int(mine[0]) not in found:  # a rank's own children inherit its variables
                    found[int(mine[0])] = pid
        return found or {0: self.process.pid}

    def kill(self, number: int = signal.SIGKILL, *, rank: int | None = None) -> None:
        """Signal one rank, or the command that was started: the launcher where there is one."""
        os.kill(self.process.pid if rank is None else self.ranks()[rank], number)

    def kill_all(self) -> None:
        """SIGKILL to the command and everything it started."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGSTOP)  # so that it starts nothing more
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def finish(self, *, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Wait for the end; output and errors come together, as stderr."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.output}") from None
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, "", self.output)


@contextmanager
def start(
    *arguments: object,
    cwd: Path | None = None,
    ranks: int = 1,
    options: Sequence[object] = (),
    prefix: Sequence[str] = (),
    **environment: str,
) -> Iterator[Running]:
    """Start `python ARGUMENTS`, under torchrun with `options` where there are several ranks or any option.

    `prefix` is a command that becomes the one behind it. Whatever still runs at the end of the block is killed.
    """
    command = [*prefix, sys.executable]
    if ranks > 1 or options:
        command += launcher(ranks, *map(str, options))
    with tempfile.TemporaryDirectory(prefix="aumn-test-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=cwd,
                env={**os.environ, **QUIET, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(process, log)
        try:
            yield running
        finally:
            running.kill_all()


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and those that they did, parents first. torchrun's ranks lead sessions."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            child, _, rest = stat.read_text().partition(" ")
            parents.setdefault(int(rest.rpartition(") ")[2].split()[1]), []).append(int(child))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in sorted(parents.get(parent, ()))]
        found += new
    return found
