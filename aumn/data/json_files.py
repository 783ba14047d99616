"""JSON that strangers wrote: what would be read in silence as something else is refused."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from reprlib import Repr
from typing import Any

from aumn.records import InputError

_short = Repr()
_short.maxstring = _short.maxother = 60
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(file: Path, layout: str) -> Any:
    """The content; InputError, which tells the layout, for what is no JSON or would not be taken as it stands."""
    was_collecting = gc.isenabled()
    gc.disable()  # millions of new objects, none of them garbage: looking through them again and again takes longer
    try:
        content = file.read_bytes()
        text = content.decode(json.detect_encoding(content))
        document = json.loads(text, object_pairs_hook=_refuse_twice)
        if HALF_CHARACTER.search(text):  # half of a pair, alone, is no text: nothing could print or store it
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError(f"{file} is not usable JSON (it is nested too deeply): {layout}") from None
    except ValueError as error:
        raise InputError(f"{file} is not usable JSON ({error}): {layout}") from None
    finally:
        if was_collecting:
            gc.enable()
    return document


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
