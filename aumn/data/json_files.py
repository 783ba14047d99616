"""JSON that strangers wrote: what would be read in silence as something else is refused."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import Repr
from typing import Any, TextIO

from aumn.records import InputError

_short = Repr()
_short.maxstring = _short.maxother = 60
ENDS = tuple(" \t\n\r,:}]")  # what may follow a value
BLANK = re.compile(r"[ \t\n\r]*")
PIECE, LONGEST = 2**20, 2**24  # characters of a file that is read piece by piece, and of its longest value
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(file: Path, layout: str) -> Any:
    """The content; InputError, which tells the layout, for what is no JSON or would not be taken as it stands."""
    try:
        content = file.read_bytes()
        text = content.decode(json.detect_encoding(content))
        with no_collecting():
            document = json.loads(text, object_pairs_hook=_refuse_twice)
        if HALF_CHARACTER.search(text):  # half of a pair, alone, is no text: nothing could print or store it
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError(f"{file} is not usable JSON (it is nested too deeply): {layout}") from None
    except ValueError as error:
        raise InputError(f"{file} is not usable JSON ({error}): {layout}") from None
    return document


@contextmanager
def no_collecting() -> Iterator[None]:
    """For millions of new objects, none of them garbage: looking through them again and again takes longer."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()


def read_items(file: Path, roots: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The items of the one object among these in the object that a file holds, read piece by piece, each held alone.

    ValueError where anything is otherwise, or is no JSON that `read_json` would take: let that say what it is.
    """
    with file.open("rb") as opened:
        encoding = json.detect_encoding(opened.read(4))
    with file.open(encoding=encoding, newline="") as stream:
        pieces, found = _Pieces(stream), set[str]()
        for name in pieces.names():
            if name in found:
                raise ValueError(f"{name} is given twice")
            found.add(name)
            if name in roots:
                yield from ((inner, pieces.value()) for inner in pieces.names())
            else:
                pieces.value()
        if len(found & set(roots)) != 1 or not pieces.is_over():
            raise ValueError("not one object")


class _Pieces:
    """A JSON document that is read as far as somebody looks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._place = stream, "", 0
        self._decode = json.JSONDecoder(object_pairs_hook=_refuse_twice).raw_decode

    def names(self) -> Iterator[str]:
        """An object's, each before its value, which is to be taken next."""
        self._take("{")
        separator = ","
        while separator == ",":
            if not isinstance(name := self.value(), str):
                raise ValueError(f"{name!r} is no name")
            self._take(":")
            yield name
            separator = self._take(",}")

    def value(self) -> Any:
        """The next value, whole."""
        while True:
            begin = self._skip()
            try:
                found, end = self._decode(self._text, begin)
            except ValueError:
                if not self._more():
                    raise
                continue
            if self._text[end : end + 1] in ENDS or not self._more():  # else a number might go on
                self._place = end
                return found

    def is_over(self) -> bool:
        """Whether nothing more follows."""
        return self._skip() == len(self._text)

    def _take(self, choices: str) -> str:
        begin = self._skip()
        self._place = begin + 1
        character = self._text[begin : self._place]
        if not character or character not in choices:
            raise ValueError(f"{character!r}, not one of {choices}")
        return character

    def _skip(self) -> int:
        """Where the next thing begins."""
        while (end := self._blank(self._place)) == len(self._text) and self._more():
            pass
        return end

    def _blank(self, place: int) -> int:
        found = BLANK.match(self._text, place)
        assert found
        return found.end()

    def _more(self) -> bool:
        """Read on; False at the end."""
        if not (piece := self._stream.read(PIECE)):
            return False
        self._text, self._place = self._text[self._place :] + piece, 0
        if len(self._text) > LONGEST or HALF_CHARACTER.search(self._text):
            raise ValueError("one value is very long, or half a character, perhaps")
        return True


def shown(value: Any) -> str:
    """A value for a message, cut short: a stranger's may be of any size and depth."""
    return _short.repr(value)


def text_of(value: Any) -> str | None:
    """A name as text, also one written as a whole number; None for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice, of which Python would silently keep the last, is an error."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(shown(name) for name in names if names.count(name) > 1)} is given twice")
    return fields
