"""Temporal ground truth: when each action happens, read for packing and evaluation. The loader never imports this file.

Four layouts: ActivityNet's JSON, a CSV, W-TALC's folder of arrays, and a shard set's annotations.parquet. Nothing is
repaired: zero-length and duplicate instances and ends beyond the duration are kept as annotated.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.shards.layout import ANNOTATIONS, read_description, read_table_bytes
from aumn.data.truth.annotated import AnnotatedVideo, Instance, parse_instance, parse_positive, parse_videos
from aumn.data.truth.annotation_csv import read_csv
from aumn.data.truth.wtalc import NAMES, read_wtalc
from aumn.records import GroundTruth, InputError


@dataclass(frozen=True, slots=True)
class Annotations:
    """A ground-truth file: its videos by id, in its own order."""

    source: Path
    videos: dict[str, AnnotatedVideo]
    is_wtalc: bool = False  # then the order of the videos is that of W-TALC's features


def read_durations(path: Path) -> dict[str, float]:
    """The durations of the videos, of all subsets, that a ground truth tells."""
    videos = read_annotations(path).videos.values()
    return {video.id: video.duration_s for video in videos if video.duration_s is not None}


def read_ground_truth(path: Path, subset: str | None = None) -> GroundTruth:
    """One subset's instances as columns; without a name, those of the only subset that has any.

    `videos` are all of the subset, `labels` those that occur in it, sorted.
    """
    all_videos = read_annotations(path).videos.values()
    sizes = Counter(video.subset for video in all_videos)
    instances = Counter(video.subset for video in all_videos for _ in video.annotations)
    known = ", ".join(f"{name} ({sizes[name]:,} videos, {instances[name]:,} instances)" for name in sizes) or "none"
    if subset is None:
        if len(instances) != 1:
            raise InputError(f"{path}: name the subset to take, one of {known}.")
        (subset,) = instances
    videos = [video for video in all_videos if video.subset == subset]
    if not videos:
        raise InputError(f"{path} has no subset {subset!r}; it has {known}.")
    untimed = [video.id for video in videos if video.untimed]
    if untimed:
        raise InputError(
            f"{path} says of {len(untimed):,} videos in subset {subset!r} ({', '.join(untimed[:3])}"
            f"{', ...' * (len(untimed) > 3)}) which actions they hold but not when: such videos can be trained on, and "
            "not be measured on; annotate their times, or measure on another subset."
        )
    found = [(index, instance) for index, video in enumerate(videos) for instance in video.annotations]
    labels = sorted({instance.label for _, instance in found})
    position = {label: index for index, label in enumerate(labels)}
    return GroundTruth(
        videos=[video.id for video in videos],
        labels=labels,
        video_N=np.array([index for index, _ in found], dtype=np.int32),
        label_N=np.array([position[instance.label] for _, instance in found], dtype=np.int32),
        start_s_N=np.array([instance.start_s for _, instance in found], dtype=np.float64),
        end_s_N=np.array([instance.end_s for _, instance in found], dtype=np.float64),
    )


def read_annotations(path: Path, *, allow_pickle: bool = False) -> Annotations:
    """Read ActivityNet-layout JSON, a .csv, W-TALC's folder, or a shard set's folder or annotations.parquet."""
    if not path.exists():
        raise InputError(
            f"There is no ground truth at {path}: give ActivityNet-layout JSON, a CSV, W-TALC's annotation folder or a "
            "shard set's folder."
        )
    is_wtalc = path.is_dir() and (path / NAMES).is_file()
    if is_wtalc:
        videos = read_wtalc(path, allow_pickle=allow_pickle)
    elif path.is_dir() or path.name == ANNOTATIONS:
        videos = _read_parquet(path if path.is_dir() else path.parent)
    else:
        videos = read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    return Annotations(path, {video.id: video for video in videos}, is_wtalc)


def write_annotations(file: Path, videos: Iterable[AnnotatedVideo]) -> None:
    """Write one row a video, its instances as a list; equal videos make equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    instance = pa.struct([("label", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
    kinds = {
        "id": pa.string(),
        "subset": pa.string(),
        "duration_s": pa.float64(),
        "fps": pa.float64(),
        "annotations": pa.list_(instance),
        "untimed": pa.list_(pa.string()),
    }
    schema = pa.schema([pa.field(name, kinds[name], name in {"duration_s", "fps"}) for name in kinds])
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


def _read_json(file: Path) -> list[AnnotatedVideo]:
    """ActivityNet's layout, in which THUMOS14 and others are released too."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_refuse_twice)
    except ValueError as error:
        raise InputError(f"{file} is not usable JSON ({error}): give ground truth in ActivityNet's layout.") from None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise InputError(
            f"{file} has no object 'database': ActivityNet's layout is "
            '{"database": {VIDEO: {"subset": SUBSET, "annotations": [{"label": LABEL, "segment": [START_S, END_S]}]}}}.'
        )
    return parse_videos(file, database.items(), _parse_video)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice, of which Python would silently keep the last, is an error."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return fields


def _parse_video(video: str, fields: Any) -> AnnotatedVideo:
    if not isinstance(fields, dict) or not isinstance(fields.get("subset"), str):
        raise InputError("has no text 'subset'; name the subset it belongs to, e.g. \"training\".")
    if not isinstance(fields.get("annotations"), list):
        raise InputError("has no list 'annotations'; give one, empty where nothing is annotated.")
    return AnnotatedVideo(
        id=video,
        subset=fields["subset"],
        duration_s=parse_positive("duration", fields.get("duration")),
        fps=parse_positive("fps", fields.get("fps")),
        annotations=tuple([_parse_annotation(annotation) for annotation in fields["annotations"]]),
    )


def _parse_annotation(annotation: Any) -> Instance:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("label"), str):
        raise InputError(f"has an annotation without a text 'label': {annotation!r}.")
    label, segment = annotation["label"], annotation.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        raise InputError(f"has a {label!r} whose 'segment' is {segment!r}; it must be [start_s, end_s].")
    return parse_instance(label, *segment)
