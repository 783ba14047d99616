"""Temporal ground truth: when each action happens, read for packing and evaluation. The loader never imports this file.

Four layouts: ActivityNet's JSON, a CSV, W-TALC's folder of arrays, and a shard set's annotations.parquet. Nothing is
repaired: zero-length and duplicate instances and ends beyond the duration are kept as annotated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from aumn.data.shards.layout import ANNOTATIONS, read_description, read_table_bytes
from aumn.data.truth.activitynet_json import read_json
from aumn.data.truth.annotated import AnnotatedVideo, Instance
from aumn.data.truth.annotation_csv import read_csv
from aumn.data.truth.wtalc import NAMES as WTALC_NAMES
from aumn.data.truth.wtalc import read_wtalc
from aumn.records import GroundTruth, InputError


@dataclass(frozen=True, slots=True)
class Annotations:
    """A ground-truth file: its videos by id, in its own order."""

    source: Path
    videos: dict[str, AnnotatedVideo]
    is_wtalc: bool = False  # then the order of the videos is that of W-TALC's features

    def known_subsets(self) -> str:
        """The subsets and their sizes, for messages."""
        videos = Counter(video.subset for video in self.videos.values())
        instances = Counter(video.subset for video in self.videos.values() for _ in video.annotations)
        shown = (f"{subset} ({count:,} videos, {instances[subset]:,} instances)" for subset, count in videos.items())
        return ", ".join(shown) or "none"


def read_durations(path: Path) -> dict[str, float]:
    """The durations of the videos, of all subsets, that a ground truth tells."""
    videos = read_annotations(path).videos.values()
    return {video.id: video.duration_s for video in videos if video.duration_s is not None}


def read_ground_truth(path: Path, subset: str | None = None) -> GroundTruth:
    """One subset's instances as columns; without a name, those of the only subset that has any.

    `videos` are all of the subset, `labels` those that occur in it, sorted.
    """
    annotations = read_annotations(path)
    if subset is None:
        annotated = {video.subset for video in annotations.videos.values() if video.annotations}
        if len(annotated) != 1:
            raise InputError(f"{path}: name the subset to take, one of {annotations.known_subsets()}.")
        (subset,) = annotated
    videos = [video for video in annotations.videos.values() if video.subset == subset]
    if not videos:
        raise InputError(f"{annotations.source} has no subset {subset!r}; it has {annotations.known_subsets()}.")
    untimed = [video.id for video in videos if video.untimed]
    if untimed:
        raise InputError(
            f"{annotations.source} says of {len(untimed):,} videos in subset {subset!r} ({', '.join(untimed[:3])}"
            f"{', ...' * (len(untimed) > 3)}) which actions they hold but not when: such videos can be trained on, and "
            "not be measured on; annotate their times, or measure on another subset."
        )
    instances = [(index, instance) for index, video in enumerate(videos) for instance in video.annotations]
    labels = sorted({instance.label for _, instance in instances})
    position = {label: index for index, label in enumerate(labels)}
    return GroundTruth(
        videos=[video.id for video in videos],
        labels=labels,
        video_N=np.array([index for index, _ in instances], dtype=np.int32),
        label_N=np.array([position[instance.label] for _, instance in instances], dtype=np.int32),
        start_s_N=np.array([instance.start_s for _, instance in instances], dtype=np.float64),
        end_s_N=np.array([instance.end_s for _, instance in instances], dtype=np.float64),
    )


def read_annotations(path: Path, *, allow_pickle: bool = False) -> Annotations:
    """Read ActivityNet-layout JSON, a .csv, W-TALC's folder, or a shard set's folder or annotations.parquet."""
    if not path.exists():
        raise InputError(
            f"There is no ground truth at {path}: give ActivityNet-layout JSON, a CSV, W-TALC's annotation folder or a "
            "shard set's folder."
        )
    is_wtalc = path.is_dir() and (path / WTALC_NAMES).is_file()
    if is_wtalc:
        videos = read_wtalc(path, allow_pickle=allow_pickle)
    elif path.is_dir() or path.name == ANNOTATIONS:
        videos = _read_parquet(path if path.is_dir() else path.parent)
    else:
        videos = read_csv(path) if path.suffix.lower() == ".csv" else read_json(path)
    return Annotations(path, {video.id: video for video in videos}, is_wtalc)


def write_annotations(file: Path, videos: Iterable[AnnotatedVideo]) -> None:
    """Write one row a video, its instances as a list; equal videos make equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    instance = pa.struct([("label", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("subset", pa.string(), nullable=False),
            pa.field("duration_s", pa.float64()),
            pa.field("fps", pa.float64()),
            pa.field("annotations", pa.list_(instance), nullable=False),
            pa.field("untimed", pa.list_(pa.string()), nullable=False),
        ]
    )
    rows = [video._asdict() | {"annotations": [found._asdict() for found in video.annotations]} for video in videos]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")


def _read_parquet(shard_set: Path) -> list[AnnotatedVideo]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(read_table_bytes(shard_set, ANNOTATIONS, read_description(shard_set))))
    lists = table["annotations"].combine_chunks()
    instances = [Instance(*row) for row in zip(*(part.to_pylist() for part in lists.values.flatten()), strict=True)]
    spans = [tuple(instances[first:last]) for first, last in pairwise(lists.offsets.to_pylist())]
    facts = [table[name].to_pylist() for name in ("id", "subset", "duration_s", "fps")]
    untimed = table["untimed"].to_pylist() if "untimed" in table.column_names else [()] * len(table)  # of older sets
    rows = zip(*facts, spans, map(tuple, untimed), strict=True)
    return [AnnotatedVideo(*row) for row in rows]
