"""What the page says of each video: a line in the list, and packed with its neighbours what is shown of it alone.

A line of packed text is base64 of a zlib stream of GROUP videos, each of:

- its instances and its detections, each the numbers of all rows and then their digits, a byte a threshold;
- how many streams there are, and of each `_describe`'s numbers, then bytes in steps of 1/255, one a snippet: attention,
  each kept class's activation, each unit's similarity.

Numbers are float64, of times milliseconds and scores as float32 has them: where many bits are zero they compress well.
"""

from __future__ import annotations

import zlib
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from aumn.inference.snippet_scores import SnippetScores
from aumn.records import Detections, GroundTruth
from aumn.report.measures import Measured

GROUP = 8
"""So many videos share what a stream costs, and are unpacked to look at one of them."""


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
        "group": GROUP,
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


def pack_videos(
    measured: Measured, scores: Mapping[str, Sequence[SnippetScores]], labels: Sequence[int], streams: Sequence[str]
) -> list[bytes]:
    """The packed lines, of videos in the list's order; `labels` are the page's numbers of the model's classes.

    An instance is [label, start, end] with 1 for taken and 0 for missed as digits, a detection [label, score, start,
    end] with the index of its kind; instances by start, detections best first.
    """
    truth, found, diagnosis = measured.ground_truth, measured.detections, measured.diagnosis
    instances = _by_video(truth, diagnosis.taken_GT, (truth.end_s_N, truth.start_s_N), len(truth.videos))
    order = (found.end_s_N, found.start_s_N, -found.score_N)
    detections = _by_video(found, diagnosis.kind_NT, order, len(truth.videos))
    contents: list[Any] = []  # of each video, for bytes.join
    for video, *events in zip(truth.videos, instances, detections, strict=True):
        rows = scores.get(video, ())
        contents.append([*events, np.array([len(rows)], float)])
        for row in rows:
            contents[-1] += (_describe(row, streams, labels), row.attention_T, row.cas_cT, row.similarity_kT)
    return [_pack(b"".join(chain(*contents[start : start + GROUP]))) for start in range(0, len(contents), GROUP)]


def _pack(content: bytes) -> bytes:
    """Of scores, which are noise beside runs of the same byte, a search for more than runs finds next to nothing."""
    stream = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return b2a_base64(stream.compress(content) + stream.flush())


def _by_video(
    table: Detections | GroundTruth, digit_NT: np.ndarray, order: Sequence[np.ndarray], videos: int
) -> list[bytes]:
    """Each video's rows, in this order: their numbers, then their digits."""
    order_N = np.lexsort((*order, table.video_N))
    scores = [table.score_N.astype(np.float32)] if isinstance(table, Detections) else []
    times = (np.rint(1000 * time_s_N) for time_s_N in (table.start_s_N, table.end_s_N))
    number_NX = np.stack([table.label_N, *scores, *times], axis=1)[order_N]
    digit_NT = digit_NT[order_N]
    bounds = np.searchsorted(table.video_N[order_N], np.arange(videos + 1)).tolist()
    return [number_NX[start:end].tobytes() + digit_NT[start:end].tobytes() for start, end in pairwise(bounds)]


def _describe(row: SnippetScores, streams: Sequence[str], labels: Sequence[int]) -> np.ndarray:
    """Number of the stream, of its snippets, their length and first second, threshold, classes and their scores."""
    classes = [labels[label] for label in row.classes]
    facts = (streams.index(row.stream), len(row.attention_T), row.snippet_s, row.first_s, row.threshold, len(classes))
    return np.array([*facts, *classes, *np.array(row.video_c, np.float32)], float)
