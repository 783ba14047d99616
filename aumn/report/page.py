"""The page itself: templates and contents put into one file that opens from disk and asks no network for anything.

Contents are JSON that holds no `<`, and packed videos that hold only base64, so that no name in them can end the
element they lie in; scripts put names into the page as text. A content security policy lets nothing run but our own
script, by its hash, and nothing be fetched but the videos beside it that it plays, so that even a mistake of ours
could not.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from aumn.files import whole_file

SCRIPTS = (
    "base",
    "charts",
    "overview",
    "classes",
    "errors",
    "timeline",
    "videos",
    "units",
    "training",
    "sweep",
    "main",
)


def write_page(out: Path, title: str, contents: Mapping[str, Any], videos: Sequence[bytes] = ()) -> None:
    """Write the page, whole or not at all, with lines of packed videos. Equal contents make equal bytes."""
    script = "(() => {\n'use strict';\n" + "\n".join(_read(f"{name}.js") for name in SCRIPTS) + "\n})();"
    style = _read("style.css")
    media = "media-src 'self' file:" if contents.get("films") else "media-src 'none'"
    filled = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; {media}",
        "style": style,
        "contents": json.dumps(contents, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": script,
    }
    head, tail = (Template(part).substitute(filled).encode() for part in _read("page.html").split("${videos}"))
    with whole_file(out) as partial, partial.open("wb") as file:
        file.writelines((head, *videos, tail))


def _read(name: str) -> str:
    return files("aumn.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
