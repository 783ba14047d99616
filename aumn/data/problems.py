"""Many problems, one error: a user with twelve bad videos wants to hear of all twelve at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aumn.records import InputError

SHOWN = 10
ON_BAD = ("stop", "skip", "swap")
OR_SKIP = "Or leave bad videos out: --on-bad skip."


def check_on_bad(choice: str | None) -> None:
    """InputError unless this is one of the things to do with what is bad."""
    if choice is not None and choice not in ON_BAD:
        raise InputError(f"on_bad is {choice!r}: choose {', '.join(ON_BAD[:-1])} or {ON_BAD[-1]}.")


def refuse(problems: Sequence[str], headline: str, remedy: str = "") -> None:
    """Raise the problems together, the first ten in full; a single one is its own headline; none is no error.

    `remedy` is a sentence on what else can be done about all of them.
    """
    if len(problems) == 1:
        raise InputError(f"{problems[0]} {remedy}".rstrip())
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more."] if len(problems) > SHOWN else []
        raise InputError(headline, *problems[:SHOWN], *more, *filter(None, [remedy]))


class StoreGoneError(InputError):
    """A store has not answered for as long as it may be away."""


class DamagedVideoError(InputError):
    """A video's features are not what was packed; `video` is its id."""

    def __init__(self, video: str, sentence: str) -> None:
        super().__init__(sentence)
        self.video = video


@contextmanager
def about(subject: object) -> Iterator[None]:
    """Put a subject before what an error says, where the code that raises it does not know of what it speaks."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject} {error}") from None
