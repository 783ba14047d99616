"""Features as they were published, in any layout, checked by their headers and read: T x D a stream.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mode

import numpy as np

from aumn.data.problems import about, refuse
from aumn.data.sources.containers import Containers, Place
from aumn.data.sources.releases import JOINT, STREAMS, Release
from aumn.records import InputError

HEADER_READERS = 16  # opening files on a network's file system is waiting, not work


@dataclass(frozen=True, slots=True)
class FeatureArray:
    """One stream of one video, as found; by the file's size and time a change would be noticed."""

    place: Place
    first_column: int
    width: int
    columns: int  # of the whole array: the width, or more where it is joint
    file_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """Where one video's streams are, and the snippets to take of each, from the first."""

    video: str
    snippets: int
    streams: dict[str, FeatureArray]


Joint = dict[str, int | None]
"""How a joint array's columns are shared out: the streams in order, each with its width or, without, evenly."""


def parse_joint(text: str) -> Joint:
    """Read `rgb,flow`, or `flow=1024,rgb=2048`."""
    widths: Joint = {}
    for part in text.split(","):
        stream, _, width = part.strip().partition("=")
        widths[stream] = int(width) if width.isdecimal() and int(width) else None
        if width and widths[stream] is None:
            raise InputError(f"{text!r}: the width {width!r} of {stream} must be a whole number above 0.")
    if sorted(widths) != sorted(STREAMS) or len(set(map(bool, widths.values()))) > 1:
        raise InputError(
            f"{text!r} does not say how joint arrays hold the streams: name both in the columns' order, as in "
            "rgb,flow, or with their widths, as in rgb=2048,flow=1024."
        )
    return widths


def split_columns(joint: Joint, columns: int) -> dict[str, tuple[int, int]]:
    """First column and width of each stream; InputError, without a subject, where they do not fit."""
    widths = [width or columns // len(joint) for width in joint.values()]
    if sum(widths) != columns:
        wanted = " + ".join(map(str, widths))
        remedy = "--joint rgb=WIDTH,flow=WIDTH names the streams in the columns' order with their widths"
        raise InputError(f"has {columns} columns, which {wanted} of {' and '.join(joint)} do not fill: {remedy}.")
    return dict(zip(joint, zip((0, widths[0]), widths, strict=True), strict=True))


def check_features(
    release: Release, videos: Iterable[str], containers: Containers, *, joint: Joint, trim_streams: bool
) -> tuple[list[VideoFeatures], dict[str, int]]:
    """Check every video's arrays by their headers; the videos in the order given, and each stream's width.

    Values are checked when they are read. All bad videos are reported in one error.
    """

    def check(video: str) -> VideoFeatures | str:
        try:
            return _check_video(release, video, containers, joint, trim_streams)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(HEADER_READERS) as threads:
        checked = list(threads.map(check, videos))
    good = [outcome for outcome in checked if isinstance(outcome, VideoFeatures)]
    problems = [outcome for outcome in checked if isinstance(outcome, str)]
    widths = {stream: mode(features.streams[stream].width for features in good) for stream in STREAMS if good}
    for features in good:
        for stream, array in features.streams.items():
            if array.width != widths[stream]:
                problems.append(
                    f"{array.place} has width {array.width} where the other videos' {stream} features have "
                    f"{widths[stream]}: extract it with the same network."
                )
                break
    refuse(problems, f"{len(problems):,} videos in {release.path} cannot be packed:")
    return good, widths


def read_features(features: VideoFeatures, dtype: np.dtype, containers: Containers) -> dict[str, np.ndarray]:
    """Every stream's features, T x D in the given dtype: finite, and within the dtype's range."""
    places = {array.place for array in features.streams.values()}  # one, where the array is joint
    arrays = {place: containers.read(place) for place in places}
    return {
        stream: _take_stream(arrays[array.place], array, features.snippets, dtype)
        for stream, array in features.streams.items()
    }


def _check_video(
    release: Release, video: str, containers: Containers, joint: Joint, trim_streams: bool
) -> VideoFeatures:
    places = release.places[video]
    lengths: dict[str, int] = {}
    arrays: dict[str, FeatureArray] = {}
    for name in (JOINT,) if JOINT in places else STREAMS:
        if name not in places:
            other, place = next(iter(places.items()))
            raise InputError(
                f"{release.path} has {other} of video {video!r} ({place}) but no {name}: extract it, or leave the "
                "video out."
            )
        place = places[name]
        snippets, columns = _check_header(place, containers)
        with about(place):
            spans = split_columns(joint, columns) if name == JOINT else {name: (0, columns)}
        status = Path(place.file).stat()
        for stream, (first, width) in spans.items():
            lengths[stream] = snippets
            arrays[stream] = FeatureArray(place, first, width, columns, status.st_size, status.st_mtime_ns)
    if len(set(lengths.values())) > 1 and not trim_streams:
        counts = ", ".join(f"{length} of {stream}" for stream, length in lengths.items())
        raise InputError(
            f"{release.path}: the streams of video {video!r} differ in length ({counts} snippets): extract them alike, "
            "or give --trim-streams to cut to the shorter."
        )
    return VideoFeatures(video, min(lengths.values()), {stream: arrays[stream] for stream in STREAMS})


def _check_header(place: Place, containers: Containers) -> tuple[int, int]:
    header = containers.header(place)
    if len(header.shape) != 2:
        raise InputError(f"{place} has shape {header.shape}; features must be two-dimensional, snippets x width.")
    if header.dtype.kind != "f":
        raise InputError(f"{place} has dtype {header.dtype}; features must be floating-point numbers.")
    if 0 in header.shape:
        raise InputError(f"{place} is empty, of shape {header.shape}: extract it again, or leave the video out.")
    snippets, columns = header.shape
    return snippets, columns


def _take_stream(whole_TD: np.ndarray, array: FeatureArray, snippets: int, dtype: np.dtype) -> np.ndarray:
    if whole_TD.ndim != 2 or len(whole_TD) < snippets or whole_TD.shape[1] != array.columns:
        raise InputError(f"{array.place} changed while it was being packed: start again once it is left alone.")
    features_TD = whole_TD[:snippets, array.first_column : array.first_column + array.width]
    largest = float(np.abs(features_TD).max())  # NaN and infinity come through
    if not np.isfinite(largest):
        bad_T = (~np.isfinite(features_TD)).sum(axis=1)
        raise InputError(
            f"{array.place} has {bad_T.sum():,} NaN or infinite values, the first in snippet {np.flatnonzero(bad_T)[0]}"
            ": extract it again, or leave the video out."
        )
    limit = float(np.finfo(dtype).max)
    if largest > limit:
        remedy = "give --dtype float32" if dtype == np.float16 else "scale the features"
        raise InputError(f"{array.place} has a value of magnitude {largest:g}, beyond {dtype}'s {limit:g}: {remedy}.")
    return features_TD.astype(dtype, copy=False)
