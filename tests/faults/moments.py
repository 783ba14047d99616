"""When a fault strikes: a moment is data, and `watch` makes it a question whose answer turns from no to yes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .processes import Command

Question: TypeAlias = Callable[[], bool]  # asked every few milliseconds


@dataclass(frozen=True)
class AtShare:
    """So far into the time that the undisturbed command takes, counted from here."""

    share: float


@dataclass(frozen=True)
class AfterLines:
    """So long after the command has said so many more lines that begin in this way."""

    beginning: str
    lines: int
    delay_s: float


@dataclass(frozen=True)
class WhileWriting:
    """So long after a path that matches appears, as it does while something is being written."""

    pattern: str
    delay_s: float


Moment: TypeAlias = AtShare | AfterLines | WhileWriting


def watch(moment: Moment, command: Command, undisturbed_s: float) -> Question:
    match moment:
        case AtShare(share):
            end_s = time.monotonic() + share * undisturbed_s
            return lambda: time.monotonic() >= end_s
        case AfterLines(beginning, lines, delay_s):
            wanted = _said(command, beginning) + lines
            return _delayed(lambda: _said(command, beginning) >= wanted, delay_s)
        case WhileWriting(pattern, delay_s):
            known = _found(command.folder, pattern)  # what an earlier kill has left
            return _delayed(lambda: bool(_found(command.folder, pattern) - known), delay_s)


def _said(command: Command, beginning: str) -> int:
    return command.output().count(f"\n{beginning}")


def _found(folder: Path, pattern: str) -> set[tuple[str, int]]:
    """A name that was given anew counts as another path."""
    found = set()
    for path in folder.glob(pattern):
        try:
            found.add((path.name, path.stat().st_ino))
        except FileNotFoundError:
            continue
    return found


def _delayed(question: Question, delay_s: float) -> Question:
    yes_s: list[float] = []

    def asked() -> bool:
        if not yes_s and question():
            yes_s.append(time.monotonic())
        return bool(yes_s) and time.monotonic() - yes_s[0] >= delay_s

    return asked
