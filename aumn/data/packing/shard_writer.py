"""One shard of a packing: what goes into it, writing it, and knowing after a kill that it is finished.

Runs in packing's worker processes, so it imports nothing heavy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from aumn.data.shards.layout import FORMAT_VERSION
from aumn.data.shards.tars import SampleWriter, npy_bytes
from aumn.data.sources.containers import Containers
from aumn.data.sources.features import VideoFeatures, read_features
from aumn.files import whole_file
from aumn.records import InputError

Row = dict[str, Any]  # of manifest.parquet
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
    videos: tuple[PlannedVideo, ...]

    def digest(self) -> str:
        """Equal plans of unchanged files have equal digests."""
        return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT_VERSION, asdict(self)]).encode())


@dataclass(frozen=True, slots=True)
class Written:
    """A finished shard: its size and manifest rows; or the problems of its videos, and no shard."""

    file: str
    bytes: int
    rows: list[Row]
    problems: list[str]


def write_shard(plan: ShardPlan, work: Path) -> Written:
    """Write `shards/<file>` in `work` and then the note that it is finished; each appears whole or not at all."""
    rows, problems = [], []
    containers = Containers(allow_pickle=plan.allow_pickle)
    shard = work / SHARDS / plan.file
    with whole_file(shard) as partial, partial.open("wb") as file:
        writer = SampleWriter(file)
        for video in plan.videos:
            try:
                rows.append(_write_sample(writer, np.dtype(plan.dtype), plan.index, video, containers))
            except InputError as problem:
                problems.append(str(problem))
        writer.close()
        size = file.tell()
    if problems:
        shard.unlink()
        return Written(plan.file, 0, [], problems)
    with whole_file(work / PROGRESS / f"{plan.file}.json") as partial:
        partial.write_text(json.dumps({"plan": plan.digest(), "bytes": size, "rows": rows}))
    return Written(plan.file, size, rows, [])


def read_finished(plan: ShardPlan, work: Path) -> Written | None:
    """What `write_shard` left behind, if it finished this very plan."""
    note, shard = work / PROGRESS / f"{plan.file}.json", work / SHARDS / plan.file
    if not note.is_file() or not shard.is_file():
        return None
    finished = json.loads(note.read_bytes())
    if finished["plan"] != plan.digest() or finished["bytes"] != shard.stat().st_size:
        return None
    return Written(plan.file, finished["bytes"], finished["rows"], [])


def _write_sample(
    writer: SampleWriter, dtype: np.dtype, shard: int, planned: PlannedVideo, containers: Containers
) -> Row:
    features = planned.features
    streams = read_features(features, dtype, containers)
    row: Row = {
        "id": features.video,
        "subset": planned.subset,
        "shard": shard,
        "snippets": features.snippets,
        "labels": planned.labels,
        "duration_s": planned.duration_s,
        "fps": planned.fps,
    }
    for stream, features_TD in streams.items():
        member = writer.write(features.video, f"{stream}.npy", npy_bytes(features_TD))
        row |= {f"{stream}_{part}": value for part, value in member.items()}
    facts = {key: row[key] for key in ("id", "subset", "snippets", "duration_s", "fps")}
    facts["labels"] = planned.label_names
    writer.write(features.video, "json", json.dumps(facts, ensure_ascii=False).encode())
    return row
