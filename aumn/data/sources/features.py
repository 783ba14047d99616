"""Features as they were published, in any layout, checked by their headers and read: T x D a stream.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import NamedTuple

import numpy as np

from aumn.data.problems import about
from aumn.data.sources.arrays import Header
from aumn.data.sources.containers import Containers, Place
from aumn.data.sources.forms import Form, Shape, find_forms
from aumn.data.sources.releases import JOINT, Release
from aumn.data.sources.streams import split_columns
from aumn.data.sources.values import converted, largest_magnitude
from aumn.records import InputError

HEADER_READERS = 16  # opening files on a network's file system is waiting, not work


@dataclass(frozen=True, slots=True)
class FeatureArray:
    """One stream of one video, as found; by its files' sizes and times a change would be noticed."""

    places: tuple[Place, ...]  # one, or crops whose mean is meant
    shape: tuple[int, ...]  # of each of them, as stored
    form: Form
    first_column: int
    width: int
    stamps: tuple[tuple[int, int], ...]  # bytes and nanoseconds


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """Where one video's streams are, and the snippets to take of each, from the first."""

    video: str
    snippets: int
    streams: dict[str, FeatureArray]


class _Found(NamedTuple):
    """What a place's header and file say."""

    header: Header
    stamp: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Checked:
    """Videos that can be packed, in the order asked for; each stream's width; and what is wrong with the others."""

    videos: list[VideoFeatures]
    widths: dict[str, int]
    bad: dict[str, str]


def check_features(
    release: Release,
    videos: Sequence[str],
    containers: Containers,
    *,
    trim_streams: bool,
    crops: str | None,
    transposed: bool | None,
) -> Checked:
    """Check every video's arrays by their headers; values are checked when they are read."""

    def look(place: Place) -> _Found | str:
        try:
            status = Path(place.file).stat()
            return _Found(containers.header(place), (status.st_size, status.st_mtime_ns))
        except InputError as error:
            return str(error)

    arrays = [(name, place) for video in videos for name, places in release.places[video].items() for place in places]
    with ThreadPoolExecutor(HEADER_READERS) as threads:
        found = dict(
            zip([place for _, place in arrays], threads.map(look, [place for _, place in arrays]), strict=True)
        )
    shapes: dict[str, list[Shape]] = {}
    for name, place in arrays:
        if isinstance(told := found[place], _Found):
            shapes.setdefault(name, []).append(told.header.shape)
    forms = {name: find_forms(release.path, shapes[name], crops, transposed) for name in shapes}
    good, bad = [], {}
    for video in videos:
        try:
            good.append(_check_video(release, video, found, forms, trim_streams=trim_streams))
        except InputError as error:
            bad[video] = str(error)
    widths = {stream: mode(features.streams[stream].width for features in good) for stream in release.streams if good}
    for features in good:
        for stream, array in features.streams.items():
            if array.width != widths[stream]:
                bad[features.video] = (
                    f"{array.places[0]} has width {array.width} where the other videos' {stream} features have "
                    f"{widths[stream]}: extract it with the same network."
                )
                break
    return Checked([features for features in good if features.video not in bad], widths, bad)


def read_features(features: VideoFeatures, dtype: np.dtype, containers: Containers) -> dict[str, np.ndarray]:
    """Every stream's features, T x D in the given dtype: finite, and within the dtype's range."""
    wholes = {array.places: array for array in features.streams.values()}  # one, where the array is joint
    arrays = {places: _read_whole(array, containers) for places, array in wholes.items()}
    return {
        stream: _take_stream(arrays[array.places], array, features.snippets, dtype)
        for stream, array in features.streams.items()
    }


def _check_video(
    release: Release,
    video: str,
    found: Mapping[Place, _Found | str],
    forms: Mapping[str, Mapping[int, Form]],
    *,
    trim_streams: bool,
) -> VideoFeatures:
    places_of = release.places[video]
    lengths: dict[str, int] = {}
    arrays: dict[str, FeatureArray] = {}
    for name in (JOINT,) if JOINT in places_of else release.streams:
        if name not in places_of:
            other, places = next(iter(places_of.items()), ("neither", ("the crops that were asked for",)))
            raise InputError(f"{release.path} has {other} of video {video!r} ({places[0]}) but no {name}: extract it.")
        places = places_of[name]
        told = [_unless_bad(found[place]) for place in places]
        form, (snippets, columns) = _check_header(places, [each.header for each in told], forms[name])
        with about(places[0]):
            spans = split_columns(release.joint, columns) if name == JOINT else {name: (0, columns)}
        for stream, (first, width) in spans.items():
            lengths[stream] = snippets
            stamps = tuple(each.stamp for each in told)
            arrays[stream] = FeatureArray(places, told[0].header.shape, form, first, width, stamps)
    if len(set(lengths.values())) > 1 and not trim_streams:
        counts = ", ".join(f"{length} of {stream}" for stream, length in lengths.items())
        raise InputError(
            f"{release.path}: the streams of video {video!r} differ in length ({counts} snippets): extract them alike, "
            "or give --trim-streams to cut to the shortest."
        )
    return VideoFeatures(video, min(lengths.values()), {stream: arrays[stream] for stream in release.streams})


def _unless_bad(found: _Found | str) -> _Found:
    if isinstance(found, str):
        raise InputError(found)
    return found


def _check_header(
    places: Sequence[Place], headers: Sequence[Header], forms: Mapping[int, Form]
) -> tuple[Form, tuple[int, int]]:
    """How the array becomes snippets x width, and how many of both."""
    place, header = places[0], headers[0]
    form = forms[len(header.shape)]
    shape = form.shape(header.shape)
    if any(other.shape != header.shape for other in headers):
        raise InputError(
            f"{place} has shape {header.shape} and others of the video's crops do not: extract them alike."
        )
    if len(shape) != 2:
        raise InputError(f"{place} has shape {header.shape}; features must be two-dimensional, snippets x width.")
    if header.dtype.kind != "f":
        raise InputError(f"{place} has dtype {header.dtype}; features must be floating-point numbers.")
    if 0 in shape:
        raise InputError(f"{place} is empty, of shape {header.shape}: extract it again.")
    snippets, columns = shape
    return form, (snippets, columns)


def _read_whole(array: FeatureArray, containers: Containers) -> np.ndarray:
    """An array, snippets x all of its columns; of several crops the mean."""
    total_TD: np.ndarray | None = None
    for place in array.places:
        stored = containers.read(place)
        if stored.shape != array.shape:
            raise InputError(f"{place} changed while it was being packed: start again once it is left alone.")
        formed_TD = array.form.apply(stored)
        if len(array.places) == 1:
            return formed_TD
        total_TD = formed_TD.astype(np.float64) if total_TD is None else total_TD + formed_TD
    assert total_TD is not None
    return total_TD / len(array.places)


def _take_stream(whole_TD: np.ndarray, array: FeatureArray, snippets: int, dtype: np.dtype) -> np.ndarray:
    features_TD = whole_TD[:snippets, array.first_column : array.first_column + array.width]
    largest = largest_magnitude(features_TD)
    if not math.isfinite(largest):
        bad_T = (~np.isfinite(features_TD)).sum(axis=1)
        raise InputError(
            f"{array.places[0]} has {bad_T.sum():,} NaN or infinite values, the first in snippet "
            f"{np.flatnonzero(bad_T)[0]}: extract it again."
        )
    limit = float(np.finfo(dtype).max)
    if largest > limit:
        remedy = "give --dtype float32" if dtype == np.float16 else "scale the features"
        raise InputError(
            f"{array.places[0]} has a value of magnitude {largest:g}, beyond {dtype}'s {limit:g}: {remedy}."
        )
    return converted(features_TD, dtype)
