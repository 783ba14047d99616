"""Detections and ground truth from plain rows, and the ActivityNet protocol written plainly from its definition."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from aumn.records import Detections, GroundTruth


class Found(NamedTuple):
    video: str
    label: str
    score: float
    start_s: float
    end_s: float


class Instance(NamedTuple):
    video: str
    label: str
    start_s: float
    end_s: float


def as_detections(rows: Sequence[Found], videos: Sequence[str] = (), labels: Sequence[str] = ()) -> Detections:
    """A table of the rows; videos and labels are numbered in the order given, else in the order of their names."""
    return Detections(**_columns(rows, Found._fields, videos, labels))


def as_ground_truth(rows: Sequence[Instance], videos: Sequence[str] = (), labels: Sequence[str] = ()) -> GroundTruth:
    """A table of the instances; `videos` may name more videos than have instances."""
    return GroundTruth(**_columns(rows, Instance._fields, videos, labels))


def as_rows(detections: Detections) -> list[Found]:
    """The rows of a table, in the order of their values."""
    names = ([detections.videos[i] for i in detections.video_N], [detections.labels[i] for i in detections.label_N])
    numbers = (column_N.tolist() for column_N in (detections.score_N, detections.start_s_N, detections.end_s_N))
    return sorted(map(Found._make, zip(*names, *numbers, strict=True)))


def _columns(rows, fields, videos, labels):
    videos = list(videos) or sorted({row.video for row in rows})
    labels = list(labels) or sorted({row.label for row in rows})
    video_of, label_of = ({name: i for i, name in enumerate(names)} for names in (videos, labels))
    columns = {
        "video_N": np.array([video_of[row.video] for row in rows], dtype=np.int32),
        "label_N": np.array([label_of[row.label] for row in rows], dtype=np.int32),
    }
    numbers = {f"{name}_N": np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in fields[2:]}
    return {"videos": videos, "labels": labels, **columns, **numbers}


def average_precision(rows: Sequence[Found], instances: Sequence[Instance], label: str, threshold: float) -> Fraction:
    """One class at one threshold: rank, match greedily, sum the area under interpolated precision; exact after tIoU."""
    ranked = sorted((row for row in rows if row.label == label), key=lambda row: (-row.score, row.video, *row[3:]))
    left = sorted(instance for instance in instances if instance.label == label)
    positives = len(left)
    recalls, precisions = [Fraction(0)], [Fraction(0)]
    true_positives = 0
    for place, row in enumerate(ranked, start=1):
        candidates = [instance for instance in left if instance.video == row.video]
        best = max(candidates, key=lambda instance: tiou(row, instance), default=None)  # of equals, the first
        if best is not None and tiou(row, best) >= threshold:
            left.remove(best)
            true_positives += 1
        recalls.append(Fraction(true_positives, positives))
        precisions.append(Fraction(true_positives, place))
    steps = range(1, len(recalls))
    return sum(((recalls[i] - recalls[i - 1]) * max(precisions[i:]) for i in steps), Fraction(0))


def tiou(one: Found | Instance, other: Found | Instance) -> float:
    overlap = max(min(one.end_s, other.end_s) - max(one.start_s, other.start_s), 0.0)
    union = (other.end_s - other.start_s) + (one.end_s - one.start_s) - overlap
    return overlap / union if union > 0 else 0.0
