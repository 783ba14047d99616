"""A release of features as it was published: in which layout, and where each video's streams lie.

Folders, archives and names inside archives count alike: `rgb/VIDEO` may be an array of rgb_val.h5 or of i3d-rgb/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from aumn.data.problems import refuse
from aumn.data.sources.containers import Containers, Place, list_arrays
from aumn.data.sources.streams import USUAL, WHOLE, Joint, Words, in_order, say_streams
from aumn.records import MOST_STREAMS, VIDEO_ENDINGS, InputError

JOINT, SINGLE = "joint", "single"
LAYOUTS = {
    "folders": "{}/VIDEO",
    "suffixes": "VIDEO_{}",
    SINGLE: "one array VIDEO, all of it {}",
    JOINT: "one array VIDEO with the streams' columns side by side",
    "wtalc": "one file of joint arrays, named by the annotation folder's videoname.npy",
}
"""What arrays are named; {} is a stream."""

Places = dict[str, dict[str, tuple[Place, ...]]]  # video -> stream, or JOINT -> its array, or its crops' arrays
Parts = tuple[str, ...]
_NOT_FEATURES = re.compile(r"(^|[_.-])(fps|timestamps_ms|stride_frames)$")  # what extractors leave beside features
_WORD_ENDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # RGBTest is rgb, test
_ENDING = re.compile(rf"({'|'.join(re.escape(end) for end in (*VIDEO_ENDINGS, '.npy'))})+$", re.IGNORECASE)
_CROP = re.compile(r"(.+)__(\d)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Naming:
    """What a user says of the arrays' names; see PackOptions."""

    layout: str | None
    words: Words | None
    joint: Joint | None
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
    streams: tuple[str, ...]
    joint: Joint  # how the streams share an array's columns, where they do
    words: Words
    beside: Mapping[str, int] = field(default_factory=dict)  # what might be more streams -> its arrays
    renamed: tuple[str, str, int] | None = None  # an array's name, the video it was taken for, and how many are so


def say_layout(layout: str, streams: Collection[str]) -> str:
    """What the arrays of such a release are named."""
    *first, last = (LAYOUTS[layout].format(stream) for stream in streams)
    return f"{', '.join(first)} and {last}" if "{}" in LAYOUTS[layout] and first else last


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
    words = naming.words or USUAL
    joint = naming.joint or dict.fromkeys(words.values())
    if path.is_file() and path.suffix == ".npy":
        places = _wtalc_places(path, containers, list(videos) if is_wtalc else None)
        return Release(path, "wtalc", layout is None, places, in_order(joint), joint, words)
    arrays = [(parts, place) for parts, place in list_arrays(path, containers) if not _NOT_FEATURES.search(parts[-1])]
    if not arrays or layout == "wtalc":
        raise InputError(f"{path} holds no features{' in one .npy file' * (layout == 'wtalc')}: give what holds them.")
    names = [parts for parts, _ in arrays]
    chosen, words = (layout, words) if layout else _look(path, names, words, is_told=naming.words is not None)
    if chosen == SINGLE and len(words) > 1:
        raise InputError(f"{path}: layout {SINGLE!r} is of one stream: name it, as in --streams rgb.")
    fitting = _read_names(chosen, names, words)
    there = {stream for _, stream in fitting.values()}
    found = in_order(joint if chosen == JOINT else [stream for stream in words.values() if stream in there])
    missing = [stream for stream in words.values() if stream not in found and chosen != JOINT]
    if missing and (naming.words or not found):
        raise InputError(
            f"{path} holds no {' and no '.join(missing)} features (layout {chosen!r}: "
            f"{say_layout(chosen, words.values())}): where they have other names, give --streams "
            f"{','.join(f'{stream}=NAME' for stream in words.values())}; where one array holds all, --layout joint."
        )
    beside = {word: len(more) for word, more in _find_beside(chosen, names, fitting).items()}
    named = [(fitting[parts], place) for parts, place in arrays if parts in fitting]
    was_found = layout is None and not (chosen == SINGLE and naming.words)
    return _gather(Release(path, chosen, was_found, {}, found, joint, words, beside), named, naming, videos)


def _look(path: Path, names: Sequence[Parts], words: Words, *, is_told: bool) -> tuple[str, Words]:
    """The layout that all names follow, and the words of its streams; none is guessed where only some follow one, and
    no array is cut in two.
    """
    if WHOLE in words:
        return SINGLE, words
    streams = _propose_streams(names)
    for layout in ("folders", "suffixes"):
        fitting = _read_names(layout, names, words)
        others = [parts for parts in names if parts not in fitting]
        beside = _find_beside(layout, names, fitting)
        has_all = is_told or len({stream for _, stream in fitting.values()}) == len(words)
        if fitting and (not others or (has_all and set().union(*beside.values()).issuperset(others))):
            return layout, words
        if fitting:
            alone = f", or take that stream alone with --streams {next(iter(fitting.values()))[1]}" * bool(beside)
            raise InputError(
                f"{path}: {len(fitting):,} of {len(names):,} arrays are named as layout {layout!r} has it, such as "
                f"{'/'.join(next(iter(fitting)))!r}, and others not, such as {'/'.join(others[0])!r}: take the others "
                f"out, name the layout with --layout, one of {', '.join(LAYOUTS)}, or the streams with "
                f"{streams or '--streams rgb=NAME,flow=NAME'}{alone}."
            )
    if streams:
        raise InputError(
            f"{path} has every video in several folders, and none is named {' or '.join(words)}: give {streams}."
        )
    if is_told and len(words) == 1 and [*words] == [*words.values()]:
        return SINGLE, words  # it has a name, and no place
    above = {path.name, *(part for parts in names for part in parts[:-1])}
    if any(JOINT in _words(name) for name in above):
        return JOINT, words
    if is_told:
        return "folders", words
    if len(told := _words(path.name) & words.keys()) == 1:
        return SINGLE, {word: words[word] for word in told}
    raise InputError(
        f"{path} has one array a video, such as {'/'.join(names[0])!r}: give --streams rgb, or another name, if it is "
        "one stream, or --layout joint if it holds the columns of rgb and flow side by side (--joint flow,rgb or "
        "--joint rgb=WIDTH,flow=WIDTH if they are not two halves, RGB first)."
    )


def _read_names(layout: str, names: Sequence[Parts], words: Words) -> dict[Parts, tuple[Parts, str]]:
    """The video and the stream of every array whose name follows the layout."""
    return {parts: found for parts in names if (found := _READERS[layout](parts, words))}


def _find_beside(
    layout: str, names: Sequence[Parts], fitting: Mapping[Parts, tuple[Parts, str]]
) -> dict[str, list[Parts]]:
    """What stands where a stream's word would in other arrays, of the same videos: more streams, perhaps."""
    videos = {video for video, _ in fitting.values()}
    under: dict[str, list[tuple[Parts, Parts]]] = {}
    for parts in names:
        if parts in fitting:
            continue
        if layout == "folders":
            cuts = [(part, parts[:index] + parts[index + 1 :]) for index, part in enumerate(parts[:-1])]
        else:
            ends = re.fullmatch(r"(.+)[/_.-]([^/_.-]+)", "/".join(parts), re.DOTALL)
            cuts = [(ends[2], tuple(ends[1].split("/")))] if ends else []
        for word, video in cuts:
            under.setdefault(word, []).append((parts, video))
    return {word: [parts for parts, _ in of] for word, of in under.items() if any(video in videos for _, video in of)}


def _propose_streams(names: Sequence[Parts]) -> str | None:
    """The option that names the streams' folders, where several at one depth hold arrays of the same names."""
    for depth in range(min(map(len, names)) - 1):
        below: dict[str, set[Parts]] = {}
        for parts in names:
            below.setdefault(parts[depth], set()).add(parts[:depth] + parts[depth + 1 :])
        if not 2 <= len(below) <= MOST_STREAMS or not set.intersection(*below.values()):
            continue
        first, *rest = sorted(below, key=lambda name: ("rgb" not in name.lower(), "flow" in name.lower(), name))
        if len(rest) > 1:
            return say_streams({}, (first, *rest))
        is_told = "rgb" in first.lower() or "flow" in rest[0].lower()
        return f"--streams rgb={first},flow={rest[0]}{'' if is_told else ', or the other way round'}"
    return None


def _words(name: str) -> set[str]:
    return {word.lower() for word in (name, *_WORD_ENDS.split(name))}


def _by_folder(parts: Parts, words: Words) -> tuple[Parts, str] | None:
    for index, part in enumerate(parts[:-1]):
        found = _words(part) & words.keys()
        streams = {words[word] for word in found & {part.lower()} or found}  # the whole name, before parts of it
        if len(streams) == 1:
            return parts[:index] + parts[index + 1 :], streams.pop()
    return None


def _by_suffix(parts: Parts, words: Words) -> tuple[Parts, str] | None:
    ends = "|".join(map(re.escape, words))
    found = re.fullmatch(rf"(.+?)[/_.-]({ends})", "/".join(parts), re.IGNORECASE | re.DOTALL)
    return (tuple(found[1].split("/")), words[found[2].lower()]) if found else None


_READERS: dict[str, Callable[[Parts, Words], tuple[Parts, str] | None]] = {
    "folders": _by_folder,
    "suffixes": _by_suffix,
    SINGLE: lambda parts, words: (parts, next(iter(words.values()))),
    JOINT: lambda parts, _: (parts, JOINT),
}


def _gather(
    release: Release, named: Sequence[tuple[tuple[Parts, str], Place]], naming: Naming, videos: Collection[str]
) -> Release:
    """The release with its places."""
    path = release.path
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
    return replace(release, places=places, renamed=(*min(renamed), len(renamed)) if renamed else None)


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
