"""A release of features as it was published: in which layout, and where each video's streams lie.

Folders, archives and names inside archives count alike: `rgb/VIDEO` may be an array of rgb_val.h5 or of i3d-rgb/.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.columns import Texts
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


class Arrays(Sequence[Parts]):
    """The names of a release's arrays, cut at folders, suffixes left out; made of texts when they are looked at.

    A folder's archives count as folders: the array VIDEO in `rgb_val.h5` has the parts ("rgb_val", "VIDEO").
    """

    def __init__(self, path: Path, found: Iterable[tuple[str, str | None]]) -> None:
        self._path, self._archives = path, dict[str, int]()
        self._root = "" if str(path) == "." else os.path.join(path, "")
        self._texts, self._archive_A = Texts(), array("i")  # the archive of a member, or -1: the text is a file's
        for file, member in found:
            if not _NOT_FEATURES.search(self._cut(file, member)[-1]):
                is_in = member is not None
                self._archive_A.append(self._archives.setdefault(file, len(self._archives)) if is_in else -1)
                self._texts.append(file if member is None else member)
        self._files = [*self._archives]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        return self._cut(*self._found(index))

    def place(self, index: int) -> Place:
        """Where an array is."""
        file, member = self._found(index)
        return Place(self._root + file if file else str(self._path), member)

    def archives(self, indices: np.ndarray) -> set[str]:
        """Those that hold some of the arrays."""
        found = np.unique(np.array(self._archive_A, np.int32)[indices])
        return {str(self._path / self._files[archive]) for archive in found if archive >= 0}

    def _found(self, index: int) -> tuple[str, str | None]:
        text, archive = self._texts[index], self._archive_A[index]
        return (text, None) if archive < 0 else (self._files[archive], text)

    def _cut(self, file: str, member: str | None) -> Parts:
        parts = file[: file.rindex(".")].split("/") if file else ()
        return (*parts, *filter(None, (member or "").split("/"))) or ((self._path / file).stem,)


@dataclass(frozen=True, slots=True)
class Places:
    """Where each video's arrays are, as columns: rows P of one array, in the order of their videos.

    Videos have numbers, which index `names`: the annotated ones in their order, and then others that were found.
    """

    arrays: Arrays
    streams: Sequence[str]  # of which JOINT is one
    names: Sequence[str]
    annotated: int
    is_found_V: np.ndarray
    first_V: np.ndarray  # a video's first row, and behind the last one's the count of rows
    stream_P: np.ndarray
    index_P: np.ndarray  # of its array, or of its crops' arrays

    def of(self, video: int) -> dict[str, tuple[int, ...]]:
        """Stream, or JOINT -> indices of its array, or of its crops' arrays; streams in the order they were found."""
        first, last = self.first_V[video], self.first_V[video + 1]
        found: dict[str, tuple[int, ...]] = {}
        for code, index in zip(self.stream_P[first:last].tolist(), self.index_P[first:last].tolist(), strict=True):
            stream = self.streams[code]
            found[stream] = (*found.get(stream, ()), index)
        return dict(sorted(found.items(), key=lambda item: min(item[1])))

    def found(self, *, annotated: bool) -> np.ndarray:
        """The numbers of the annotated videos, or of the others, of which there is anything."""
        is_annotated_V = np.arange(len(self.names)) < self.annotated
        return np.flatnonzero(self.is_found_V & (is_annotated_V == annotated))


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
    path: Path, containers: Containers, naming: Naming, videos: Mapping[str, int], *, is_wtalc: bool
) -> Release:
    """Look at the arrays' names and say which layout they follow; a layout is named where looking does not tell.

    `videos` are the annotated ones and their numbers, in order, by which an array is known, whatever stands around a
    video's name; in the order of W-TALC's arrays if they are of its folder.
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
        places = _wtalc_places(path, containers, [*videos] if is_wtalc else None)
        return Release(path, "wtalc", layout is None, places, in_order(joint), joint, words)
    arrays = Arrays(path, list_arrays(path, containers))
    if not len(arrays) or layout == "wtalc":
        raise InputError(f"{path} holds no features{' in one .npy file' * (layout == 'wtalc')}: give what holds them.")
    chosen, words = (layout, words) if layout else _look(path, arrays, words, is_told=naming.words is not None)
    if chosen == SINGLE and len(words) > 1:
        raise InputError(f"{path}: layout {SINGLE!r} is of one stream: name it, as in --streams rgb.")
    stream_A = _read_names(chosen, arrays, words)
    there = {_streams(words)[code] for code in np.unique(stream_A) if code >= 0}
    found = in_order(joint if chosen == JOINT else [stream for stream in words.values() if stream in there])
    missing = [stream for stream in words.values() if stream not in found and chosen != JOINT]
    if missing and (naming.words or not found):
        raise InputError(
            f"{path} holds no {' and no '.join(missing)} features (layout {chosen!r}: "
            f"{say_layout(chosen, words.values())}): where they have other names, give --streams "
            f"{','.join(f'{stream}=NAME' for stream in words.values())}; where one array holds all, --layout joint."
        )
    beside = {word: len(more) for word, more in _find_beside(chosen, arrays, stream_A, words).items()}
    was_found = layout is None and not (chosen == SINGLE and naming.words)
    places, renamed = _gather(arrays, stream_A, videos, naming, path=path, layout=chosen, words=words)
    return Release(path, chosen, was_found, places, found, joint, words, beside, renamed)


def _streams(words: Words) -> list[str]:
    """What `_read_names` numbers."""
    return [*words.values(), JOINT]


def _look(path: Path, names: Arrays, words: Words, *, is_told: bool) -> tuple[str, Words]:
    """The layout that all names follow, and the words of its streams; none is guessed where only some follow one, and
    no array is cut in two.
    """
    if WHOLE in words:
        return SINGLE, words
    for layout in ("folders", "suffixes"):
        stream_A = _read_names(layout, names, words)
        fitting_A, others_A = np.flatnonzero(stream_A >= 0), np.flatnonzero(stream_A < 0)
        if not len(fitting_A):
            continue
        beside = _find_beside(layout, names, stream_A, words)
        has_all = is_told or len(np.unique(stream_A[fitting_A])) == len(words)
        if not len(others_A) or (has_all and set().union(*beside.values()).issuperset(others_A.tolist())):
            return layout, words
        first = int(fitting_A[0])
        alone = f", or take that stream alone with --streams {_streams(words)[stream_A[first]]}" * bool(beside)
        raise InputError(
            f"{path}: {len(fitting_A):,} of {len(names):,} arrays are named as layout {layout!r} has it, such as "
            f"{'/'.join(names[first])!r}, and others not, such as {'/'.join(names[int(others_A[0])])!r}: take the "
            f"others out, name the layout with --layout, one of {', '.join(LAYOUTS)}, or the streams with "
            f"{_propose_streams(names) or '--streams rgb=NAME,flow=NAME'}{alone}."
        )
    if streams := _propose_streams(names):
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


def _read_names(layout: str, names: Arrays, words: Words) -> np.ndarray:
    """The number of each array's stream among `_streams`; -1 where the name does not follow the layout."""
    code, read = {stream: number for number, stream in enumerate(_streams(words))}, _READERS[layout]
    return np.fromiter((code[found[1]] if (found := read(parts, words)) else -1 for parts in names), np.int8)


def _find_beside(layout: str, names: Arrays, stream_A: np.ndarray, words: Words) -> dict[str, list[int]]:
    """What stands where a stream's word would in other arrays, of the same videos: more streams, perhaps."""
    under: dict[str, list[tuple[int, Parts]]] = {}
    for index in np.flatnonzero(stream_A < 0).tolist():
        parts = names[index]
        if layout == "folders":
            cuts = [(part, parts[:place] + parts[place + 1 :]) for place, part in enumerate(parts[:-1])]
        else:
            ends = re.fullmatch(r"(.+)[/_.-]([^/_.-]+)", "/".join(parts), re.DOTALL)
            cuts = [(ends[2], tuple(ends[1].split("/")))] if ends else []
        for word, video in cuts:
            under.setdefault(word, []).append((index, video))
    if not under:
        return {}
    asked = {video for of in under.values() for _, video in of}
    fitting = (_READERS[layout](names[index], words) for index in np.flatnonzero(stream_A >= 0).tolist())
    videos = {found[0] for found in fitting if found and found[0] in asked}
    return {word: [index for index, _ in of] for word, of in under.items() if any(video in videos for _, video in of)}


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


@lru_cache(1024)
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
    arrays: Arrays,
    stream_A: np.ndarray,
    videos: Mapping[str, int],
    naming: Naming,
    *,
    path: Path,
    layout: str,
    words: Words,
) -> tuple[Places, tuple[str, str, int] | None]:
    """The places, and what `Release.renamed` tells."""
    names = [*videos]
    bare = {text: number for number, video in enumerate(names) if (text := _ENDING.sub("", video)) != video}
    known = bare | dict(videos) if bare else videos
    others: dict[str, int] = {}
    video_A, crop_A = np.zeros(len(arrays), np.int32), np.zeros(len(arrays), np.uint32)
    renamed: tuple[str, str] | None = None
    count = 0
    for index, parts in enumerate(arrays):
        if stream_A[index] < 0:
            continue
        found = _READERS[layout](parts, words)
        assert found
        name = "/".join(found[0])
        number, crop = _identify(found[0], naming, known)
        if number is None:
            number = others.setdefault(name, len(videos) + len(others))
        elif name != names[number]:
            renamed = min(renamed or (name, names[number]), (name, names[number]))
            count += 1
        video_A[index], crop_A[index] = number, ord(crop) if crop else 0
    names += others
    is_found_V = np.zeros(len(names), bool)
    is_found_V[video_A[stream_A >= 0]] = True
    streams = _streams(words)
    index_P = np.lexsort((crop_A, stream_A, video_A))
    index_P = index_P[stream_A[index_P] >= 0]
    key_P, crop_P = video_A[index_P].astype(np.int64) * len(streams) + stream_A[index_P], crop_A[index_P]
    is_kept_P = np.r_[True, (np.diff(key_P) != 0) | (crop_P[1:] != crop_P[:-1])]
    problems: dict[int, str] = {}
    for row in np.flatnonzero(~is_kept_P).tolist():
        first = arrays.place(int(index_P[np.flatnonzero(is_kept_P[:row])[-1]]))
        if (place := arrays.place(int(index_P[row]))) != first:
            stream, video = streams[key_P[row] % len(streams)], names[key_P[row] // len(streams)]
            problems[int(index_P[row])] = f"{path}: {first} and {place} are both {stream} of {video!r}: keep one."
    refuse(
        [problems[index] for index in sorted(problems)],
        f"{len(problems):,} videos in {path} have two arrays for one stream:",
    )
    rows = (column_P[is_kept_P] for column_P in (key_P, index_P, crop_P))
    is_kept_P[is_kept_P] = _choose_crops(arrays, *rows, path=path, naming=naming)
    index_P = index_P[is_kept_P].astype(np.int32)
    first_V = np.searchsorted(video_A[index_P], np.arange(len(names) + 1)).astype(np.int32)
    places = Places(arrays, streams, names, len(videos), is_found_V, first_V, stream_A[index_P], index_P)
    return places, (*renamed, count) if renamed else None


def _identify(parts: Parts, naming: Naming, known: Mapping[str, int]) -> tuple[int | None, str]:
    """The annotated video that an array is of, by its whole name or the longest part of it, and which crop of it."""
    spans = [parts[a : a + size] for size in range(len(parts), 0, -1) for a in range(len(parts) - size, -1, -1)]
    for name in map("/".join, spans):
        bare = name.removeprefix(naming.prefix).removesuffix(naming.suffix)
        crop = _CROP.fullmatch(bare)
        for candidate, number in ((bare, ""), (crop[1], crop[2]) if crop else (bare, "")):
            for text in (candidate, _ENDING.sub("", candidate)):
                if text in known:
                    return known[text], number
    return None, ""


def _choose_crops(
    arrays: Arrays, key_P: np.ndarray, index_P: np.ndarray, crop_P: np.ndarray, *, path: Path, naming: Naming
) -> np.ndarray:
    """The rows whose arrays' mean is the features of one video's stream: one, but for the mean of its crops."""
    is_crop_P = np.isin(key_P, key_P[crop_P > 0])
    if not is_crop_P.any() or naming.crops == "mean":
        return np.ones(len(key_P), bool)
    if naming.crops is None:
        first = arrays.place(int(index_P[is_crop_P].min()))
        raise InputError(
            f"{path} has several crops of a video, such as {first}: give --crops mean, --crops "
            "centre, which is __0 as in XD-Violence, or the number of one."
        )
    wanted = "0" if naming.crops == "centre" else naming.crops
    is_wanted_P: np.ndarray = ~is_crop_P | ((crop_P == ord(wanted[0])) & (len(wanted) == 1))
    return is_wanted_P


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
    count = len(names)
    arrays, first_V = Arrays(path, (("", number) for number in numbers)), np.arange(count + 1)
    return Places(arrays, [JOINT], names, count, np.ones(count, bool), first_V, np.zeros(count, int), first_V[:-1])


def read_fact(release: Release, fact: str, containers: Containers) -> float | None:
    """What archives tell of all their arrays, `fps` or `stride_frames`, as an attribute or scalar; they must agree."""
    files = release.places.arrays.archives(release.places.index_P)
    told = {number for file in files if (number := containers.archive(file).fact(fact)) is not None}
    if len(told) > 1 or not all(0 < number < math.inf for number in told):
        shown, option = ", ".join(f"{number:g}" for number in sorted(told)), fact.replace("_", "-")
        raise InputError(
            f"{release.path}: its archives tell {fact} as {shown}; it must be one number above 0: give --{option}."
        )
    return told.pop() if told else None
