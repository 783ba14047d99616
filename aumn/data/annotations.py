"""Temporal ground truth: when each action happens, read for packing and evaluation. The loader never imports this file.

Two layouts: ActivityNet's JSON, in which THUMOS14 and others are released too, and a shard set's annotations.parquet.
Nothing is repaired: zero-length and duplicate instances and ends beyond the duration are kept as annotated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from aumn.data.layout import ANNOTATIONS, read_description, read_table_bytes
from aumn.data.problems import refuse
from aumn.records import GroundTruth, InputError


class Instance(NamedTuple):
    """One annotated action."""

    label: str
    start_s: float
    end_s: float


class AnnotatedVideo(NamedTuple):
    """A video of the ground truth; duration and frame rate are None where the release does not tell them."""

    id: str
    subset: str
    duration_s: float | None
    fps: float | None
    annotations: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Annotations:
    """A ground-truth file: its videos by id, in its own order."""

    source: Path
    videos: dict[str, AnnotatedVideo]

    def known_subsets(self) -> str:
        """The subsets and their sizes, for messages."""
        sizes: dict[str, list[int]] = {}
        for video in self.videos.values():
            size = sizes.setdefault(video.subset, [0, 0])
            size[0] += 1
            size[1] += len(video.annotations)
        shown = (
            f"{subset} ({videos:,} videos, {instances:,} instances)" for subset, (videos, instances) in sizes.items()
        )
        return ", ".join(shown) or "none"


def read_ground_truth(path: Path, subset: str | None = None) -> GroundTruth:
    """The instances of one subset; without a name, of the only subset that has any."""
    annotations = read_annotations(path)
    if subset is None:
        annotated = {video.subset for video in annotations.videos.values() if video.annotations}
        if len(annotated) != 1:
            raise InputError(f"{path}: name the subset to take, one of {annotations.known_subsets()}.")
        (subset,) = annotated
    return ground_truth(annotations, subset)


def ground_truth(annotations: Annotations, subset: str) -> GroundTruth:
    """One subset's instances as columns; `videos` are all of the subset, `labels` those that occur in it, sorted."""
    videos = [video for video in annotations.videos.values() if video.subset == subset]
    if not videos:
        raise InputError(f"{annotations.source} has no subset {subset!r}; it has {annotations.known_subsets()}.")
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


def read_annotations(path: Path) -> Annotations:
    """Read ActivityNet-layout JSON, or a shard set's ground truth, given as its folder or its annotations.parquet."""
    if not path.exists():
        raise InputError(
            f"There is no ground truth at {path}: give an ActivityNet-layout JSON or a shard set's folder."
        )
    if path.is_dir() or path.name == ANNOTATIONS:
        videos = _read_parquet(path if path.is_dir() else path.parent)
    else:
        videos = _read_activitynet(path)
    return Annotations(path, {video.id: video for video in videos})


def write_annotations(file: BinaryIO, videos: Iterable[AnnotatedVideo]) -> None:
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
        ]
    )
    rows = [
        video._asdict() | {"annotations": [instance._asdict() for instance in video.annotations]} for video in videos
    ]
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, file, compression="zstd")


def _read_parquet(shard_set: Path) -> list[AnnotatedVideo]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(read_table_bytes(shard_set, ANNOTATIONS, read_description(shard_set))))
    lists = table["annotations"].combine_chunks()
    instances = [Instance(*row) for row in zip(*(part.to_pylist() for part in lists.values.flatten()), strict=True)]
    spans = [tuple(instances[first:last]) for first, last in pairwise(lists.offsets.to_pylist())]
    columns = [table[name].to_pylist() for name in AnnotatedVideo._fields[:-1]]
    return [AnnotatedVideo(*row) for row in zip(*columns, spans, strict=True)]


def _read_activitynet(file: Path) -> list[AnnotatedVideo]:
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
    videos, problems = [], []
    for video, fields in database.items():
        try:
            videos.append(_parse_video(video, fields))
        except InputError as error:
            problems.append(f"{file}: video {video!r} {error}")
    refuse(problems, f"{file}: {len(problems):,} videos of the ground truth cannot be used:")
    return videos


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
        duration_s=_parse_positive(fields, "duration"),
        fps=_parse_positive(fields, "fps"),
        annotations=tuple([_parse_instance(annotation) for annotation in fields["annotations"]]),
    )


def _parse_positive(fields: dict[str, Any], key: str) -> float | None:
    if fields.get(key) is None:
        return None
    value = _parse_number(fields[key])
    if value is None or value <= 0:
        raise InputError(f"has {key} {fields[key]!r}; it must be a number above 0, or left out.")
    return value


def _parse_instance(annotation: Any) -> Instance:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("label"), str):
        raise InputError(f"has an annotation without a text 'label': {annotation!r}.")
    label, segment = annotation["label"], annotation.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        raise InputError(f"has a {label!r} whose 'segment' is {segment!r}; it must be [start_s, end_s].")
    start_s, end_s = _parse_number(segment[0]), _parse_number(segment[1])
    if start_s is None or end_s is None:
        raise InputError(f"has a {label!r} at {segment!r}; start and end must be finite numbers of seconds.")
    if end_s < start_s:
        raise InputError(f"has a {label!r} at {segment!r}, which ends before it starts; correct it or leave it out.")
    return Instance(label, start_s, end_s)


def _parse_number(value: Any) -> float | None:
    """A finite number, also from its text: BaS-Net's release of THUMOS14 writes its seconds as strings."""
    if isinstance(value, bool) or not isinstance(value, float | int | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
