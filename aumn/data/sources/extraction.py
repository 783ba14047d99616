"""What `aumn extract` tells of the features that it wrote: how they were made, and of each video what was read.

extraction.json      the extractor, and stride, window and rates of all videos
facts/VIDEO.json     written when the video is done; without it the video's arrays are not to be used
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aumn.records import MOST_S, InputError, check_streams

EXTRACTION, FACTS = "extraction.json", "facts"

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Extraction:
    """How all of a folder's features were made; `extractor` is what the same features of other videos take."""

    format: int
    extractor: dict[str, Any]
    fps: float | None  # that videos were resampled to; None: each has its own
    stride_frames: int
    window_frames: int
    dtype: str

    def streams(self) -> list[str]:
        """The folders of arrays."""
        return list(self.extractor["streams"])


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read of one video; `fps` is the rate of the frames that windows were cut of."""

    video: str
    file: str
    frames: int
    fps: float
    snippets: int
    duration_s: float

    def __post_init__(self) -> None:
        """ValueError where a value cannot be."""
        if not (0 < self.fps <= MOST_S and 0 < self.duration_s <= MOST_S):
            raise ValueError("fps and duration_s must be above 0")


def read_extraction(folder: Path) -> Extraction | None:
    """How the features were made, where `aumn extract` did."""
    file = folder / EXTRACTION
    if not file.is_file():
        return None
    found = _read(file, Extraction)
    if found.format != 1:
        raise InputError(f"{file} has format {found.format}; this aumn reads 1: extract again.")
    if not isinstance(streams := found.extractor.get("streams"), dict):
        raise InputError(f"{file} names no streams of its extractor: extract again.")
    check_streams([stream.lower() for stream in streams])
    return found


def read_facts(folder: Path, array: Path) -> Facts:
    """What was read of the video of an array; InputError where it is not done."""
    file = folder / FACTS / array.relative_to(folder).relative_to(array.relative_to(folder).parts[0])
    file = file.with_suffix(".json")
    if not file.is_file():
        raise InputError(f"{array} is unfinished, since there is no {file}: run the same `aumn extract` again.")
    return _read(file, Facts)


def _read(file: Path, kind: type[Told]) -> Told:
    """A JSON object with these fields; others that stand there are let be."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(json.loads(file.read_bytes()))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"])) or "the object"
        raise InputError(
            f"{file} is not as `aumn extract` writes it ({name}: {problem['msg']}): extract again."
        ) from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): extract again.") from None
