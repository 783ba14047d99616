"""Features as they are published: `rgb/<video>.npy` and `flow/<video>.npy`, T x D each, found, checked and read.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aumn.data.arrays import Header, read_array, read_header
from aumn.data.problems import refuse
from aumn.records import InputError

STREAMS = ("rgb", "flow")
HEADER_READERS = 16  # opening files on a network's file system is waiting, not work


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """One stream of one video, as found: its width, and the size and time by which a change would be noticed."""

    path: str
    width: int
    bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """The files of one video's streams, and the snippets to take of each, from the first."""

    video: str
    snippets: int
    streams: dict[str, FeatureFile]


def find_videos(root: Path) -> set[str]:
    """The videos with a file in any stream; an id is the path below the stream's folder, so it may hold slashes."""
    found = set()
    for stream in STREAMS:
        folder = root / stream
        if not folder.is_dir():
            raise InputError(f"{root} has no folder {stream}: features are read from rgb/VIDEO.npy and flow/VIDEO.npy.")
        found |= {file.relative_to(folder).as_posix().removesuffix(".npy") for file in folder.rglob("*.npy")}
    return found


def check_features(
    root: Path, videos: Iterable[str], *, allow_pickle: bool, trim_streams: bool
) -> tuple[list[VideoFeatures], dict[str, int]]:
    """Check every video's files by their headers; the videos in the order given, and each stream's width.

    Values are checked when they are read. All bad videos are reported in one error.
    """

    def check(video: str) -> VideoFeatures | str:
        try:
            return _check_video(root, video, allow_pickle, trim_streams)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(HEADER_READERS) as threads:
        checked = list(threads.map(check, videos))
    good = [outcome for outcome in checked if isinstance(outcome, VideoFeatures)]
    widths = {stream: _usual_width(good, stream) for stream in STREAMS}
    problems = [outcome for outcome in checked if isinstance(outcome, str)]
    problems += [problem for features in good for problem in _width_problems(features, widths)[:1]]
    refuse(problems, f"{len(problems):,} videos in {root} cannot be packed:")
    return good, widths


def read_features(features: VideoFeatures, dtype: np.dtype, *, allow_pickle: bool) -> dict[str, np.ndarray]:
    """Every stream's features, T x D in the given dtype: finite, and within the dtype's range."""
    return {
        stream: _read_stream(file, features.snippets, dtype, allow_pickle) for stream, file in features.streams.items()
    }


def _check_video(root: Path, video: str, allow_pickle: bool, trim_streams: bool) -> VideoFeatures:
    files, lengths = {}, {}
    for stream in STREAMS:
        path = root / stream / f"{video}.npy"
        if not path.is_file():
            others = " and ".join(other for other in STREAMS if other != stream)
            raise InputError(f"{path} is missing, though {others} has this video: extract it, or leave the video out.")
        header, status = read_header(path, allow_pickle=allow_pickle), path.stat()
        lengths[stream], width = _check_header(path, header)
        files[stream] = FeatureFile(str(path), width, status.st_size, status.st_mtime_ns)
    if len(set(lengths.values())) > 1 and not trim_streams:
        counts = ", ".join(f"{length} of {stream}" for stream, length in lengths.items())
        raise InputError(
            f"{root}: the streams of video {video!r} differ in length ({counts} snippets): extract them alike, "
            "or give --trim-streams to cut to the shorter."
        )
    return VideoFeatures(video, min(lengths.values()), files)


def _check_header(path: Path, header: Header) -> tuple[int, int]:
    if len(header.shape) != 2:
        raise InputError(f"{path} has shape {header.shape}; features must be two-dimensional, snippets x width.")
    if header.dtype.kind != "f":
        raise InputError(f"{path} has dtype {header.dtype}; features must be floating-point numbers.")
    if 0 in header.shape:
        raise InputError(f"{path} is empty, of shape {header.shape}: extract it again, or leave the video out.")
    snippets, width = header.shape
    return snippets, width


def _usual_width(videos: list[VideoFeatures], stream: str) -> int:
    counts = Counter(features.streams[stream].width for features in videos)
    return counts.most_common(1)[0][0] if counts else 0


def _width_problems(features: VideoFeatures, widths: Mapping[str, int]) -> list[str]:
    return [
        f"{file.path} has width {file.width} where the other videos' {stream} features have {widths[stream]}: "
        "extract it with the same network."
        for stream, file in features.streams.items()
        if file.width != widths[stream]
    ]


def _read_stream(file: FeatureFile, snippets: int, dtype: np.dtype, allow_pickle: bool) -> np.ndarray:
    features_TD = read_array(Path(file.path), allow_pickle=allow_pickle)[:snippets]
    if features_TD.shape != (snippets, file.width):
        raise InputError(f"{file.path} changed while it was being packed: start again once it is left alone.")
    largest = float(np.abs(features_TD).max())  # NaN and infinity come through
    if not np.isfinite(largest):
        bad_T = (~np.isfinite(features_TD)).sum(axis=1)
        raise InputError(
            f"{file.path} has {bad_T.sum():,} NaN or infinite values, the first in snippet {np.flatnonzero(bad_T)[0]}: "
            "extract it again, or leave the video out."
        )
    limit = float(np.finfo(dtype).max)
    if largest > limit:
        remedy = "give --dtype float32" if dtype == np.float16 else "scale the features"
        raise InputError(f"{file.path} has a value of magnitude {largest:g}, beyond {dtype}'s {limit:g}: {remedy}.")
    return features_TD.astype(dtype, copy=False)
