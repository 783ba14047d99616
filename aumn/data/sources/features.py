"""Features as they were published, in any layout, checked by their headers and read: T x D a stream.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mode
from typing import NamedTuple

import numpy as np

from aumn.data.columns import Made
from aumn.data.problems import about
from aumn.data.sources.arrays import Header
from aumn.data.sources.containers import Containers, Place
from aumn.data.sources.forms import Form, Shape, find_forms
from aumn.data.sources.releases import JOINT, Arrays, Release
from aumn.data.sources.streams import split_columns
from aumn.data.sources.values import converted, largest_magnitude
from aumn.records import InputError

PROBED, READ_AT_ONCE = 64, 4096  # headers, of which there are millions
WAIT_S = 5e-4  # for a header, from which on several are read at once
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


class _Headers:
    """What is said of each array, as columns; few headers differ. `bad` are the sentences on those without one."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._numbers: dict[Header, int] = {}
        self._header_A = np.full(len(arrays), -1, np.int32)
        self._stamp_A2 = np.zeros((len(arrays), 2), np.int64)
        self.bad: dict[int, str] = {}

    def read(self, indices: np.ndarray, containers: Containers) -> None:
        """Look at some of the arrays."""

        def look(some: list[int]) -> list[_Found | str]:
            return [_look(self._arrays.place(index), containers) for index in some]

        probed, waits = indices[:PROBED], False
        with ThreadPoolExecutor(HEADER_READERS) as threads:
            for block in (probed, *np.array_split(indices[PROBED:], len(indices) // READ_AT_ONCE + 1)):
                start_s = time.perf_counter()
                shares = [share.tolist() for share in np.array_split(block, HEADER_READERS if waits else 1)]
                for share, found in zip(shares, (threads.map if waits else map)(look, shares), strict=True):
                    for index, each in zip(share, found, strict=True):
                        if isinstance(each, str):
                            self.bad[index] = each
                        else:
                            self._header_A[index] = self._numbers.setdefault(each.header, len(self._numbers))
                            self._stamp_A2[index] = each.stamp
                waits = waits or time.perf_counter() - start_s > WAIT_S * len(block)
        self._headers = [*self._numbers]

    def __getitem__(self, index: int) -> _Found:
        if index in self.bad:
            raise InputError(self.bad[index])
        size, time_ns = self._stamp_A2[index].tolist()
        return _Found(self._headers[self._header_A[index]], (size, time_ns))

    def shapes(self, indices: np.ndarray) -> list[Shape]:
        """Those of some arrays; each once, or twice where several have it."""
        found, first, count = np.unique(self._header_A[indices], return_index=True, return_counts=True)
        order = np.argsort(first)
        shapes = Counter[Shape]()
        for number, times in zip(found[order].tolist(), count[order].tolist(), strict=True):
            if number >= 0:
                shapes[self._headers[number].shape] += times
        return [*shapes, *(shape for shape, times in shapes.items() if times > 1)]


def _look(place: Place, containers: Containers) -> _Found | str:
    try:
        status = os.stat(place.file)
        return _Found(containers.header(place), (status.st_size, status.st_mtime_ns))
    except InputError as error:
        return str(error)


@dataclass(frozen=True, slots=True)
class Features:
    """Of many videos, in some order: what all are asked for, as columns, and where the streams are."""

    ids: Sequence[str]
    snippets_N: np.ndarray
    videos: Sequence[VideoFeatures]

    def take(self, indices: Iterable[int]) -> Features:
        """Those at some indices."""
        place_N = np.fromiter(indices, np.int64)
        ids = [self.ids[place] for place in place_N.tolist()]
        return Features(ids, self.snippets_N[place_N], Made(self.videos.__getitem__, place_N))


@dataclass(frozen=True, slots=True)
class Checked:
    """Videos that can be packed, in the order asked for; each stream's width; and what is wrong with the others."""

    features: Features
    widths: dict[str, int]
    bad: dict[str, str]


def check_features(
    release: Release,
    videos: Sequence[int],
    containers: Containers,
    *,
    trim_streams: bool,
    crops: str | None,
    transposed: bool | None,
) -> Checked:
    """Check the arrays of videos, by their numbers; by headers, since values are checked when they are read."""
    places = release.places
    place_V = np.full(len(places.names), -1, np.int32)
    place_V[videos] = np.arange(len(videos))
    place_P = np.repeat(place_V, np.diff(places.first_V))
    order = np.argsort(place_P, kind="stable")[(place_P < 0).sum() :]
    headers = _Headers(places.arrays)
    headers.read(places.index_P[order], containers)
    forms = {
        stream: find_forms(
            release.path, headers.shapes(places.index_P[order[places.stream_P[order] == number]]), crops, transposed
        )
        for number, stream in enumerate(places.streams)
    }

    def check(video: int) -> VideoFeatures:
        return _check_video(release, video, headers, forms, trim_streams=trim_streams)

    bad: dict[str, str] = {}
    good, snippets, widths_of = array("q"), array("i"), {stream: array("i") for stream in release.streams}
    for video in videos:
        try:
            features = check(video)
        except InputError as error:
            bad[places.names[video]] = str(error)
            continue
        good.append(video)
        snippets.append(features.snippets)
        for stream, found in features.streams.items():
            widths_of[stream].append(found.width)
    widths = {stream: mode(found) for stream, found in widths_of.items() if found}
    odd = np.any([np.array(widths_of[stream]) != width for stream, width in widths.items()], axis=0)
    kept = Features([places.names[video] for video in good], np.array(snippets, np.int64), Made(check, good))
    for index in np.flatnonzero(odd).tolist():
        streams = kept.videos[index].streams
        stream, found = next((name, of) for name, of in streams.items() if of.width != widths[name])
        bad[kept.ids[index]] = (
            f"{found.places[0]} has width {found.width} where the other videos' {stream} features have "
            f"{widths[stream]}: extract it with the same network."
        )
    return Checked(kept.take(np.flatnonzero(~odd)) if odd.any() else kept, widths, bad)


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
    number: int,
    found: _Headers,
    forms: Mapping[str, Mapping[int, Form]],
    *,
    trim_streams: bool,
) -> VideoFeatures:
    video, indices_of = release.places.names[number], release.places.of(number)
    lengths: dict[str, int] = {}
    arrays: dict[str, FeatureArray] = {}
    for name in (JOINT,) if JOINT in indices_of else release.streams:
        if name not in indices_of:
            other, place = next(iter(indices_of), "neither"), "the crops that were asked for"
            if indices_of:
                place = str(release.places.arrays.place(indices_of[other][0]))
            raise InputError(f"{release.path} has {other} of video {video!r} ({place}) but no {name}: extract it.")
        places = tuple(map(release.places.arrays.place, indices_of[name]))
        told = [found[index] for index in indices_of[name]]
        form, (snippets, columns) = _check_header(places, [each.header for each in told], forms[name])
        with about(places[0]):
            spans = split_columns(release.joint, columns) if name == JOINT else {name: (0, columns)}
        for stream, (column, width) in spans.items():
            lengths[stream] = snippets
            stamps = tuple(each.stamp for each in told)
            arrays[stream] = FeatureArray(places, told[0].header.shape, form, column, width, stamps)
    if len(set(lengths.values())) > 1 and not trim_streams:
        counts = ", ".join(f"{length} of {stream}" for stream, length in lengths.items())
        raise InputError(
            f"{release.path}: the streams of video {video!r} differ in length ({counts} snippets): extract them alike, "
            "or give --trim-streams to cut to the shortest."
        )
    return VideoFeatures(video, min(lengths.values()), {stream: arrays[stream] for stream in release.streams})


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
