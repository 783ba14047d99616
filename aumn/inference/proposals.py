"""From one video's scores to its detections (Eq. 16, attention threshold, class-wise NMS).

Shapes: T snippets, C classes, P proposals, N detections. Beyond what METHOD.md settles: the streams' video scores and
confidences are combined with the same weights, any number of streams' that are 1 together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from aumn.inference.settings import LocalizeSettings
from aumn.records import Clock, Detections, Video, VideoScores


class VideoDetections(NamedTuple):
    """One video's detections as columns, best first within each class."""

    label_N: np.ndarray  # int32
    score_N: np.ndarray
    start_s_N: np.ndarray
    end_s_N: np.ndarray


def detect(scores: Mapping[str, VideoScores], video: Video, clock: Clock, rules: LocalizeSettings) -> VideoDetections:
    """Every kept class's confidence on every proposal, after NMS; a stream of no weight proposes nothing.

    Kept are the classes above the threshold, or the best one: a video is never silently without a detection.
    """
    shares = rules.shares(scores)
    weighted = [(shares[stream], score) for stream, score in scores.items()]
    video_C = np.asarray(sum(weight * score.video_C for weight, score in weighted))
    kept_classes = np.flatnonzero(video_C > rules.class_threshold)
    # What Eq. 16 averages over a proposal, as sums up to each snippet.
    fused_TC = np.asarray(sum(weight * score.attention_T[:, None] * score.cas_TC for weight, score in weighted))
    sums_TC = np.concatenate([np.zeros((1, fused_TC.shape[1])), fused_TC.cumsum(0)])
    attention = [score.attention_T for weight, score in weighted if weight > 0]
    shared = _propose(attention, video, clock, rules) if rules.proposals == "attention" else None
    columns: list[tuple[np.ndarray, ...]] = []
    for label in kept_classes if len(kept_classes) else [video_C.argmax()]:
        spans_P2, seconds_P2, apart_PP = shared or _propose([fused_TC[:, label]], video, clock, rules)
        score_P = (sums_TC[spans_P2[:, 1], label] - sums_TC[spans_P2[:, 0], label]) / (spans_P2[:, 1] - spans_P2[:, 0])
        kept_N = _suppress(score_P, seconds_P2, apart_PP)
        columns.append((np.full(len(kept_N), label, np.int32), score_P[kept_N], *seconds_P2[kept_N].T))
    return VideoDetections(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def together(videos: Sequence[str], found: Sequence[VideoDetections], classes: Sequence[str]) -> Detections:
    """The detections of several videos as one table, in their order."""
    video_N = np.repeat(np.arange(len(videos), dtype=np.int32), [len(one.score_N) for one in found])
    none = VideoDetections(np.zeros(0, np.int32), *[np.zeros(0)] * 3)
    return Detections(tuple(videos), tuple(classes), video_N, *map(np.concatenate, zip(none, *found, strict=True)))


def _propose(
    curves: Sequence[np.ndarray], video: Video, clock: Clock, rules: LocalizeSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each curve's maximal runs of snippets above its mean.

    As snippets (P x 2: first, past the last), as seconds (P x 2), and whether NMS lets two stand (P x P). Where there
    is none, the whole video is the proposal: a curve that is the same everywhere stands above its mean nowhere. A video
    ends where its features do: durations in released ground truth are often another's, and cut off real instances.
    """
    above = [(curve_T > curve_T.mean()).astype(np.int8) for curve_T in curves]
    runs = [np.flatnonzero(np.diff(above_T, prepend=0, append=0)).reshape(-1, 2) for above_T in above]
    spans_P2 = np.concatenate(runs)
    if not len(spans_P2):
        spans_P2 = np.array([[0, len(curves[0])]])
    seconds_P2 = np.maximum(clock.seconds(spans_P2, video.fps), 0)
    start_P, end_P = seconds_P2.T
    overlap_PP = (np.minimum(end_P[:, None], end_P) - np.maximum(start_P[:, None], start_P)).clip(0)
    length_P = end_P - start_P
    return spans_P2, seconds_P2, overlap_PP / (length_P[:, None] + length_P - overlap_PP) <= rules.nms_tiou


def _suppress(score_P: np.ndarray, seconds_P2: np.ndarray, apart_PP: np.ndarray) -> np.ndarray:
    """Greedy NMS: the proposals kept, best first; ties go to the earlier start, then the earlier end."""
    order = np.lexsort((seconds_P2[:, 1], seconds_P2[:, 0], -score_P))
    alive_P = np.ones(len(score_P), dtype=bool)
    kept = []
    for proposal in order:
        if alive_P[proposal]:
            kept.append(proposal)
            alive_P &= apart_PP[proposal]
    return np.array(kept, dtype=np.intp)
