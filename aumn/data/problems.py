"""Many problems, one error: a user with twelve bad videos wants to hear of all twelve at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aumn.records import InputError

SHOWN = 10
ON_BAD = ("stop", "skip", "swap")


def check_on_bad(choice: str | None) -> None:
    """InputError unless this is one of the things to do with what is bad."""
    if choice is not None and choice not in ON_BAD:
        raise InputError(f"on_bad is {choice!r}: choose {', '.join(ON_BAD[:-1])} or {ON_BAD[-1]}.")


def refuse(problems: Sequence[str], headline: str) -> None:
    """Raise the problems together, the first ten in full; a single one is its own headline; none is no error."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more."] if len(problems) > SHOWN else []
        raise InputError(headline, *problems[:SHOWN], *more)


@contextmanager
def about(subject: object) -> Iterator[None]:
    """Put a subject before what an error says, where the code that raises it does not know of what it speaks."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject} {error}") from None
