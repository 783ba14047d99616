"""One video's ground truth, and the checks that every layout's reader makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from aumn.data.json_files import shown
from aumn.data.problems import refuse
from aumn.ends import COVERED, Length, measure_ends
from aumn.records import MOST_S, InputError

Entry = TypeVar("Entry")
DEFAULT_SUBSET = "training"

MEASURED = {
    "stop": "to measure on their times takes --on-bad skip or swap",
    "skip": "they are left out where the set is measured on",
    "swap": "their start and end are exchanged where the set is measured on",
}


class Instance(NamedTuple):
    """One action as annotated; where it ends before it starts, its label may be right still."""

    label: str
    start_s: float
    end_s: float

    @property
    def is_reversed(self) -> bool:
        """Whether it ends before it starts."""
        return self.end_s < self.start_s


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


def look(videos: Sequence[AnnotatedVideo], lengths: Sequence[Length], on_bad: str) -> Iterator[str]:
    """A sentence on each thing that is wrong with the times, by how long the videos' features are."""
    rows = ((number, *sorted(found[1:])) for number, video in enumerate(videos) for found in video.annotations)
    number_N, start_s_N, end_s_N = np.fromiter(rows, np.dtype((float, 3))).T
    ends_s = np.fromiter((length.covered_s + 2 * length.snippet_s for length in lengths), float)
    ends = measure_ends(number_N.astype(int), start_s_N, end_s_N, ends_s)
    yield from ends.say("instance", COVERED, min(length.fps for length in lengths))
    if told := say_reversed(videos):
        yield f"{told}. Their labels are trained on, and {MEASURED[on_bad]}."


def say_reversed(videos: Iterable[AnnotatedVideo]) -> str:
    """How many instances end before they start, and where; nothing where none does."""
    found = [(video.id, instance) for video in videos for instance in video.annotations if instance.is_reversed]
    some = ", ".join(f"{label!r} at [{start:g}, {end:g}] in {video}" for video, (label, start, end) in found[:3])
    return f"Instances that end before they start: {len(found):,} ({some}{', ...' * (len(found) > 3)})" if found else ""


def parse_videos(
    source: Path, entries: Iterable[tuple[str, Entry]], parse: Callable[[str, Entry], AnnotatedVideo]
) -> list[AnnotatedVideo]:
    """Each video of a ground truth, from its name and what stands there about it; all that is wrong is told together.

    `parse` raises errors whose subject is the video.
    """
    videos: dict[str, AnnotatedVideo] = {}
    problems = []
    for video, entry in ((name.strip(), entry) for name, entry in entries):  # blanks around it are nobody's intention
        try:
            if video in videos:
                raise InputError("is there twice, but for blanks around its name: keep one.")
            videos[video] = parse(video, entry)
        except (InputError, TypeError, ValueError) as error:
            problems.append(f"{source}: video {video!r} {error}")
    refuse(problems, f"{source}: {len(problems):,} videos of the ground truth cannot be used:")
    return list(videos.values())


def parse_instance(label: str, start: Any, end: Any) -> Instance:
    """An instance of two numbers or their texts; InputError, with the video for its subject, for others."""
    start_s, end_s = _parse_number(start), _parse_number(end)
    if start_s is None or end_s is None:
        raise InputError(
            f"has a {label!r} at {shown([start, end])}; start and end must be finite numbers of seconds, to {MOST_S:g}."
        )
    return Instance(label.strip(), start_s, end_s)


def parse_positive(name: str, value: Any) -> float | None:
    """A number above 0, or None for None."""
    if value is None:
        return None
    number = _parse_number(value)
    if number is None or number <= 0:
        raise InputError(f"has {name} {shown(value)}; it must be a number above 0, to {MOST_S:g}, or left out.")
    return number


def _parse_number(value: Any) -> float | None:
    """A number to reckon with, also from its text: BaS-Net's release of THUMOS14 writes its seconds as strings."""
    if isinstance(value, bool) or not isinstance(value, float | int | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= MOST_S else None
