"""Where the videos themselves lie, for a page that plays them; it links the files and holds none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from aumn.records import VIDEO_ENDINGS, InputError


def find_films(folder: Path) -> dict[str, Path]:
    """Video files in the folder and those in it, by their names, with and without their endings.

    ActivityNet's files are `v_VIDEO`. InputError where there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the one that the video files lie in.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_ENDINGS and path.is_file())
    if not files:
        raise InputError(
            f"{folder} has no video file ({', '.join(sorted(VIDEO_ENDINGS))}): name the folder they lie in."
        )
    found: dict[str, Path] = {}
    for path in files:
        for name in (path.name, path.stem, path.stem.removeprefix("v_")):
            found.setdefault(name, path)
    return found


def link_films(films: Mapping[str, Path], videos: Sequence[str], page: Path) -> list[str | None]:
    """An address relative to the page for each video that has a file."""
    start = page.resolve().parent
    return [quote(os.path.relpath(films[video].resolve(), start)) if video in films else None for video in videos]
