"""A release of features as it was published: in which layout, and where each video's streams lie.

Folders, archives and names inside archives count alike: `rgb/VIDEO` may be an array of rgb_val.h5 or of i3d-rgb/.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aumn.data.problems import refuse
from aumn.data.sources.containers import ARCHIVE_SUFFIXES, Containers, Place, list_arrays
from aumn.records import InputError

STREAMS = ("rgb", "flow")
JOINT = "joint"
LAYOUTS = {
    "folders": "rgb/VIDEO and flow/VIDEO",
    "suffixes": "VIDEO_rgb and VIDEO_flow",
    JOINT: "one array VIDEO with the streams' columns side by side",
    "wtalc": "one file of joint arrays, named by the annotation folder's videoname.npy",
}

Places = dict[str, dict[str, Place]]  # video -> stream, or JOINT -> its array
Parts = tuple[str, ...]
Named = tuple[str, str]  # a video, and one of its streams
_NOT_FEATURES = re.compile(r"(^|[_.-])(fps|timestamps_ms|stride_frames)$")  # what extractors leave beside features


@dataclass(frozen=True, slots=True)
class Release:
    """Where everything is."""

    path: Path
    layout: str  # one of LAYOUTS
    was_found: bool  # by looking, since nobody named it
    places: Places


def find_release(
    path: Path, containers: Containers, *, layout: str | None, names: Sequence[str] | None, prefix: str
) -> Release:
    """Look at the arrays' names and say which layout they follow; `layout` names it where looking does not tell.

    `names` are the videos in the order of W-TALC's arrays. `prefix` is what arrays' names have before the videos'.
    """
    if layout is not None and layout not in LAYOUTS:
        *names_of, last = LAYOUTS
        raise InputError(f"There is no layout {layout!r}: choose {', '.join(names_of)} or {last}.")
    if not path.exists():
        raise InputError(f"There are no features at {path}: give their folder, archive or W-TALC file.")
    if path.is_file() and path.suffix == ".npy":
        return Release(path, "wtalc", layout is None, _wtalc_places(path, containers, names))
    if path.is_file() and path.suffix.lower() not in ARCHIVE_SUFFIXES:
        raise InputError(f"{path} is none of the files that hold features: .npy, {', '.join(ARCHIVE_SUFFIXES)}.")
    arrays = [(parts, place) for parts, place in list_arrays(path, containers) if not _NOT_FEATURES.search(parts[-1])]
    if not arrays:
        raise InputError(f"{path} holds no features: neither .npy files nor archives ({', '.join(ARCHIVE_SUFFIXES)}).")
    chosen = layout or _look(path, [parts for parts, _ in arrays])
    named = _name_joint(arrays) if chosen == JOINT else [(_READERS[chosen](parts), place) for parts, place in arrays]
    places = _gather(path, named, prefix)
    found = {stream for streams in places.values() for stream in streams}
    missing = [stream for stream in STREAMS if chosen != JOINT and stream not in found]
    if missing:
        raise InputError(
            f"{path} holds no {' and no '.join(missing)} features (layout {chosen!r}: {LAYOUTS[chosen]}): both "
            "streams are needed; where one array holds both, give --layout joint."
        )
    return Release(path, chosen, layout is None, places)


def _look(path: Path, names: Sequence[Parts]) -> str:
    """The layout that all names follow; where only some do, no layout is guessed."""
    for layout, read in _READERS.items():
        fitting = [parts for parts in names if read(parts)]
        if len(fitting) == len(names):
            return layout
        if fitting:
            other = next(parts for parts in names if not read(parts))
            raise InputError(
                f"{path}: {len(fitting):,} of {len(names):,} arrays are named as layout {layout!r} has it, such as "
                f"{'/'.join(fitting[0])!r}, and others not, such as {'/'.join(other)!r}: take the others out, or name "
                f"the layout with --layout, one of {', '.join(LAYOUTS)}."
            )
    return JOINT


def _by_folder(parts: Parts) -> Named | None:
    for index, part in enumerate(parts[:-1]):
        words = set(re.split(r"[_.-]", part.lower())) & set(STREAMS)
        if len(words) == 1:
            return "/".join(parts[:index] + parts[index + 1 :]), words.pop()
    return None


def _by_suffix(parts: Parts) -> Named | None:
    found = re.fullmatch(r"(.+)[/_.-](rgb|flow)", "/".join(parts), re.IGNORECASE | re.DOTALL)
    return (found[1], found[2].lower()) if found else None


_READERS: dict[str, Callable[[Parts], Named | None]] = {"folders": _by_folder, "suffixes": _by_suffix}


def _name_joint(arrays: Sequence[tuple[Parts, Place]]) -> list[tuple[Named | None, Place]]:
    """An archive of several arrays gives no part of a video's id, nor does a last part that all share: c3d_features."""
    counts = Counter(place.file for _, place in arrays)
    names = [tuple((place.member or "").split("/")) if counts[place.file] > 1 else parts for parts, place in arrays]
    shared = len(names) > 1 and len({parts[-1] for parts in names}) == 1 and all(len(parts) > 1 for parts in names)
    videos = ["/".join(parts[:-1] if shared else parts) for parts in names]
    return [((video, JOINT), place) for video, (_, place) in zip(videos, arrays, strict=True)]


def _gather(path: Path, named: Sequence[tuple[Named | None, Place]], prefix: str) -> Places:
    places: Places = {}
    problems = []
    for name, place in named:
        if name is None or not name[0].startswith(prefix):
            continue
        streams = places.setdefault(name[0].removeprefix(prefix), {})
        if streams.setdefault(name[1], place) != place:
            problems.append(f"{path}: {streams[name[1]]} and {place} are both {name[1]} of {name[0]!r}: keep one.")
    refuse(problems, f"{len(problems):,} videos in {path} have two arrays for one stream:")
    return places


def _wtalc_places(path: Path, containers: Containers, names: Sequence[str] | None) -> Places:
    numbers = containers.archive(str(path)).names()
    if names is None:
        raise InputError(
            f"{path} does not name its videos: give --annotations W-TALC's annotation folder, whose videoname.npy does."
        )
    if len(numbers) != len(names):
        raise InputError(
            f"{path} holds {len(numbers):,} arrays, and the annotation folder names {len(names):,} videos: take the "
            "folder that was released with these features."
        )
    return {video: {JOINT: Place(str(path), number)} for video, number in zip(names, numbers, strict=True)}


def read_fact(release: Release, fact: str, containers: Containers) -> float | None:
    """What archives tell of all their arrays, `fps` or `stride_frames`, as an attribute or scalar; they must agree."""
    places = (place for streams in release.places.values() for place in streams.values())
    files = {place.file for place in places if place.member is not None}
    told = {number for file in files if (number := containers.archive(file).fact(fact)) is not None}
    if len(told) > 1 or not all(0 < number < math.inf for number in told):
        shown, option = ", ".join(f"{number:g}" for number in sorted(told)), fact.replace("_", "-")
        raise InputError(
            f"{release.path}: its archives tell {fact} as {shown}; it must be one number above 0: give --{option}."
        )
    return told.pop() if told else None
