"""What the page says of each video: a line in the list, and a packed text that is only unpacked when it is looked at.

A packed video is base64 of a zlib stream of: four bytes, the length of the JSON that follows; the JSON; then bytes in
steps of 1/255, one a snippet, for each of the JSON's streams: attention, each kept class's activation, each unit's
similarity.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aumn.inference.snippet_scores import SnippetScores
from aumn.records import Detections, GroundTruth
from aumn.report.measures import Measured


def list_videos(measured: Measured, durations_s: Mapping[str, float]) -> dict[str, Any]:
    """Columns of the list, a value a video; `found` one a threshold. A video lasts at least to its last end."""
    truth, found = measured.ground_truth, measured.detections
    count = len(truth.videos)
    last_s = np.zeros(count)
    for table in (truth, found):
        np.maximum.at(last_s, table.video_N, table.end_s_N)
    labels: list[list[int]] = [[] for _ in range(count)]
    for video, label in np.unique(np.stack([truth.video_N, truth.label_N], axis=1), axis=0).tolist():
        labels[video].append(label)

    def counted(video_N: np.ndarray) -> list[int]:
        counts: list[int] = np.bincount(video_N, minlength=count).tolist()
        return counts

    return {
        "ids": list(truth.videos),
        "duration_s": [
            round(max(durations_s.get(video, 0), last), 2)
            for video, last in zip(truth.videos, last_s.tolist(), strict=True)
        ],
        "labels": labels,
        "instances": counted(truth.video_N),
        "detections": counted(found.video_N),
        "found": [counted(truth.video_N[taken_G]) for taken_G in measured.diagnosis.taken_GT.T],
    }


def pack_videos(measured: Measured, scores: Mapping[str, Sequence[SnippetScores]], labels: Sequence[int]) -> list[str]:
    """Every video's packed text, in the list's order; `labels` are the page's numbers of the model's classes.

    An instance is [label, start_s, end_s, a digit a threshold: 1 for taken, 0 for missed], a detection [label, score,
    start_s, end_s, a digit a threshold: the index of its kind]; instances by start, detections best first.
    """
    truth, found = measured.ground_truth, measured.detections
    instances = _by_video(truth, np.lexsort((truth.end_s_N, truth.start_s_N)), measured.diagnosis.taken_GT)
    best_first_N = np.lexsort((found.end_s_N, found.start_s_N, -found.score_N))
    score_N = [float(f"{score:.3g}") for score in found.score_N.tolist()]
    detections = _by_video(found, best_first_N, measured.diagnosis.kind_NT, score_N)
    packed = []
    for index, video in enumerate(truth.videos):
        rows = scores.get(video, ())
        streams = [_describe(row, labels) for row in rows]
        header = json.dumps(
            {"gt": instances[index], "det": detections[index], "streams": streams}, separators=(",", ":")
        ).encode()
        arrays = (array for row in rows for array in (row.attention_T, row.cas_cT, row.similarity_kT))
        content = len(header).to_bytes(4, "little") + header + b"".join(array.tobytes() for array in arrays)
        packed.append(base64.b64encode(zlib.compress(content)).decode())
    return packed


def _by_video(
    table: Detections | GroundTruth, order_N: np.ndarray, digit_NT: np.ndarray, *more: Sequence[float]
) -> defaultdict[int, list[Any]]:
    times = (np.round(column_N, 3).tolist() for column_N in (table.start_s_N, table.end_s_N))
    digits = ["".join(map(str, row)) for row in digit_NT.astype(int).tolist()]
    columns = list(zip(table.label_N.tolist(), *more, *times, digits, strict=True))
    rows: defaultdict[int, list[Any]] = defaultdict(list)
    for n in order_N.tolist():
        rows[int(table.video_N[n])].append(columns[n])
    return rows


def _describe(row: SnippetScores, labels: Sequence[int]) -> dict[str, Any]:
    return {
        "name": row.stream,
        "snippets": len(row.attention_T),
        "snippet_s": row.snippet_s,
        "first_s": row.first_s,
        "threshold": round(row.threshold, 4),
        "classes": [labels[label] for label in row.classes],
        "video": [float(f"{score:.3g}") for score in row.video_c],
        "units": row.units,
    }
