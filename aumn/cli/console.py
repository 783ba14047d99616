"""What a person at the keyboard sees of long work: a bar with rate and time left, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

LINE_EVERY_S = 10.0

Advance = Callable[[int, int], None]
"""Called with (done, total) as the work goes on, as often as one likes."""


def say(line: str) -> None:
    """Print a line on stderr, whole, since threads print too; a log on a full disk is no reason to stop."""
    with suppress(OSError):
        print(f"{line}\n", end="", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, unit: str, *, silent: bool = False) -> Iterator[Advance]:
    """Show how far the work in the `with` block is; ranks other than the first are silent."""
    if silent:
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bar(what, unit) as advance:
            yield advance
    else:
        yield _lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    rate = _Rate()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, rate=f"{rate.after(done):,.1f} {unit}/s")

        yield advance


class _Rate:
    """Units a second since the first report, so that neither imports nor what an earlier run had done count."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def after(self, done: int) -> float:
        now_s = time.perf_counter()
        self.first = self.first or (done, now_s)
        return (done - self.first[0]) / max(now_s - self.first[1], 1e-9)


def _lines(what: str, unit: str) -> Advance:
    """A line every ten seconds, and one at the end."""
    since, said_s = _Rate(), time.perf_counter()

    def advance(done: int, total: int) -> None:
        nonlocal said_s
        now_s, rate = time.perf_counter(), since.after(done)
        if done < total and now_s - said_s < LINE_EVERY_S:
            return
        said_s = now_s
        left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
        say(f"{what}: {done:,}/{total:,} {unit}, {rate:,.1f}/s{left}")

    return advance
