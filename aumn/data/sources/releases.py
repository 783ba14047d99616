"""A release of features as it was published: in which layout, and where each video's streams lie.

Folders, archives and names inside archives count alike: `rgb/VIDEO` may be an array of rgb_val.h5 or of i3d-rgb/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aumn.data.problems import refuse
from aumn.data.sources.containers import Containers, Place, list_arrays
from aumn.records import InputError

STREAMS = ("rgb", "flow")
JOINT = "joint"
LAYOUTS = {
    "folders": "rgb/VIDEO and flow/VIDEO",
    "suffixes": "VIDEO_rgb and VIDEO_flow",
    JOINT: "one array VIDEO with the streams' columns side by side",
    "wtalc": "one file of joint arrays, named by the annotation folder's videoname.npy",
}

Places = dict[str, dict[str, tuple[Place, ...]]]  # video -> stream, or JOINT -> its array, or its crops' arrays
Parts = tuple[str, ...]
Words = dict[str, str]  # what names have in lower case -> the stream that it stands for
_NOT_FEATURES = re.compile(r"(^|[_.-])(fps|timestamps_ms|stride_frames)$")  # what extractors leave beside features
_WORD_ENDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # RGBTest is rgb, test
_ENDING = re.compile(r"\.(mp4|avi|mkv|webm|mov|mpe?g|m4v)$", re.IGNORECASE)
_CROP = re.compile(r"(.+)__(\d)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Naming:
    """What a user says of the arrays' names; see PackOptions."""

    layout: str | None
    words: Words
    prefix: str
    suffix: str
    crops: str | None


@dataclass(frozen=True, slots=True)
class Release:
    """Where everything is."""

    path: Path
    layout: str  # one of LAYOUTS
    was_found: bool  # by looking, since nobody named it
    places: Places
    renamed: tuple[str, str, int] | None = None  # an array's name, the video it was taken for, and how many are so


def parse_streams(text: str | None) -> Words:
    """Read `rgb=RGB,flow=OF`; without, the streams' own names are the words."""
    pairs = [part.strip().partition("=") for part in (text or "rgb=rgb,flow=flow").split(",")]
    words = {word.lower(): stream for stream, _, word in pairs if word}
    if sorted(words.values()) != sorted(STREAMS):
        raise InputError(f"{text!r} does not name the streams' folders or endings: give --streams rgb=RGB,flow=OF.")
    return words


def find_release(
    path: Path, containers: Containers, naming: Naming, videos: Collection[str], *, is_wtalc: bool
) -> Release:
    """Look at the arrays' names and say which layout they follow; a layout is named where looking does not tell.

    `videos` are the annotated ones, by which an array is known, whatever stands around a video's name; in the order of
    W-TALC's arrays if they are of its folder.
    """
    layout = naming.layout
    if layout is not None and layout not in LAYOUTS:
        *names_of, last = LAYOUTS
        raise InputError(f"There is no layout {layout!r}: choose {', '.join(names_of)} or {last}.")
    if not path.exists():
        raise InputError(f"There are no features at {path}: give their folder, archive or W-TALC file.")
    if path.is_file() and path.suffix == ".npy":
        places = _wtalc_places(path, containers, list(videos) if is_wtalc else None)
        return Release(path, "wtalc", layout is None, places)
    arrays = [(parts, place) for parts, place in list_arrays(path, containers) if not _NOT_FEATURES.search(parts[-1])]
    if not arrays or layout == "wtalc":
        raise InputError(f"{path} holds no features{' in one .npy file' * (layout == 'wtalc')}: give what holds them.")
    chosen = layout or _look(path, [parts for parts, _ in arrays], naming.words)
    named = [(name, place) for parts, place in arrays if (name := _READERS[chosen](parts, naming.words))]
    found = {stream for (_, stream), _ in named}
    missing = [stream for stream in STREAMS if stream not in found and chosen != JOINT]
    if missing:
        raise InputError(
            f"{path} holds no {' and no '.join(missing)} features (layout {chosen!r}: {LAYOUTS[chosen]}): both "
            "streams are needed; where they have other names, give --streams rgb=NAME,flow=NAME; where one array holds "
            "both, give --layout joint."
        )
    return _gather(path, chosen, named, naming, videos)


def _look(path: Path, names: Sequence[Parts], words: Words) -> str:
    """The layout that all names follow; where only some do, or one of them would be cut in two, none is guessed."""
    streams = _propose_streams(names)
    for layout in ("folders", "suffixes"):
        fitting = [parts for parts in names if _READERS[layout](parts, words)]
        if len(fitting) == len(names):
            return layout
        if fitting:
            other = next(parts for parts in names if not _READERS[layout](parts, words))
            raise InputError(
                f"{path}: {len(fitting):,} of {len(names):,} arrays are named as layout {layout!r} has it, such as "
                f"{'/'.join(fitting[0])!r}, and others not, such as {'/'.join(other)!r}: take the others out, name "
                f"the layout with --layout, one of {', '.join(LAYOUTS)}, or the streams with "
                f"{streams or '--streams rgb=NAME,flow=NAME'}."
            )
    if streams:
        raise InputError(f"{path} has every video in two folders, and neither is named rgb or flow: give {streams}.")
    if not any(JOINT in _words(name) for name in {path.name, *(part for parts in names for part in parts[:-1])}):
        raise InputError(
            f"{path} has one array a video, such as {'/'.join(names[0])!r}: give --layout joint if it holds both "
            "streams' columns side by side, and --joint flow,rgb or --joint rgb=WIDTH,flow=WIDTH if they are not two "
            "halves, RGB first; a single stream cannot be packed, since the network needs both."
        )
    return JOINT


def _propose_streams(names: Sequence[Parts]) -> str | None:
    """The option that names the streams' folders, where two folders at one depth hold arrays of the same names."""
    for depth in range(min(map(len, names)) - 1):
        below: dict[str, set[Parts]] = {}
        for parts in names:
            below.setdefault(parts[depth], set()).add(parts[:depth] + parts[depth + 1 :])
        if len(below) == 2 and set.intersection(*below.values()):
            first, second = sorted(below, key=lambda name: ("rgb" not in name.lower(), "flow" in name.lower(), name))
            is_told = "rgb" in first.lower() or "flow" in second.lower()
            return f"--streams rgb={first},flow={second}{'' if is_told else ', or the other way round'}"
    return None


def _words(name: str) -> set[str]:
    return {word.lower() for word in (name, *_WORD_ENDS.split(name))}


def _by_folder(parts: Parts, words: Words) -> tuple[Parts, str] | None:
    for index, part in enumerate(parts[:-1]):
        streams = {words[word] for word in _words(part) & words.keys()}
        if len(streams) == 1:
            return parts[:index] + parts[index + 1 :], streams.pop()
    return None


def _by_suffix(parts: Parts, words: Words) -> tuple[Parts, str] | None:
    ends = "|".join(map(re.escape, words))
    found = re.fullmatch(rf"(.+)[/_.-]({ends})", "/".join(parts), re.IGNORECASE | re.DOTALL)
    return (tuple(found[1].split("/")), words[found[2].lower()]) if found else None


_READERS: dict[str, Callable[[Parts, Words], tuple[Parts, str] | None]] = {
    "folders": _by_folder,
    "suffixes": _by_suffix,
    JOINT: lambda parts, _: (parts, JOINT),
}


def _gather(
    path: Path, layout: str, named: Sequence[tuple[tuple[Parts, str], Place]], naming: Naming, videos: Collection[str]
) -> Release:
    known = {_ENDING.sub("", video): video for video in videos} | {video: video for video in videos}
    found: dict[str, dict[str, dict[str, Place]]] = {}  # video -> stream -> crop -> its array
    problems, renamed = [], []
    for (parts, stream), place in named:
        video, crop = _identify(parts, naming, known)
        crops = found.setdefault(video, {}).setdefault(stream, {})
        if crops.setdefault(crop, place) != place:
            problems.append(f"{path}: {crops[crop]} and {place} are both {stream} of {video!r}: keep one.")
        if (name := "/".join(parts)) != video:
            renamed.append((name, video))
    refuse(problems, f"{len(problems):,} videos in {path} have two arrays for one stream:")
    places = {
        video: {stream: chosen for stream, crops in streams.items() if (chosen := _choose_crops(path, crops, naming))}
        for video, streams in found.items()
    }
    return Release(path, layout, naming.layout is None, places, (*min(renamed), len(renamed)) if renamed else None)


def _identify(parts: Parts, naming: Naming, known: Mapping[str, str]) -> tuple[str, str]:
    """The annotated video that an array is of, by its whole name or the longest part of it, and which crop of it."""
    spans = [parts[a : a + size] for size in range(len(parts), 0, -1) for a in range(len(parts) - size, -1, -1)]
    for name in map("/".join, spans):
        bare = name.removeprefix(naming.prefix).removesuffix(naming.suffix)
        crop = _CROP.fullmatch(bare)
        for candidate, number in ((bare, ""), (crop[1], crop[2]) if crop else (bare, "")):
            for text in (candidate, _ENDING.sub("", candidate)):
                if text in known:
                    return known[text], number
    return "/".join(parts), ""


def _choose_crops(path: Path, crops: dict[str, Place], naming: Naming) -> tuple[Place, ...]:
    """The arrays of one video's stream whose mean is its features: one, but for the mean of its crops."""
    if crops.keys() == {""}:
        return (crops[""],)
    if naming.crops is None:
        raise InputError(
            f"{path} has several crops of a video, such as {next(iter(crops.values()))}: give --crops mean, --crops "
            "centre, which is __0 as in XD-Violence, or the number of one."
        )
    if naming.crops == "mean":
        return tuple(crops[crop] for crop in sorted(crops))
    crop = "0" if naming.crops == "centre" else naming.crops
    return (crops[crop],) if crop in crops else ()


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
    return {video: {JOINT: (Place(str(path), number),)} for video, number in zip(names, numbers, strict=True)}


def read_fact(release: Release, fact: str, containers: Containers) -> float | None:
    """What archives tell of all their arrays, `fps` or `stride_frames`, as an attribute or scalar; they must agree."""
    arrays = (places for streams in release.places.values() for places in streams.values())
    files = {place.file for places in arrays for place in places if place.member is not None}
    told = {number for file in files if (number := containers.archive(file).fact(fact)) is not None}
    if len(told) > 1 or not all(0 < number < math.inf for number in told):
        shown, option = ", ".join(f"{number:g}" for number in sorted(told)), fact.replace("_", "-")
        raise InputError(
            f"{release.path}: its archives tell {fact} as {shown}; it must be one number above 0: give --{option}."
        )
    return told.pop() if told else None
