"""Detections on disk: Parquet parts (see `parts`), a part a rank; ActivityNet's results JSON; THUMOS14's run text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.json_files import read_json, shown, text_of
from aumn.files import whole_file
from aumn.inference.parts import NUMBERS, checked, common_metadata, count_videos, read_part
from aumn.records import Detections, InputError

THUMOS14 = {
    "7": "BaseballPitch", "9": "BasketballDunk", "12": "Billiards", "21": "CleanAndJerk", "22": "CliffDiving",
    "23": "CricketBowling", "24": "CricketShot", "26": "Diving", "31": "FrisbeeCatch", "33": "GolfSwing",
    "36": "HammerThrow", "40": "HighJump", "45": "JavelinThrow", "51": "LongJump", "68": "PoleVault", "79": "Shotput",
    "85": "SoccerPenalty", "92": "TennisSwing", "93": "ThrowDiscus", "97": "VolleyballSpiking",
}  # fmt: skip
"""Its classes by their numbers in run files."""
RESULTS_LAYOUT = '{"results": {"<video>": [{"label": "...", "score": 0.5, "segment": [0.0, 1.5]}]}}'

Row = tuple[str, str, float, float, float]  # video, label, score, start_s, end_s


def read_detections(path: Path, rank: int = 0, size: int = 1) -> tuple[Detections, dict[str, str]]:
    """The detections of this rank's own videos, and the metadata of the parts.

    `path` is a folder of Parquet parts, one part, an ActivityNet results JSON or a THUMOS14 run. A video belongs to one
    rank. A rank has consecutive ones, about as many rows as any other; where rows come video by video it does not read
    the others'. Parts are read batch by batch, so what a rank holds falls with the number of ranks; other files have to
    be read whole.
    """
    if path.is_dir() or path.suffix == ".parquet":
        import pyarrow as pa

        parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not parts:
            raise InputError(f"{path} holds no Parquet parts (*.parquet): give the folder that `aumn localize` wrote.")
        rows, metadata = common_metadata(parts)
        found = (
            _merge(rows, chain.from_iterable(map(read_part, parts))) if size == 1 else _read_share(parts, rank, size)
        )
        pa.default_memory_pool().release_unused()  # of millions of detections half of what is held
        return found, metadata
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a folder of Parquet parts or an ActivityNet results JSON.")
    with path.open("rb") as file:
        is_json = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["} or path.suffix == ".json"
    whole = checked(_from_rows(_json_rows(path) if is_json else _run_rows(path)), path, 0)
    number_V = _Numbers(_without_v).of(whole.videos)
    owner_V = _owners(np.bincount(number_V[whole.video_N], minlength=len(whole.videos)), size)
    return _only(whole, owner_V[number_V] == rank), {}


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, rather than one of detections."""
    return (path / "checkpoints").is_dir()


def detections_of(path: Path, subset: str | None = None) -> Path:
    """The detections that a user means by `path`: of a run's folder, the only ones in it, or those of the subset."""
    if not is_run(path):
        return path
    found = sorted(folder for folder in (path / "detections").glob("[!.]*") if subset in {None, folder.name})
    if not found:
        which = f"of subset {subset!r} " if subset else ""
        raise InputError(
            f"{path} is a run that holds no detections {which}in {path / 'detections'}: run aumn localize {path} "
            f"SHARDS --subset {subset or 'SUBSET'} first, or name the folder that it wrote."
        )
    if len(found) > 1:
        raise InputError(f"{path} is a run with several detections: name one of {', '.join(map(str, found))}.")
    return found[0]


def export_json(detections: Detections, path: Path) -> None:
    """Write the results JSON that ActivityNet's server and devkit read; a video's detections come best first."""
    results: dict[str, list[dict[str, Any]]] = {}
    order = np.lexsort((detections.end_s_N, detections.start_s_N, -detections.score_N, detections.video_N))
    columns = [column_N[order].tolist() for column_N in detections.columns]
    for video, label, score, *segment in zip(*columns, strict=True):
        detection = {"label": detections.labels[label], "score": score, "segment": segment}
        results.setdefault(detections.videos[video], []).append(detection)
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"version": "1.0", "results": results, "external_data": {}}), encoding="utf-8")


def _read_share(parts: Sequence[Path], rank: int, size: int) -> Detections:
    """This rank's rows: a look at the videos' column alone, then at the row groups that hold any."""
    numbers = _Numbers(_without_v)
    counted = [
        (part, group, numbers.of(videos), count_V) for part in parts for group, videos, count_V in count_videos(part)
    ]
    total_V = np.zeros(len(numbers.number_of), dtype=np.int64)
    for _, _, number_V, count_V in counted:
        total_V[number_V] += count_V
    is_ours_V = _owners(total_V, size) == rank

    def read() -> Iterator[Detections]:
        for part, batches in groupby(counted, itemgetter(0)):
            groups = {group for _, group, number_V, count_V in batches if is_ours_V[number_V[count_V > 0]].any()}
            for chunk in read_part(part, groups):
                yield _only(chunk, is_ours_V[numbers.of(chunk.videos)])

    return _merge(int(total_V[is_ours_V].sum()), read())


def _owners(count_V: np.ndarray, size: int) -> np.ndarray:
    """The rank that each video belongs to, from how many rows they have: consecutive ones, about as many rows each."""
    before_V = np.cumsum(count_V) - count_V
    owner_V: np.ndarray = before_V * size // max(int(count_V.sum()), 1)
    return owner_V


def _only(chunk: Detections, is_kept_V: np.ndarray) -> Detections:
    """The rows of some of the videos."""
    if is_kept_V.all():
        return chunk
    rows = np.flatnonzero(is_kept_V[chunk.video_N])
    video_N, *columns = (column_N[rows] for column_N in chunk.columns)
    videos = [video for video, is_kept in zip(chunk.videos, is_kept_V, strict=True) if is_kept]
    return Detections(videos, chunk.labels, (np.cumsum(is_kept_V) - 1)[video_N], *columns)


def _merge(rows: int, chunks: Iterator[Detections]) -> Detections:
    """One table of all chunks, of so many rows together, with videos and labels numbered as they come."""
    columns = [np.empty(rows, kind) for kind in (np.int32, np.int32, *[np.float64] * len(NUMBERS))]
    videos, labels = _Numbers(), _Numbers()
    row = 0
    for chunk in chunks:
        video_n, label_n, *numbers_n = chunk.columns
        of_chunk = (videos.of(chunk.videos)[video_n], labels.of(chunk.labels)[label_n], *numbers_n)
        for column_N, column_n in zip(columns, of_chunk, strict=True):
            column_N[row : row + len(chunk)] = column_n
        row += len(chunk)
    return Detections(list(videos.number_of), list(labels.number_of), *columns)


def _without_v(video: str) -> str:
    """By which videos are dealt to ranks: two names that `v_` tells apart may be one video of the ground truth."""
    return video.removeprefix("v_")


class _Numbers:
    """Numbers of names as `spelled` has them, in the order in which they come."""

    def __init__(self, spelled: Callable[[str], str] = str) -> None:
        self._spelled = spelled
        self.number_of: dict[str, int] = {}
        self.last: tuple[Sequence[str], np.ndarray] = ((), np.empty(0, np.int32))

    def of(self, names: Sequence[str]) -> np.ndarray:
        """The number of each; chunk after chunk of a part comes with the same names."""
        if names is not self.last[0]:
            self.last = (names, _number(map(self._spelled, names), self.number_of))
        return self.last[1]


def _number(names: Iterable[str], number_of: dict[str, int]) -> np.ndarray:
    """The number of each name; a new name gets the next one."""
    return np.fromiter((number_of.setdefault(name, len(number_of)) for name in names), np.int32)


def _json_rows(path: Path) -> list[Row]:
    """The detections of an ActivityNet results JSON, or of its results alone."""
    document = read_json(path, f"its layout must be {RESULTS_LAYOUT}.")
    results = document.get("results", document) if isinstance(document, dict) else None
    if not isinstance(results, dict) or not all(isinstance(found, list) for found in results.values()):
        raise InputError(f"{path} holds no ActivityNet results: its layout must be {RESULTS_LAYOUT}.")
    return [_json_row(path, video, detection) for video, found in results.items() for detection in found]


def _json_row(path: Path, video: str, detection: Any) -> Row:
    try:
        label, score, (start_s, end_s) = text_of(detection["label"]), detection["score"], detection["segment"]
        if label is not None and not {type(score), type(start_s), type(end_s)} - {int, float}:
            return video.strip(), label.strip(), float(score), float(start_s), float(end_s)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise InputError(
        f"{path}, video {video!r}: {shown(detection)} is not a detection; its layout must be {RESULTS_LAYOUT}."
    )


def _run_rows(path: Path) -> list[Row]:
    """The lines of a run as THUMOS14's challenge took them: video, start, end, number of the class, score."""
    rows: list[Row] = []
    line = ""
    try:
        for line in filter(str.strip, path.read_text(encoding="utf-8-sig").splitlines()):
            video, start_s, end_s, label, score = line.split()
            rows.append((video, THUMOS14.get(label, label), float(score), float(start_s), float(end_s)))
    except ValueError:
        raise InputError(
            f"{path} is neither ActivityNet results, {RESULTS_LAYOUT}, nor a THUMOS14 run, a line VIDEO START_S END_S "
            f"CLASS SCORE each: {shown(line)}; give one of the two, or a folder of Parquet parts."
        ) from None
    return rows


def _from_rows(rows: Sequence[Row]) -> Detections:
    videos: dict[str, int] = {}
    labels: dict[str, int] = {}
    video_N, label_N = _number([row[0] for row in rows], videos), _number([row[1] for row in rows], labels)
    numbers_N = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, len(NUMBERS)).T
    return Detections(list(videos), list(labels), video_N, label_N, *numbers_N)
