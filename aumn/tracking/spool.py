"""What a tracking store does not have yet: letters in memory and, line by line, in a file of the run's folder.

    {"run": "0f3c...", "store": "http://lab:5000"}          whom the letters are for; without passwords
    {"metrics": {"loss": 0.5}, "step": 10, "at_ms": ...}    one letter a line
    {"config": {...}}  {"tags": {...}}  {"status": "FINISHED", "at_ms": ...}
    {"model": {"folder": "model", "name": "aumn-thumos14", "alias": null, "config": ...}}    beside this file

The file is there only while something waits. A letter may be in it that was delivered just before a kill: delivering
drops what the store has (see `recipient`). One process has a spool open at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from aumn.files import sync
from aumn.records import InputError

NAME = "undelivered.jsonl"
LOCK_WAIT_S = 5.0

Letter = Mapping[str, Any]


class Spool:
    """Letters that wait, first in, first out. Not safe for several threads: its user has the lock."""

    def __init__(self, path: Path) -> None:
        """Open the file and take up what an earlier process left in it; the file is made where there is none."""
        self.path = path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open(path)
        try:
            header, *lines = _read(path) or [b""]
        except BaseException:
            self._file.close()
            raise
        addressee = json.loads(header) if header else {}
        self.run: str | None = addressee.get("run")
        self.store: str | None = addressee.get("store")
        self._header = header
        self._lines: deque[bytes] = deque(lines)
        self._on_disk = len(lines)  # how many of the lines the file holds
        self._good_bytes = sum(map(len, (header, *lines)))

    def address(self, run: str, store: str) -> None:
        """Say whom the letters are for, before the first is written."""
        self.run, self.store = run, store
        self._header = _line({"run": run, "store": store})

    def __len__(self) -> int:
        return len(self._lines)

    def append(self, letter: Letter) -> None:
        """Add a letter. It survives a kill of this process, if the disk takes it; see `sync`."""
        self._lines.append(_line(letter))
        with suppress(OSError):  # it stays in memory, and `sync` tries again and tells
            self._write()

    def sync(self) -> None:
        """Put all that waits on the disk: nothing of it is lost to a crash of the machine. OSError where it refuses."""
        if self._lines:
            self._write()
            try:
                os.fsync(self._file.fileno())
            except OSError:
                # What a disk has failed to take counts as written from then on, and may be gone: write it all again.
                self._good_bytes = self._on_disk = 0
                raise
            sync(self.path.parent)

    def first(self, count: int) -> list[Letter]:
        """The letters that have waited longest."""
        return [json.loads(self._lines[index]) for index in range(min(count, len(self._lines)))]

    def drop(self, count: int) -> None:
        """Forget the first letters: they are delivered."""
        for _ in range(count):
            self._lines.popleft()
        self._on_disk = max(0, self._on_disk - count)
        if not self._lines:
            with suppress(OSError):  # then they are found again, and dropped as delivered
                self._file.truncate(0)
                self._good_bytes = 0

    def close(self) -> None:
        """Let go of the file, and remove it where nothing waits and the folder permits it."""
        if not self._lines:
            with suppress(OSError):  # an empty file, or letters that are found again and dropped as delivered
                self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self) -> None:
        """Bring the file up to the memory, over what a full disk may have cut short."""
        missing = [self._lines[index] for index in range(self._on_disk, len(self._lines))]
        if not missing:
            return
        if not self._good_bytes:
            missing.insert(0, self._header)
        self._file.truncate(self._good_bytes)
        text = b"".join(missing)
        if self._file.write(text) != len(text):
            raise OSError(28, os.strerror(28), str(self.path))
        self._good_bytes += len(text)
        self._on_disk = len(self._lines)


def _line(letter: Letter) -> bytes:
    return json.dumps(letter, ensure_ascii=False, default=str).encode() + b"\n"


def _open(path: Path) -> IO[bytes]:
    """The file, ours alone. The process before removes it as it ends: what we waited for may be there no longer."""
    while True:
        file = path.open("ab", buffering=0)
        try:
            _lock(file, path)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes], path: Path) -> None:
    """Wait a little: the process before may just be ending."""
    give_up_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < give_up_s:
                time.sleep(0.1)
                continue
            raise InputError(
                f"{path} is in use: another process trains this run or delivers its metrics; wait until it has ended."
            ) from None
        except OSError:
            return  # a file system without locks
        return


def _read(path: Path) -> list[bytes]:
    """The file's lines; a last one without its end was cut short by a kill and never promised."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            raise InputError(
                f"{path} is damaged in line {number}: mend the line, or remove the file to go on without what it holds."
            )
    return lines


@dataclass
class Contents:
    """What some letters hold, in words for people."""

    records: int = 0
    first_step: int = 0
    last_step: int = 0
    models: list[str] = field(default_factory=list)
    ended: bool = False

    def add(self, letters: Iterable[Letter]) -> Contents:
        """Count these letters too."""
        for letter in letters:
            if "metrics" in letter:
                self.first_step = min(letter["step"], self.first_step) if self.records else letter["step"]
                self.last_step = max(letter["step"], self.last_step)
                self.records += 1
            elif "model" in letter:
                self.models.append(letter["model"]["name"])
            elif "status" in letter:
                self.ended = letter["status"] != "RUNNING"
        return self

    def __str__(self) -> str:
        one = self.first_step == self.last_step
        steps = f"step {self.first_step}" if one else f"steps {self.first_step} to {self.last_step}"
        parts = [f"the metrics of {steps}"] * bool(self.records)
        parts += [f"the model {name}" for name in self.models] + ["how the run ended"] * self.ended
        return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "settings and tags"
