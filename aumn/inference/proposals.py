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

LEAST_ODDS = 1 / 400
"""Below these a snippet has no evidence: how far below is noise that would move a curve's mean."""
MOST_AT_ONCE = 2048
"""More proposals of a video are compared one with all, which takes longer and no more memory than their number."""


class Proposals(NamedTuple):
    """Spans of one video that may be instances."""

    spans_P2: np.ndarray  # in snippets: first, past the last
    seconds_P2: np.ndarray
    apart_PP: np.ndarray | None  # whether NMS lets two stand; None: they are too many to hold that


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
    fused_TC = evidence(scores, rules)
    sums_TC = np.concatenate([np.zeros((1, fused_TC.shape[1])), fused_TC.cumsum(0)])  # up to each snippet
    attention = [_curves(score.attention_T[:, None], rules)[:, 0] for weight, score in weighted if weight > 0]
    shared = _propose(attention, video, clock, rules) if rules.proposals == "attention" else None
    columns: list[tuple[np.ndarray, ...]] = []
    for label in kept_classes if len(kept_classes) else [video_C.argmax()]:
        proposals = shared or _propose([fused_TC[:, label]], video, clock, rules)
        score_P = _confidence(sums_TC[:, label], proposals.spans_P2, rules.contrast)
        kept_N, seconds_N2 = _suppress(score_P, proposals, rules)
        columns.append((np.full(len(kept_N), label, np.int32), score_P[kept_N], *seconds_N2.T))
    return VideoDetections(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def evidence(scores: Mapping[str, VideoScores], rules: LocalizeSettings) -> np.ndarray:
    """What Eq. 16 averages over a proposal, T x C, on the rules' scale and smoothed as they say."""
    shares = rules.shares(scores)
    parts = [shares[name] * score.attention_T[:, None] * score.cas_TC for name, score in scores.items()]
    return _curves(np.asarray(sum(parts)), rules)


def together(videos: Sequence[str], found: Sequence[VideoDetections], classes: Sequence[str]) -> Detections:
    """The detections of several videos as one table, in their order."""
    video_N = np.repeat(np.arange(len(videos), dtype=np.int32), [len(one.score_N) for one in found])
    none = VideoDetections(np.zeros(0, np.int32), *[np.zeros(0)] * 3)
    return Detections(tuple(videos), tuple(classes), video_N, *map(np.concatenate, zip(none, *found, strict=True)))


def _curves(values_TC: np.ndarray, rules: LocalizeSettings) -> np.ndarray:
    """Probabilities as rules threshold and average them: on their scale, and as means over snippets around each."""
    if rules.scale == "log_odds":
        values_TC = values_TC.clip(LEAST_ODDS / (1 + LEAST_ODDS), 1 - np.finfo(np.float32).eps)
        values_TC = np.log(values_TC / (1 - values_TC)) - np.log(LEAST_ODDS)
    if rules.smoothing > 1:
        before, behind = (rules.smoothing - 1) // 2, rules.smoothing // 2
        lowest_C = values_TC.min(0)  # above which a constant curve has nothing to round: it stays constant
        sums_TC = np.concatenate([np.zeros((1, values_TC.shape[1])), (values_TC - lowest_C).cumsum(0)])
        place_T = np.arange(len(values_TC))
        first_T, past_T = (place_T - before).clip(0), (place_T + behind + 1).clip(max=len(values_TC))
        values_TC = lowest_C + (sums_TC[past_T] - sums_TC[first_T]) / (past_T - first_T)[:, None]
    return values_TC


def _propose(curves: Sequence[np.ndarray], video: Video, clock: Clock, rules: LocalizeSettings) -> Proposals:
    """Each curve's maximal runs of snippets above its mean, or above any of several thresholds.

    Where there is none, the whole video is the proposal: a curve that is the same everywhere stands above its mean
    nowhere. A video ends where its features do: durations in released ground truth are often another's, and cut off
    real instances.
    """
    runs = [_runs(curve_T, level) for curve_T in curves for level in _levels(curve_T, rules.thresholds)]
    spans_P2 = np.concatenate(runs)
    if rules.thresholds:
        spans_P2 = np.unique(spans_P2, axis=0)
    if not len(spans_P2):
        spans_P2 = np.array([[0, len(curves[0])]])
    seconds_P2 = np.maximum(clock.seconds(spans_P2, video.fps), 0)
    held = len(spans_P2) <= MOST_AT_ONCE
    return Proposals(spans_P2, seconds_P2, _tious(seconds_P2[:, None], seconds_P2) <= rules.nms_tiou if held else None)


def _tious(one_2: np.ndarray, seconds_P2: np.ndarray) -> np.ndarray:
    """tIoU, one or several to a row, with each."""
    start, end = one_2[..., 0], one_2[..., 1]
    start_P, end_P = seconds_P2.T
    overlap_P = (np.minimum(end, end_P) - np.maximum(start, start_P)).clip(0)
    tiou_P: np.ndarray = overlap_P / ((end - start) + (end_P - start_P) - overlap_P)
    return tiou_P


def _levels(curve_T: np.ndarray, thresholds: Sequence[float]) -> Sequence[float]:
    """Values above which a curve stands out."""
    if not thresholds:
        return [curve_T.mean()]
    lowest, highest = curve_T.min(), curve_T.max()
    return [lowest + threshold * (highest - lowest) for threshold in thresholds]


def _runs(curve_T: np.ndarray, level: float) -> np.ndarray:
    return np.flatnonzero(np.diff((curve_T > level).astype(np.int8), prepend=0, append=0)).reshape(-1, 2)


def _confidence(sums_T: np.ndarray, spans_P2: np.ndarray, contrast: float) -> np.ndarray:
    """Eq. 16's mean inside of each proposal, less `contrast` times the mean in the quarters of its length around it.

    These end with the video; a proposal that is all of the video has nothing around it. Quarters count parts of
    snippets. `sums_T` are up to each snippet, one more than there are.
    """
    first_P, past_P = spans_P2.T
    inside_P = sums_T[past_P] - sums_T[first_P]
    mean_P: np.ndarray = inside_P / (past_P - first_P)
    if not contrast:
        return mean_P
    quarter_P = (past_P - first_P) / 4
    before_P, behind_P = (first_P - quarter_P).clip(0), (past_P + quarter_P).clip(max=len(sums_T) - 1)
    places_T = np.arange(len(sums_T))
    around_P = np.interp(behind_P, places_T, sums_T) - np.interp(before_P, places_T, sums_T) - inside_P
    length_P = (behind_P - before_P) - (past_P - first_P)
    mean_P -= contrast * np.divide(around_P, length_P, out=np.zeros_like(mean_P), where=length_P > 0)
    return mean_P


def _suppress(score_P: np.ndarray, proposals: Proposals, rules: LocalizeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Greedy NMS: the proposals kept, best first, with seconds; ties go to the earlier start, then the earlier end.

    A kept proposal's seconds are its own, or those that Gaussian-weighted fusion makes of the ones dropped for it.
    """
    _, seconds_P2, apart_PP = proposals
    order = np.lexsort((seconds_P2[:, 1], seconds_P2[:, 0], -score_P))
    is_fused, fused_P2 = rules.fusion == "gaussian", seconds_P2.copy()
    alive_P = np.ones(len(score_P), dtype=bool)
    kept = []
    for proposal in order:
        if alive_P[proposal]:
            kept.append(proposal)
            one_2 = seconds_P2[proposal]
            apart_P = _tious(one_2, seconds_P2) <= rules.nms_tiou if apart_PP is None else apart_PP[proposal]
            if is_fused and score_P[proposal] > 0:
                dropped_P = alive_P & ~apart_P
                dropped_P[proposal] = True
                fused_P2[proposal] = _fuse(one_2, score_P[dropped_P], seconds_P2[dropped_P], rules.fusion_sigma)
            alive_P &= apart_P
    kept_N = np.array(kept, dtype=np.intp)
    return kept_N, fused_P2[kept_N]


def _fuse(kept_2: np.ndarray, score_P: np.ndarray, seconds_P2: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian-weighted fusion: the mean ends of a kept proposal and those dropped for it; scores below 0 are 0."""
    weight_P = score_P.clip(0) * np.exp(-((1 - _tious(kept_2, seconds_P2)) ** 2) / (2 * sigma**2))
    mean_2: np.ndarray = weight_P @ seconds_P2 / weight_P.sum()
    return mean_2
