"""Average precision of temporal detections, by the ActivityNet protocol: match one video, then merge the matches.

Matching. Within a video and class, detections come in the order of (-score, start, end). Each takes, of the instances
not yet taken, the one with the highest tIoU, if that reaches the threshold; of equal tIoUs the instance first in the
order of (start, end). A detection that takes none is a false positive. Each threshold is matched on its own.

Merging. A class ranks its detections of all videos by (-score, video name, start, end), whatever the order or the parts
they came in. Its average precision is the mean over its instances of the interpolated precision (the best precision at
this recall or a higher one) at which they are found, zero for those never found; this is the area that the devkit sums.

tIoU is computed as the devkit does, `overlap / (length + length - overlap)` in float64, with one departure: 0/0 is 0.
So an instance of zero length (ActivityNet 1.2 and 1.3 have some) counts among the instances and is never found. The
devkit agrees for any detection that has a length; two zero lengths give it a NaN, which it takes for a match.

Letters: N detections, G instances of the ground truth, P pairs of the two that share video and class, T tIoU
thresholds, C classes, M matched detections of one class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from aumn.records import Detections, GroundTruth

MOST_TIOUS = 63  # a bit each, and one to spare for the shift that makes them
TRUE_POSITIVE = np.dtype(
    [("label", np.int32), ("video", np.int32), ("score", float), ("matched", np.uint64), ("above", int)]
)


def match(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float]) -> np.ndarray:
    """The detections as rows that carry what they matched: all that a `Ranking` needs.

    Both tables must number videos and labels alike. Any share of the videos may be matched on its own, but all
    detections of a video together. `tious` ascend, at most MOST_TIOUS; bit t of a row's `matched` is threshold t.
    """
    assert len(tious) <= MOST_TIOUS
    assert (np.diff(tious) > 0).all()
    assert np.isfinite([detections.score_N, detections.start_s_N, detections.end_s_N]).all()
    fields = [("label", np.int32), ("video", np.int32), ("score", float), ("start_s", float), ("end_s", float)]
    rows = np.empty(len(detections), np.dtype([*fields, ("matched", np.uint64)], align=True))
    for name in ("label", "video", "score", "start_s", "end_s"):
        rows[name] = getattr(detections, f"{name}_N")
    rows["matched"], _ = meet(detections, ground_truth, tious)
    return rows


def meet(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which detections take an instance and which instances are taken, in the tables' own order; bits as in `match`."""
    pairs = _pairs(detections, ground_truth, min(tious))
    return _take_turns(pairs, len(detections), len(ground_truth), np.asarray(tious, dtype=np.float64))


class Ranking:
    """Each class's detections, best first: of all videos, or of one rank's, which others' counts then complete."""

    def __init__(self, rows: np.ndarray) -> None:
        order = _order(rows)
        self._label_N, self._video_N, self._score_N = (rows[name][order] for name in ("label", "video", "score"))
        self._matched_N = rows["matched"][order]

    def true_positives(self) -> np.ndarray:
        """What `average_precisions` needs: the detections that matched at some threshold, by class and place.

        A row's `above` counts what stands above it in its class here, so its place is one more (1 is the first).
        """
        found_M = np.flatnonzero(self._matched_N)
        positives = np.empty(len(found_M), TRUE_POSITIVE)
        for name in ("label", "video", "score", "matched"):
            positives[name] = getattr(self, f"_{name}_N")[found_M]
        positives["above"] = found_M - np.searchsorted(self._label_N, positives["label"])
        return positives

    def count_above(self, positives: np.ndarray) -> np.ndarray:
        """How many detections here stand above each of these true positives, which are of other videos."""
        first_M = np.searchsorted(self._label_N, positives["label"])
        key_N = _pairs_of(self._label_N, -self._score_N)
        key_M = _pairs_of(positives["label"], -positives["score"])
        low_M, high_M = (np.searchsorted(key_N, key_M, side=side) for side in ("left", "right"))
        while (open_M := np.flatnonzero(low_M < high_M)).size:  # equal scores stand in the order of their videos
            middle_M = (low_M[open_M] + high_M[open_M]) // 2
            is_above_M = self._video_N[middle_M] < positives["video"][open_M]
            low_M[open_M] = np.where(is_above_M, middle_M + 1, low_M[open_M])
            high_M[open_M] = np.where(is_above_M, high_M[open_M], middle_M)
        above_M: np.ndarray = low_M - first_M
        return above_M


def _pairs_of(first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """Pairs that numpy orders by the first number, then by the second: it has complex numbers so."""
    pair_N = np.empty(len(first_N), dtype=np.complex128)
    pair_N.real, pair_N.imag = first_N, second_N
    return pair_N


def average_precisions(positives: np.ndarray, instances_C: np.ndarray, num_tious: int) -> np.ndarray:
    """The average precision of each class at each threshold (C x T), from the true positives of all detections.

    `instances_C` counts each class's instances. A class without true positives gets 0.
    """
    ap_CT = np.zeros((len(instances_C), num_tious))
    for label, places in enumerate(true_positive_places(positives, len(instances_C), num_tious)):
        for t, place_M in enumerate(places):
            ap_CT[label, t] = _average_precision(place_M, int(instances_C[label]))
    return ap_CT


def true_positive_places(positives: np.ndarray, num_labels: int, num_tious: int) -> list[list[np.ndarray]]:
    """The places (1 is the first) at which each class's ranking holds its true positives, at each threshold.

    All of a precision-recall curve: at the i-th of them recall is i / instances, precision i / place.
    """
    matched_MT = (positives["matched"][:, None] >> np.arange(num_tious, dtype=np.uint64)) & 1 > 0
    place_M = positives["above"] + 1
    bounds = np.searchsorted(positives["label"], np.arange(num_labels + 1))
    return [[place_M[start:end][matched_M] for matched_M in matched_MT[start:end].T] for start, end in pairwise(bounds)]


def _average_precision(place_M: np.ndarray, instances: int) -> float:
    """Interpolated average precision, from the places (1 is the first) at which a ranking holds its true positives.

    `fsum` rounds once, so neither order nor grouping can show in the result.
    """
    if not len(place_M):
        return 0.0
    precision_M = np.arange(1, len(place_M) + 1) / place_M
    interpolated_M = np.maximum.accumulate(precision_M[::-1])
    return math.fsum(interpolated_M.tolist()) / instances


def _order(rows: np.ndarray) -> np.ndarray:
    """The order that ranks each class's detections: (label, -score, video, start, end).

    Rows alike in all of these differ at most in what they matched: the one whose turn came first has the more.
    """
    fewer_matches_N = -np.bitwise_count(rows["matched"]).astype(np.int8)
    return _by_score(rows["label"], rows["score"], rows["video"], rows["start_s"], rows["end_s"], fewer_matches_N)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Detections with instances of their video and class, in the order in which they get to choose.

    A step holds at most one pair of each detection and of each instance, so its pairs cannot disturb each other.
    """

    detection_P: np.ndarray
    instance_P: np.ndarray
    tiou_P: np.ndarray
    step_P: np.ndarray


def _take_turns(
    pairs: _Pairs, num_detections: int, num_instances: int, tiou_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Let detections take instances, step by step in all videos and classes at once: who took and who was taken.

    There are hundreds of steps, most of a few pairs, so a step is a handful of operations on whole numbers.
    """
    matched_N = np.zeros(num_detections, dtype=np.uint64)
    taken_G = np.zeros(num_instances, dtype=np.uint64)
    reached_P = np.searchsorted(tiou_T, pairs.tiou_P, side="right").astype(np.uint64)  # thresholds that are not above
    reaches_P = (np.uint64(1) << reached_P) - np.uint64(1)
    bounds = np.flatnonzero(np.diff(pairs.step_P, prepend=-1, append=-1))
    for start, end in pairwise(bounds):
        detection, instance = pairs.detection_P[start:end], pairs.instance_P[start:end]
        takes_P = reaches_P[start:end] & ~(matched_N[detection] | taken_G[instance])
        matched_N[detection] |= takes_P
        taken_G[instance] |= takes_P
    return matched_N, taken_G


def _pairs(detections: Detections, ground_truth: GroundTruth, lowest_tiou: float) -> _Pairs:
    """Every detection with every instance of its video and class, where the tIoU reaches the lowest threshold.

    Equal tIoUs choose by the instances' order of (start, end); a group is a video and a class.
    """
    num_labels = len(ground_truth.labels)
    groups, group_G = np.unique(_group(ground_truth, num_labels), return_inverse=True)
    by_time_G = np.lexsort((ground_truth.end_s_N, ground_truth.start_s_N, group_G))
    first_instance = np.searchsorted(group_G[by_time_G], np.arange(len(groups) + 1))

    row_N, group_N = _find(_group(detections, num_labels), groups)
    pair_P, nth_P = _repeat(np.diff(first_instance)[group_N])
    detection_P, group_P = row_N[pair_P], group_N[pair_P]
    instance_P = first_instance[group_P] + nth_P
    tiou_P = tiou(detections, detection_P, ground_truth, by_time_G[instance_P])

    kept = np.flatnonzero(tiou_P >= lowest_tiou)
    detection_P, group_P, instance_P, tiou_P = detection_P[kept], group_P[kept], instance_P[kept], tiou_P[kept]
    start_s_P, end_s_P = detections.start_s_N[detection_P], detections.end_s_N[detection_P]
    order = _by_score(group_P, detections.score_N[detection_P], start_s_P, end_s_P, detection_P, -tiou_P, instance_P)
    step_P = _steps(group_P[order], detection_P[order])
    order = order[np.argsort(_small(step_P), kind="stable")]
    return _Pairs(detection_P[order], by_time_G[instance_P[order]], tiou_P[order], np.sort(step_P))


def _steps(group_P: np.ndarray, detection_P: np.ndarray) -> np.ndarray:
    """When each pair is decided: the first choices of each group's first detection, its second choices, and so on.

    The pairs come by group, in it by detection in order of score, of a detection the higher tIoU first.
    """
    choices_P = np.flatnonzero(np.diff(detection_P, prepend=-1))
    turn_P, choice_P = _repeat(np.diff(choices_P, append=len(detection_P)))
    group_of_turn = group_P[choices_P]
    turn_in_group = np.arange(len(choices_P)) - np.searchsorted(group_of_turn, group_of_turn)
    step_P: np.ndarray = turn_in_group[turn_P] * (choice_P.max(initial=0) + 1) + choice_P
    return step_P


def tiou(detections: Detections, row_P: np.ndarray, ground_truth: GroundTruth, instance_P: np.ndarray) -> np.ndarray:
    """Overlap in time over union, pair by pair; 0 where both segments have no length."""
    start_P, end_P = detections.start_s_N[row_P], detections.end_s_N[row_P]
    true_start_P, true_end_P = ground_truth.start_s_N[instance_P], ground_truth.end_s_N[instance_P]
    overlap_P = np.maximum(np.minimum(end_P, true_end_P) - np.maximum(start_P, true_start_P), 0.0)
    union_P = (true_end_P - true_start_P) + (end_P - start_P) - overlap_P
    tiou_P: np.ndarray = np.divide(overlap_P, union_P, out=np.zeros_like(overlap_P), where=union_P > 0)
    return tiou_P


def _group(table: Detections | GroundTruth, num_labels: int) -> np.ndarray:
    """One number for each row's video and class."""
    group_N: np.ndarray = table.video_N.astype(np.int64) * num_labels + table.label_N
    return group_N


def _find(value_N: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose value is among the sorted `values`, and where it stands there."""
    index_N = np.searchsorted(values, value_N)
    index_N[index_N == len(values)] = 0
    rows = np.flatnonzero(values[index_N] == value_N)
    return rows, index_N[rows]


def _repeat(count_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as often as it counts: the row, and which of its repetitions this is."""
    row_P = np.repeat(np.arange(len(count_N)), count_N)
    return row_P, np.arange(len(row_P)) - np.repeat(np.cumsum(count_N) - count_N, count_N)


def _by_score(group_N: np.ndarray, score_N: np.ndarray, *tie_keys_N: np.ndarray) -> np.ndarray:
    """The order by (group, -score, tie keys...).

    Ten times faster than a lexsort of all keys: scores rarely tie, so the other keys are looked at only where they do.
    """
    order = np.argsort(-score_N)
    order = order[np.argsort(_small(group_N)[order], kind="stable")]
    group_N, score_N = np.ascontiguousarray(group_N), np.ascontiguousarray(score_N)
    same = (np.diff(group_N[order]) == 0) & (np.diff(score_N[order]) == 0)
    tied = np.zeros(len(order), dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    _sort_ties(order, tied, group_N, -score_N, *tie_keys_N)
    return order


def _sort_ties(order: np.ndarray, tied: np.ndarray, *keys_N: np.ndarray) -> None:
    """Sort the tied places of an order by all keys, the first key first, in place.

    Right where the order is already sorted by the leading keys: then no row leaves its run of ties.
    """
    rows = order[tied]
    order[tied] = rows[np.lexsort([key_N[rows] for key_N in reversed(keys_N)])]


def _small(value_N: np.ndarray) -> np.ndarray:
    """The same whole numbers in the fewest bits: numpy sorts up to 16 bits by radix, ten times faster."""
    return value_N.astype(np.min_scalar_type(int(value_N.max(initial=0))))
