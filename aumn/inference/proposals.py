"""From one video's scores to its detections (Eq. 16, attention threshold, class-wise NMS).

Shapes: T snippets, C classes, P proposals, N detections. Beyond what METHOD.md settles: both streams' video scores and
confidences are combined with the same weights (theta and 1 - theta).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from aumn.inference.settings import LocalizeSettings
from aumn.records import Video, VideoScores


@dataclass(frozen=True, slots=True)
class VideoDetections:
    """One video's detections as columns, best first within each class."""

    label_N: np.ndarray
    score_N: np.ndarray
    start_s_N: np.ndarray
    end_s_N: np.ndarray


def detect(
    scores: Mapping[str, VideoScores], video: Video, stride_frames: int, rules: LocalizeSettings
) -> VideoDetections:
    """Every kept class's confidence on every proposal, after NMS; a stream of no weight proposes nothing.

    Kept are the classes above the threshold, or the best one: a video is never silently without a detection.
    """
    fused_TC = _fused(scores, rules)
    sums_TC = np.concatenate([np.zeros((1, fused_TC.shape[1])), fused_TC.cumsum(0)])
    shared = None
    if rules.proposals == "attention":
        heard = [score.attention_T for name, score in scores.items() if rules.weight(name) > 0]
        shared = _propose(heard or [score.attention_T for score in scores.values()], video, stride_frames, rules)
    columns: list[tuple[np.ndarray, ...]] = []
    for label in _kept_classes(scores, rules):
        spans_P2, seconds_P2, apart_PP = shared or _propose([fused_TC[:, label]], video, stride_frames, rules)
        score_P = (sums_TC[spans_P2[:, 1], label] - sums_TC[spans_P2[:, 0], label]) / (spans_P2[:, 1] - spans_P2[:, 0])
        kept_N = _suppress(score_P, seconds_P2, apart_PP)
        columns.append((np.full(len(kept_N), label), score_P[kept_N], *seconds_P2[kept_N].T))
    return VideoDetections(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _fused(scores: Mapping[str, VideoScores], rules: LocalizeSettings) -> np.ndarray:
    """What Eq. 16 averages over a proposal, T x C: the streams' weighted attention times class activation."""
    return np.asarray(
        sum(rules.weight(name) * part.attention_T[:, None] * part.cas_TC for name, part in scores.items())
    )


class _Proposals(NamedTuple):
    spans_P2: np.ndarray  # in snippets: first, past the last
    seconds_P2: np.ndarray
    apart_PP: np.ndarray  # whether both may stay after NMS


def _propose(curves: Sequence[np.ndarray], video: Video, stride_frames: int, rules: LocalizeSettings) -> _Proposals:
    """Each curve's maximal runs of snippets above its mean.

    Where there is none, the whole video is the proposal: a curve that is the same everywhere stands above its mean
    nowhere, and features may run past the video's stated duration.
    """
    runs = np.concatenate([_runs(curve_T > curve_T.mean()) for curve_T in curves])
    for spans_P2 in (runs, np.array([[0, len(curves[0])]])):
        seconds_P2 = np.minimum(spans_P2 * (stride_frames / video.fps), video.duration_s)
        inside_P = seconds_P2[:, 1] > seconds_P2[:, 0]
        if inside_P.any():
            break
    seconds_P2 = seconds_P2[inside_P]
    return _Proposals(spans_P2[inside_P], seconds_P2, _pairwise_tiou(seconds_P2) <= rules.nms_tiou)


def _runs(above_T: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(above_T.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2)


def _kept_classes(scores: Mapping[str, VideoScores], rules: LocalizeSettings) -> np.ndarray:
    video_C = sum(rules.weight(stream) * score.video_C for stream, score in scores.items())
    assert isinstance(video_C, np.ndarray)
    kept = np.flatnonzero(video_C > rules.class_threshold)
    return kept if len(kept) else np.array([video_C.argmax()])


def _pairwise_tiou(seconds_P2: np.ndarray) -> np.ndarray:
    start_P, end_P = seconds_P2.T
    overlap_PP = np.minimum(end_P[:, None], end_P) - np.maximum(start_P[:, None], start_P)
    overlap_PP = overlap_PP.clip(0)
    length_P = end_P - start_P
    return np.asarray(overlap_PP / (length_P[:, None] + length_P - overlap_PP))


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
