"""One shard of a packing: what goes into it, writing it, and knowing after a kill that it is finished.

Runs in packing's worker processes, so it imports nothing heavy. The standard library makes the tars' headers:
webdataset's own TarWriter would do, but its import pulls in torch (2.8 s and 225 MB in every worker, against 0.2 s and
27 MB), and either copies each array twice.
"""

from __future__ import annotations

import ctypes
import io
import json
import tarfile
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from aumn.data.shards.layout import FORMAT_VERSION, sample_key
from aumn.data.shards.stores import Store
from aumn.data.sources.containers import Containers
from aumn.data.sources.features import VideoFeatures, read_features
from aumn.files import whole_file
from aumn.records import InputError

Row = dict[str, Any]  # of manifest.parquet
Parts = tuple[bytes | memoryview, ...]  # of a member's content
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 2**25  # of <malloc.h>, and the most that it takes
BUFFER_BYTES = 2**16  # headers go out together with what follows them, and arrays past it
SHARDS, PROGRESS = "shards", "progress"
"""Folders of the workplace: what becomes the shard set, and notes on the shards that are finished."""


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """A video to pack: its features, and the facts of its manifest row."""

    features: VideoFeatures
    subset: str
    labels: tuple[int, ...]
    label_names: tuple[str, ...]
    duration_s: float
    fps: float


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Everything that a shard's bytes depend on, down to the size and time of its source files."""

    file: str
    index: int
    dtype: str
    allow_pickle: bool
    skips_bad: bool
    videos: tuple[PlannedVideo, ...]

    def digest(self) -> str:
        """Equal plans of unchanged files have equal digests."""
        return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT_VERSION, self], default=_fields).encode())


@dataclass(frozen=True, slots=True)
class Written:
    """A finished shard: its size and manifest rows; or no shard, unless the videos with problems are to be left out."""

    file: str
    bytes: int = 0
    rows: Any = ()  # dicts, of which packing makes a table
    problems: dict[str, str] = field(default_factory=dict)  # video -> what is wrong with it


def _fields(plan: Any) -> dict[str, Any]:
    return {field.name: getattr(plan, field.name) for field in fields(plan)}


def write_shard(plan: ShardPlan, work: Path) -> Written:
    """Write `shards/<file>` in `work` and then the note that it is finished; each appears whole or not at all."""
    _keep_memory()
    rows, problems = [], {}
    containers = Containers(allow_pickle=plan.allow_pickle)
    shard = work / SHARDS / plan.file
    with whole_file(shard) as partial, partial.open("wb", BUFFER_BYTES) as tar:
        for video in plan.videos:
            try:
                rows.append(_write_sample(tar, np.dtype(plan.dtype), plan.index, video, containers))
            except InputError as problem:
                problems[video.features.video] = str(problem)
        tar.write(bytes(2 * tarfile.BLOCKSIZE))
        tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
    size = shard.stat().st_size
    if problems and not plan.skips_bad:
        shard.unlink()
        return Written(plan.file, problems=problems)
    with whole_file(work / PROGRESS / f"{plan.file}.json") as partial:
        partial.write_text(json.dumps({"plan": plan.digest(), "bytes": size, "rows": rows, "problems": problems}))
    return Written(plan.file, size, rows, problems)


def _keep_memory() -> None:
    """Let the C library keep what arrays leave for the next ones: fresh pages cost as much as reading into them."""
    with suppress(AttributeError):  # of another C library than glibc
        keep = ctypes.CDLL(None).mallopt
        keep(M_MMAP_THRESHOLD, KEPT_BYTES)
        keep(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)


def read_checksums(plan: ShardPlan) -> dict[str, dict[str, int]]:
    """Video -> stream -> the xxh3_64 that the manifest would have, were the features packed."""
    containers, dtype = Containers(allow_pickle=plan.allow_pickle), np.dtype(plan.dtype)
    return {
        video.features.video: {
            stream: _checksum(_npy(features_TD))
            for stream, features_TD in read_features(video.features, dtype, containers).items()
        }
        for video in plan.videos
    }


def read_finished(plan: ShardPlan, work: Path, out: Store) -> Written | None:
    """What `write_shard` left behind, if it finished this very plan; the shard may be where the set is to be."""
    note, shard = work / PROGRESS / f"{plan.file}.json", work / SHARDS / plan.file
    if not note.is_file():
        return None
    finished, size = json.loads(note.read_bytes()), shard.stat().st_size if shard.is_file() else out.size(plan.file)
    is_this = finished["plan"] == plan.digest() and finished["bytes"] == size
    return Written(plan.file, finished["bytes"], finished["rows"], finished["problems"]) if is_this else None


def _write_sample(tar: BinaryIO, dtype: np.dtype, shard: int, planned: PlannedVideo, containers: Containers) -> Row:
    features = planned.features
    streams = read_features(features, dtype, containers)
    facts: dict[str, Any] = {
        "id": features.video,
        "subset": planned.subset,
        "snippets": features.snippets,
        "duration_s": planned.duration_s,
        "fps": planned.fps,
    }
    key = sample_key(features.video, streams)
    row: Row = facts | {"shard": shard, "labels": planned.labels}
    for stream, features_TD in streams.items():
        member = _add_member(tar, f"{key}.{stream}.npy", _npy(features_TD))
        row |= {f"{stream}_{part}": value for part, value in member.items()}
    facts["labels"] = planned.label_names
    _add_member(tar, f"{key}.json", (json.dumps(facts, ensure_ascii=False).encode(),))
    return row


def _npy(features_TD: np.ndarray) -> tuple[bytes, memoryview]:
    """The file that numpy.save makes, in two parts of which the second is not copied."""
    features_TD = np.ascontiguousarray(features_TD)
    return _npy_header(features_TD.shape, features_TD.dtype), features_TD.reshape(-1).view(np.uint8).data


@lru_cache(1024)
def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    facts = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _checksum(parts: Parts) -> int:
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def _add_member(tar: BinaryIO, name: str, parts: Parts) -> dict[str, int]:
    """Append a member of a video's sample, whose members follow one another; its place in the tar, and its xxh3_64."""
    size = sum(map(len, parts))
    tar.write(_tar_header(name, size))
    offset = tar.tell()
    for part in (*parts, bytes(-size % tarfile.BLOCKSIZE)):
        tar.write(part)
    return {"offset": offset, "bytes": size, "xxh3": _checksum(parts)}


def _tar_header(name: str, size: int) -> bytes:
    """A member's, of which the name and, with it, the sum of all bytes are put into one that was made for the size."""
    header, text = bytearray(_nameless_header(size)), name.encode("ascii")
    at = len(header) - tarfile.BLOCKSIZE  # behind what a huge member has before it
    header[at : at + len(text)] = text
    header[at + 148 : at + 154] = b"%06o" % (int(header[at + 148 : at + 154], 8) + sum(text))
    return bytes(header)


@lru_cache(1024)
def _nameless_header(size: int) -> bytes:
    header = tarfile.TarInfo()
    header.size, header.mode, header.mtime = size, 0o444, 0
    return header.tobuf(tarfile.PAX_FORMAT)
