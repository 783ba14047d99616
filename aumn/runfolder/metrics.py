"""`metrics.jsonl`: every number a run has logged, a JSON object a line, in rising order of steps.

    {"step": 10, "at_ms": 1764460800000, "loss": 0.5, "rgb/gradient_norm": 1.25, ...}

Evaluations are lines of their own. A number that is not finite is null. `tail -f` and `pandas.read_json(lines=True)`
read the file as it is.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aumn.records import InputError

NAME = "metrics.jsonl"
NO_METRICS = ("step", "at_ms")
TAIL_BYTES = 1 << 16

Curve = dict[int, float]
"""A metric's value at each step, steps ascending."""


def now_ms() -> int:
    """Since 1970, as everything in a run's folder counts time."""
    return time.time_ns() // 1_000_000


class MetricsWriter:
    """Appends to a run's metrics; for the one process that holds the run's lock.

    One thread appends and another may `sync` meanwhile; appending never waits for the disk.
    """

    def __init__(self, folder: Path, *, keep: int = 0) -> None:
        """Go on behind the first `keep` lines of the file; what stands behind them is cut off."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / NAME).open("ab", buffering=0)
        lines = (folder / NAME).read_bytes().splitlines(keepends=True)[:keep]
        self.count = len(lines)  # of the lines logged so far, whether the disk took them or not
        self._lines: list[bytes] = []  # since the last sync
        self._written = 0  # of these
        self._synced_bytes = sum(map(len, lines))
        self._file.truncate(self._synced_bytes)
        self._lock = threading.Lock()

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers of a step. What the disk refuses is kept in memory and written later."""
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        record = {"step": step, "at_ms": now_ms(), **numbers}
        with self._lock, suppress(OSError):  # `sync` tries again, and tells
            self._lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self.count += 1
            self._write()

    def sync(self) -> None:
        """Return once all numbers so far outlive a crash of the machine. OSError where the disk refuses."""
        with self._lock:
            self._write()
            lines = self._written
        try:
            os.fsync(self._file.fileno())
        except OSError:
            with self._lock:
                self._written = 0  # what the disk has failed to take may be gone
            raise
        with self._lock:
            self._synced_bytes += sum(map(len, self._lines[:lines]))
            self._lines, self._written = self._lines[lines:], self._written - lines

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write(self) -> None:
        """Bring the file up to the memory, over what a full disk may have cut short."""
        good_bytes = self._synced_bytes + sum(map(len, self._lines[: self._written]))
        if os.fstat(self._file.fileno()).st_size != good_bytes:
            self._file.truncate(good_bytes)
        text = b"".join(self._lines[self._written :])
        if self._file.write(text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        self._written = len(self._lines)


def read_metrics(folder: Path, first: int = 0) -> Iterator[dict[str, Any]]:
    """The lines behind the first `first` ones, as dicts; none where there is no file.

    A last line without an end is being written, or was cut short by a kill, and is left out.
    """
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(lines[first:], first + 1):
        yield _parse(line, folder / NAME, number)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Every metric over its steps."""
    curves: dict[str, Curve] = {}
    for record in read_metrics(folder):
        for name, value in record.items():  # in the order they were logged in, which a page's legends keep
            if name not in NO_METRICS:
                curves.setdefault(name, {})[record["step"]] = math.nan if value is None else value
    return curves


def last_metrics(folder: Path) -> dict[str, Any]:
    """Each metric's last value, and `step`, by the end of the file alone: what a table of running jobs shows."""
    found: dict[str, Any] = {}
    with suppress(FileNotFoundError), (folder / NAME).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        _, _, tail = (b"\n" * (file.tell() == 0) + file.read()).partition(b"\n")
        for line in tail[: tail.rfind(b"\n") + 1].splitlines():
            found |= _parse(line, folder / NAME, None)
    return found


def _parse(line: bytes, path: Path, number: int | None) -> dict[str, Any]:
    try:
        record = json.loads(
            line, parse_constant=lambda _: None
        )  # NaN and Infinity, as another program would write them
    except ValueError:
        record = None
    if isinstance(record, dict) and type(record.get("step")) is int and all(map(_is_number, record.values())):
        return record
    where = f"line {number}" if number else "its last lines"
    raise InputError(f"{path} is damaged in {where}: mend it, or remove the file to go on without what it holds.")


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
