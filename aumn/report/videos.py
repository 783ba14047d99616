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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aumn.inference.snippet_scores import SnippetScores
from aumn.report.measures import Measured


def list_videos(measured: Measured, durations_s: Mapping[str, float]) -> dict[str, Any]:
    """Columns of the list, a value a video; `found` has a column a threshold. A duration may be the last end known."""
    truth, found = measured.ground_truth, measured.detections
    count = len(truth.videos)
    taken = [truth.video_N[taken_G] for taken_G in measured.diagnosis.taken_GT.T]
    last_s = np.zeros(count)
    for table in (truth, found):
        np.maximum.at(last_s, table.video_N, table.end_s_N)
    labels: list[list[int]] = [[] for _ in range(count)]
    for pair in np.unique(np.stack([truth.video_N, truth.label_N], axis=1), axis=0).tolist():
        labels[pair[0]].append(pair[1])
    return {
        "ids": list(truth.videos),
        "duration_s": [
            round(durations_s.get(video, last), 2) for video, last in zip(truth.videos, last_s.tolist(), strict=True)
        ],
        "labels": labels,
        "instances": np.bincount(truth.video_N, minlength=count).tolist(),
        "detections": np.bincount(found.video_N, minlength=count).tolist(),
        "found": [np.bincount(video_N, minlength=count).tolist() for video_N in taken],
    }


def pack_videos(
    measured: Measured, scores: Mapping[str, Sequence[SnippetScores]], names: Mapping[str, int], classes: Sequence[str]
) -> list[str]:
    """Every video's packed text, in the list's order; `names` numbers labels on the page, `classes` the model's."""
    instances, detections = _instances(measured), _detections(measured)
    packed = []
    for index, video in enumerate(measured.ground_truth.videos):
        streams = [_stream(row, names, classes) for row in scores.get(video, ())]
        header = {"gt": instances[index], "det": detections[index], "streams": [facts for facts, _ in streams]}
        packed.append(_pack(header, (array for _, arrays in streams for array in arrays)))
    return packed


def _instances(measured: Measured) -> defaultdict[int, list[Any]]:
    """By video: [label, start_s, end_s, a digit a threshold: 1 for taken, 0 for missed], by start."""
    truth = measured.ground_truth
    rows: defaultdict[int, list[Any]] = defaultdict(list)
    texts = _digits(measured.diagnosis.taken_GT.astype(np.uint8))
    for g in np.lexsort((truth.end_s_N, truth.start_s_N)).tolist():
        row = [int(truth.label_N[g]), round(float(truth.start_s_N[g]), 3), round(float(truth.end_s_N[g]), 3), texts[g]]
        rows[int(truth.video_N[g])].append(row)
    return rows


def _detections(measured: Measured) -> defaultdict[int, list[Any]]:
    """By video: [label, score, start_s, end_s, a digit a threshold: the index of its kind], best first."""
    found = measured.detections
    rows: defaultdict[int, list[Any]] = defaultdict(list)
    texts = _digits(measured.diagnosis.kind_NT)
    columns = [np.round(column_N, 3).tolist() for column_N in (found.start_s_N, found.end_s_N)]
    labels, videos, scores = found.label_N.tolist(), found.video_N.tolist(), found.score_N.tolist()
    for n in np.lexsort((found.end_s_N, found.start_s_N, -found.score_N)).tolist():
        rows[videos[n]].append([labels[n], float(f"{scores[n]:.3g}"), columns[0][n], columns[1][n], texts[n]])
    return rows


def _digits(digit_NT: np.ndarray) -> list[str]:
    return ["".join(map(str, row)) for row in digit_NT.tolist()]


def _stream(
    row: SnippetScores, names: Mapping[str, int], classes: Sequence[str]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    facts = {
        "name": row.stream,
        "snippets": len(row.attention_T),
        "snippet_s": row.snippet_s,
        "threshold": round(row.threshold, 4),
        "classes": [names[classes[label]] for label in row.classes],
        "video": [float(f"{score:.3g}") for score in row.video_c],
        "units": row.units,
    }
    return facts, [row.attention_T, row.cas_cT, row.similarity_kT]


def _pack(header: dict[str, Any], arrays: Iterable[np.ndarray]) -> str:
    text = json.dumps(header, separators=(",", ":")).encode()
    content = len(text).to_bytes(4, "little") + text + b"".join(array.tobytes() for array in arrays)
    return base64.b64encode(zlib.compress(content, 9)).decode()
