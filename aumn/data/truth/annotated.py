"""One video's ground truth, and the checks that every layout's reader makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from aumn.data.problems import refuse
from aumn.records import InputError

Entry = TypeVar("Entry")


class Instance(NamedTuple):
    """One annotated action."""

    label: str
    start_s: float
    end_s: float


class AnnotatedVideo(NamedTuple):
    """A video of the ground truth; duration and frame rate are None where the release does not tell them.

    `untimed` are actions that the video is known to hold at times that nobody annotated: enough to train on.
    """

    id: str
    subset: str
    duration_s: float | None
    fps: float | None
    annotations: tuple[Instance, ...]
    untimed: tuple[str, ...] = ()

    def labels(self) -> set[str]:
        """Which actions the video holds, whenever."""
        return {instance.label for instance in self.annotations} | set(self.untimed)


def parse_videos(
    source: Path, entries: Iterable[tuple[str, Entry]], parse: Callable[[str, Entry], AnnotatedVideo]
) -> list[AnnotatedVideo]:
    """Each video of a ground truth, from its name and what stands there about it; all that is wrong is told together.

    `parse` raises errors whose subject is the video.
    """
    videos, problems = [], []
    for video, entry in entries:
        try:
            videos.append(parse(video, entry))
        except (InputError, TypeError, ValueError) as error:
            problems.append(f"{source}: video {video!r} {error}")
    refuse(problems, f"{source}: {len(problems):,} videos of the ground truth cannot be used:")
    return videos


def parse_instance(label: str, start: Any, end: Any) -> Instance:
    """An instance of two numbers or their texts; InputError, with the video for its subject, for others."""
    start_s, end_s = _parse_number(start), _parse_number(end)
    if start_s is None or end_s is None:
        raise InputError(f"has a {label!r} at {[start, end]!r}; start and end must be finite numbers of seconds.")
    if end_s < start_s:
        raise InputError(
            f"has a {label!r} at {[start, end]!r}, which ends before it starts; correct it or leave it out."
        )
    return Instance(label, start_s, end_s)


def parse_positive(name: str, value: Any) -> float | None:
    """A number above 0, or None for None."""
    if value is None:
        return None
    number = _parse_number(value)
    if number is None or number <= 0:
        raise InputError(f"has {name} {value!r}; it must be a number above 0, or left out.")
    return number


def _parse_number(value: Any) -> float | None:
    """A finite number, also from its text: BaS-Net's release of THUMOS14 writes its seconds as strings."""
    if isinstance(value, bool) or not isinstance(value, float | int | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
