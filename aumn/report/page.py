"""The page itself: templates and contents put into one file that opens from disk and asks no network for anything.

Contents are JSON that holds no `<`, and packed videos that hold only base64, so that no name in them can end the
element they lie in; scripts put names into the page as text. A content security policy lets nothing run but our own
script, by its hash, and nothing be fetched, so that even a mistake of ours could not.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
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


def write_page(out: Path, title: str, contents: Mapping[str, Any], videos: Sequence[str] = ()) -> int:
    """Write the page, whole or not at all; its size in bytes. Equal contents make equal bytes."""
    page = render(title, contents, videos).encode()
    with whole_file(out) as file:
        file.write_bytes(page)
    return len(page)


def render(title: str, contents: Mapping[str, Any], videos: Sequence[str] = ()) -> str:
    """The page as text."""
    script = "(() => {\n'use strict';\n" + "\n".join(_template(f"{name}.js") for name in SCRIPTS) + "\n})();"
    style = _template("style.css")
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:",
        "style": style,
        "contents": _json(contents),
        "videos": "\n".join(videos),
        "script": script,
    }
    first, *pieces = _template("page.html").split("{{")
    for piece in pieces:
        name, _, rest = piece.partition("}}")
        first += parts[name] + rest
    return first


def _template(name: str) -> str:
    return files("aumn.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(contents: Mapping[str, Any]) -> str:
    return json.dumps(contents, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
