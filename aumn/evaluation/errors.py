"""What goes wrong with each detection and each instance: DETAD's taxonomy, at every tIoU threshold.

After Alwassel, Heilbron, Escorcia and Ghanem, *Diagnosing Error in Temporal Action Detectors*, ECCV 2018. A detection
that takes an instance, as `average_precision` matches them, is a true positive. Any other is judged by its nearest
instance: the one with the highest tIoU of all instances of its video, whatever their class.

================  ==================================  ===========
kind              tIoU with the nearest instance      its class
================  ==================================  ===========
double detection  at least the threshold              the same
wrong label       at least the threshold              another
localization      at least 0.1, below the threshold   the same
confusion         at least 0.1, below the threshold   another
background        below 0.1, or there is none         any
================  ==================================  ===========

An instance that no detection takes is missed. Two departures. Of instances with equal tIoU one of the detection's own
class is the nearest: THUMOS14 labels every CliffDiving as Diving too, at the same times. And groups by length hold
equally many instances each, where DETAD's bounds are seconds that suit ActivityNet (30, 60, 120, 180) or THUMOS14.

Letters: N detections, G instances, P pairs of the two that share a video, T thresholds, C classes, L groups by length,
E kinds of detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aumn.evaluation.average_precision import bits, match, pair_up, ranking, tiou
from aumn.records import Detections, GroundTruth

KINDS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
BACKGROUND = len(KINDS) - 1
LENGTHS = ("XS", "S", "M", "L", "XL")
NEAR_TIOU = 0.1
MOST_PER_INSTANCE = 10  # DETAD looks at the best 10 G detections of a class with G instances


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What each detection is, as an index into KINDS, and what became of each instance, in the tables' own order."""

    kind_NT: np.ndarray  # uint8
    taken_GT: np.ndarray  # bool
    matched_N: np.ndarray  # as `match` has it
    nearest_N: np.ndarray  # the instance that a detection is judged by; -1: it overlaps none


def diagnose(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float]) -> Diagnosis:
    """Judge every detection and every instance; both tables must number videos and labels alike, thresholds ascend."""
    matched_N, taken_G = match(detections, ground_truth, tious)
    nearest_N, tiou_N = _nearest(detections, ground_truth)
    own_class_N1 = (ground_truth.label_N[nearest_N] == detections.label_N)[:, None]
    reaches_NT, is_near_N1 = tiou_N[:, None] >= np.asarray(tious), tiou_N[:, None] >= NEAR_TIOU
    tests = [bits(matched_N, len(tious)), reaches_NT & own_class_N1, reaches_NT, is_near_N1 & own_class_N1, is_near_N1]
    kind_NT = np.select(tests, range(len(tests)), BACKGROUND).astype(np.uint8)  # the first test that holds
    return Diagnosis(kind_NT, bits(taken_G, len(tious)), matched_N, nearest_N)


def removal_gains(detections: Detections, ground_truth: GroundTruth, diagnosis: Diagnosis) -> np.ndarray:
    """By how much mAP would rise if one kind of error were not there, T x (E + 1): a column a kind, then the missed.

    A kind's detections are dropped and the rest ranked again; missed instances no longer count among the instances (a
    class that has none left then counts as perfect). The gains do not add up to what is missing to 1.
    """
    instances_C = np.bincount(ground_truth.label_N, minlength=len(ground_truth.labels))
    order_N = ranking(detections, diagnosis.matched_N)
    label_N, kind_NT = detections.label_N[order_N], diagnosis.kind_NT[order_N]
    gain_TE = np.zeros((kind_NT.shape[1], len(KINDS) + 1))
    for t, kind_N in enumerate(kind_NT.T):
        place_M = np.flatnonzero(kind_N == 0)
        label_M = label_N[place_M]
        first_M, taken_C = np.searchsorted(label_N, label_M), np.bincount(label_M, minlength=len(instances_C))
        precision_M = _interpolated(label_M, place_M - first_M)
        mean = (precision_M / instances_C[label_M]).sum()
        for kind in range(1, len(KINDS)):
            dropped = np.append(0, np.cumsum(kind_N == kind))
            left_M = place_M - first_M - (dropped[place_M] - dropped[first_M])
            gain_TE[t, kind] = (_interpolated(label_M, left_M) / instances_C[label_M]).sum() - mean
        unfound = np.count_nonzero((instances_C > 0) & (taken_C == 0))
        gain_TE[t, -1] = (precision_M / taken_C[label_M]).sum() + unfound - mean
    return gain_TE / np.count_nonzero(instances_C)


def _interpolated(label_M: np.ndarray, above_M: np.ndarray) -> np.ndarray:
    """Each true positive's best precision at its recall or a higher one, to 12 digits: they come class by class."""
    precision_M = (np.arange(len(label_M)) - np.searchsorted(label_M, label_M) + 1) / (above_M + 1)
    # From the last class to the first each begins above all that come before it, so one maximum runs through all.
    best_M: np.ndarray = np.maximum.accumulate((precision_M - label_M)[::-1])[::-1] + label_M
    return best_M


def profile(detections: Detections, ground_truth: GroundTruth, diagnosis: Diagnosis) -> np.ndarray:
    """How many detections are of each kind, T x MOST_PER_INSTANCE x E, by their place in their class's ranking.

    Group i holds, of a class with G instances, the detections at places i G + 1 to (i + 1) G.
    """
    instances_C = np.bincount(ground_truth.label_N, minlength=len(ground_truth.labels))
    order = np.lexsort((-detections.score_N, detections.label_N))
    label_N = detections.label_N[order]
    place_N = np.arange(len(order)) - np.searchsorted(label_N, label_N)
    group_N = place_N // np.maximum(instances_C[label_N], 1)
    kept = group_N < MOST_PER_INSTANCE
    return _tally(diagnosis.kind_NT[order[kept]], group_N[kept], MOST_PER_INSTANCE)


@dataclass(frozen=True, slots=True)
class ByLength:
    """Errors by length of the instance they are about; group i holds lengths above bound i, up to bound i + 1."""

    bounds_s: list[float]  # L + 1, ascending; the first is the shortest length, which its group includes
    instances_L: np.ndarray
    missed_TL: np.ndarray
    kind_TLE: np.ndarray


def by_length(detections: Detections, ground_truth: GroundTruth, diagnosis: Diagnosis) -> ByLength:
    """Group instances by length, about a fifth in each group; a detection goes with its nearest instance.

    A detection that overlaps no instance goes by its own length, at the ends to the first or last group.
    """
    length_s_G = ground_truth.end_s_N - ground_truth.start_s_N
    bounds_s = np.quantile(length_s_G, np.linspace(0, 1, len(LENGTHS) + 1), method="lower")
    own_s_N = detections.end_s_N - detections.start_s_N
    length_s_N = np.where(diagnosis.nearest_N >= 0, length_s_G[diagnosis.nearest_N], own_s_N)
    group_G, group_N = (np.searchsorted(bounds_s[1:-1], length_s) for length_s in (length_s_G, length_s_N))
    missed_TL = [np.bincount(group_G[~taken_G], minlength=len(LENGTHS)) for taken_G in diagnosis.taken_GT.T]
    return ByLength(
        bounds_s.tolist(),
        np.bincount(group_G, minlength=len(LENGTHS)),
        np.array(missed_TL),
        _tally(diagnosis.kind_NT, group_N, len(LENGTHS)),
    )


def _nearest(detections: Detections, ground_truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Each detection's nearest instance and its tIoU; -1 and 0 where it overlaps none.

    Of equal tIoUs: the own class first, then the earlier start, the earlier end, the first in the table.
    """
    by_video_G = np.argsort(ground_truth.video_N, kind="stable")
    detection_P, nth_P = pair_up(detections.video_N, ground_truth.video_N[by_video_G])
    instance_P = by_video_G[nth_P]
    tiou_P = tiou(detections, detection_P, ground_truth, instance_P)
    other_class_P = ground_truth.label_N[instance_P] != detections.label_N[detection_P]
    start_s_P, end_s_P = ground_truth.start_s_N[instance_P], ground_truth.end_s_N[instance_P]
    order = np.lexsort((instance_P, end_s_P, start_s_P, other_class_P, -tiou_P, detection_P))
    best = order[np.flatnonzero(np.diff(detection_P[order], prepend=-1))]
    best = best[tiou_P[best] > 0]
    nearest_N, tiou_N = np.full(len(detections), -1), np.zeros(len(detections))
    nearest_N[detection_P[best]], tiou_N[detection_P[best]] = instance_P[best], tiou_P[best]
    return nearest_N, tiou_N


def _tally(kind_NT: np.ndarray, group_N: np.ndarray, groups: int) -> np.ndarray:
    """Counts of each kind in each group, T x groups x E."""
    size = groups * len(KINDS)
    counts = [np.bincount(group_N * len(KINDS) + kind_N, minlength=size) for kind_N in kind_NT.T]
    return np.array(counts).reshape(-1, groups, len(KINDS))
