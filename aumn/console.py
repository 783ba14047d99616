"""What a person at the keyboard sees of long work: a bar with rate and time left, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0

Advance = Callable[[int, int], None]
"""Called with (done, total) as the work goes on, as often as one likes."""


@contextmanager
def progress(what: str, unit: str, *, silent: bool = False) -> Iterator[Advance]:
    """Show how far the work in the `with` block is; ranks other than the first are silent."""
    if silent:
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bar(what, unit) as advance:
            yield advance
    else:
        yield _Lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    start_s = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            elapsed_s = max(time.perf_counter() - start_s, 1e-9)
            bars.update(task, completed=done, total=total, rate=f"{done / elapsed_s:,.1f} {unit}/s")

        yield advance


class _Lines:
    """A line every ten seconds, and one at the end."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.start_s = self.said_s = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now_s = time.perf_counter()
        if done < total and now_s - self.said_s < LINE_EVERY_S:
            return
        self.said_s = now_s
        rate = done / max(now_s - self.start_s, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if 0 < done < total else ""
        print(f"{self.what}: {done:,}/{total:,} {self.unit}, {rate:,.1f}/s{left}", file=sys.stderr, flush=True)
