"""Average precision of temporal detections, by the ActivityNet protocol: match one video, then merge the matches.

Matching. Each video, class and tIoU threshold on its own:

    left = instances in the order of (start, end)
    for detection in detections in the order of (-score, start, end):
        best = the one of left with the highest tIoU, of equal ones the first
        if left and tIoU(detection, best) >= threshold:
            detection is a true positive
            left.remove(best)

Merging. A class ranks its detections of all videos by (-score, video name, start, end), whatever the order or the parts
they came in. Its average precision is the mean over its instances of the interpolated precision (the best precision at
this recall or a higher one) at which they are found, zero for those never found; this is the area that the devkit sums.

tIoU is computed as the devkit does, `overlap / (length + length - overlap)` in float64, with one departure: 0/0 is 0.
So an instance of zero length (ActivityNet 1.2 and 1.3 have some) counts among the instances and is never found. The
devkit agrees for any detection that has a length; two zero lengths give it a NaN, which it takes for a match.

Here the loop runs in all videos, classes and thresholds at once, a block of videos at a time: beside the detections
themselves, a row of theirs takes 16 bytes, what it matched and its place in the order. Blocks keep the rest in cache.

Letters: N detections, G instances of the ground truth, P pairs of the two that share video and class, T tIoU
thresholds, C classes, M matched detections.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from aumn.records import Detections, GroundTruth

MOST_TIOUS = 63  # a bit each, and one to spare for the shift that makes them
BLOCK_ROWS = 2**18
POSITIVE = np.dtype(
    [("label", np.int32), ("video", np.int32), ("score", float), ("matched", np.uint64), ("above", int)]
)


def match(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which detections take an instance and which instances are taken, in the tables' own order.

    Bit t of either is threshold t. Both tables must number videos and labels alike; detections may have more of both.
    Any share of the videos may be matched on its own, but all detections of a video together. `tious` ascend, at most
    MOST_TIOUS.

    A step of the loop holds at most one pair of each detection and of each instance, so its pairs cannot disturb each
    other. There are hundreds of steps, most of a few pairs, so a step is a handful of operations on whole numbers.
    """
    assert len(tious) <= MOST_TIOUS
    assert (np.diff(tious) > 0).all()
    group_G = _group(ground_truth, ground_truth)
    by_time_G = np.lexsort((ground_truth.end_s_N, ground_truth.start_s_N, group_G))
    group_G = group_G[by_time_G]
    matched_N, taken_G = np.zeros(len(detections), np.uint64), np.zeros(len(ground_truth), np.uint64)
    for rows in _blocks(detections.video_N):
        block, matched_n = take(detections, rows), matched_N[rows]
        detection_P, instance_P, tiou_P, step_P = _pairs_by_step(block, ground_truth, group_G, by_time_G, min(tious))
        reached_P = np.searchsorted(tious, tiou_P, side="right").astype(np.uint64)  # how many thresholds
        reaches_P = (np.uint64(1) << reached_P) - np.uint64(1)  # a bit each
        for start, end in pairwise([*_starts(step_P), len(step_P)]):
            detection, instance = detection_P[start:end], instance_P[start:end]
            matched_P, taken_P = matched_n[detection], taken_G[instance]
            takes_P = reaches_P[start:end] & ~(matched_P | taken_P)
            matched_n[detection], taken_G[instance] = matched_P | takes_P, taken_P | takes_P
        matched_N[rows] = matched_n  # of a slice, this very memory
    return matched_N, taken_G


def bits(bits_N: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers such as `matched` as rows of their lowest bits, N x count."""
    bit_NT: np.ndarray = (bits_N[:, None] >> np.arange(count, dtype=np.uint64)) & np.uint64(1) > 0
    return bit_NT


def ranking(detections: Detections, matched_N: np.ndarray) -> np.ndarray:
    """The rows in the order that ranks each class: (label, -score, video, start, end).

    Rows alike in all of these differ at most in what they matched: the one whose turn came first has the more.
    """
    fewer_matches_N = -np.bitwise_count(matched_N).astype(np.int8)
    ties = (detections.video_N, detections.start_s_N, detections.end_s_N, fewer_matches_N)
    return _order(detections.label_N, detections.score_N, *ties)


def true_positives(detections: Detections, matched_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """What `average_precisions` needs of rows in the order of `ranking`: those that matched at some threshold.

    `above` counts the rows above it in its class here, so its place is one more (1 is the first).
    """
    place_M = np.flatnonzero((matched_N > 0)[order_N])
    row_M = order_N[place_M]
    positives = np.empty(len(row_M), POSITIVE)
    for name in ("label", "video", "score"):
        positives[name] = getattr(detections, f"{name}_N")[row_M]
    positives["matched"] = matched_N[row_M]
    positives["above"] = place_M - _first(detections, order_N, positives["label"])
    return positives


def count_above(detections: Detections, order_N: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """How many of the rows, in the order of `ranking`, stand above each of these true positives of other videos.

    A binary search in the rows of each one's class, for all of them at once.
    """
    first_M = _first(detections, order_N, positives["label"])
    low_M, high_M = first_M.copy(), _first(detections, order_N, positives["label"] + 1)
    while (open_M := np.flatnonzero(low_M < high_M)).size:
        middle_M = (low_M[open_M] + high_M[open_M]) // 2
        row_M, positive = order_N[middle_M], positives[open_M]
        score_M, video_M = detections.score_N[row_M], detections.video_N[row_M]
        is_above = (score_M > positive["score"]) | ((score_M == positive["score"]) & (video_M < positive["video"]))
        low_M[open_M] = np.where(is_above, middle_M + 1, low_M[open_M])
        high_M[open_M] = np.where(is_above, high_M[open_M], middle_M)
    above_M: np.ndarray = low_M - first_M
    return above_M


def _first(detections: Detections, order_N: np.ndarray, label_M: np.ndarray) -> np.ndarray:
    """Where each label's rows begin in the order of `ranking`."""
    every = range(int(label_M.max(initial=0)) + 1)
    label_of = detections.label_N.__getitem__
    first_L = np.array([bisect_left(order_N, label, key=label_of) for label in every])
    return np.asarray(first_L[label_M])


def average_precisions(positives: np.ndarray, instances_C: np.ndarray, num_tious: int) -> np.ndarray:
    """The average precision of each class at each threshold (C x T), from the true positives of all detections.

    `instances_C` counts each class's instances. A class without true positives gets 0.
    """
    ap_CT = np.zeros((len(instances_C), num_tious))
    for label, places in enumerate(true_positive_places(positives, len(instances_C), num_tious)):
        for t, place_M in enumerate(places):
            precision_M = np.arange(1, len(place_M) + 1) / place_M
            interpolated_M = np.maximum.accumulate(precision_M[::-1])
            # `fsum` rounds once, so neither order nor grouping can show in the result.
            ap_CT[label, t] = math.fsum(interpolated_M.tolist()) / max(int(instances_C[label]), 1)
    return ap_CT


def true_positive_places(positives: np.ndarray, num_labels: int, num_tious: int) -> list[list[np.ndarray]]:
    """The places (1 is the first) at which each class's ranking holds its true positives, at each threshold.

    All of a precision-recall curve: at the i-th of them recall is i / instances, precision i / place.
    """
    matched_MT = bits(positives["matched"], num_tious)
    place_M = positives["above"] + 1
    bounds = np.searchsorted(positives["label"], np.arange(num_labels + 1))
    return [[place_M[start:end][matched_M] for matched_M in matched_MT[start:end].T] for start, end in pairwise(bounds)]


def take(table: Detections, rows: slice | np.ndarray) -> Detections:
    """Some rows of a table; with a slice, nothing is copied."""
    return Detections(table.videos, table.labels, *(column_N[rows] for column_N in table.columns))


def _group(table: Detections | GroundTruth, ground_truth: GroundTruth) -> np.ndarray:
    """Video and class as one number; detections of labels that the ground truth has not are of none of its groups."""
    group_N: np.ndarray = table.video_N.astype(np.int64) * (len(ground_truth.labels) + 1)
    group_N += table.label_N
    return group_N


def _blocks(video_N: np.ndarray) -> Iterator[slice | np.ndarray]:
    """All rows, a few whole videos at a time: as slices where a video's rows lie together, as they mostly do."""
    order_N = None
    starts = _starts(video_N)
    if len(np.unique(video_N[starts])) < len(starts):
        order_N = _argsort(video_N)
        starts = _starts(video_N[order_N])
    starts = np.append(starts, len(video_N))
    cuts = starts[np.searchsorted(starts, np.arange(0, len(video_N) + BLOCK_ROWS, BLOCK_ROWS), side="right") - 1]
    for start, end in pairwise(np.unique(cuts)):
        yield slice(start, end) if order_N is None else order_N[start:end]


def _starts(value_N: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    is_new_N = np.ones(len(value_N), bool)
    np.not_equal(value_N[1:], value_N[:-1], out=is_new_N[1:])
    return np.flatnonzero(is_new_N)


def _lengths(value_N: np.ndarray) -> np.ndarray:
    """How long each run of equal values is, where it begins; what stands behind is of no use."""
    starts = _starts(value_N)
    length_N = np.zeros(len(value_N), np.intp)
    length_N[starts] = np.diff(starts, append=len(value_N))
    return length_N


def _pairs_by_step(
    detections: Detections,
    ground_truth: GroundTruth,
    sorted_group_G: np.ndarray,
    by_time_G: np.ndarray,
    lowest_tiou: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Detection, instance, tIoU and step of each pair that reaches the lowest threshold, step by step."""
    assert all(np.isfinite(column_N).all() for column_N in detections.columns[2:])
    group_N = _group(detections, ground_truth)
    detection_P, nth_P = pair_up(group_N, sorted_group_G)
    tiou_P = tiou(detections, detection_P, ground_truth, by_time_G[nth_P])
    kept = np.flatnonzero(tiou_P >= lowest_tiou)
    detection_P, nth_P, tiou_P = detection_P[kept], nth_P[kept], tiou_P[kept]

    columns = (group_N, detections.score_N, detections.start_s_N, detections.end_s_N)
    group_P, *keys_P = (column_N[detection_P] for column_N in columns)
    order = _order(group_P, *keys_P, detection_P, -tiou_P, nth_P)
    step_P = _steps(group_P[order], detection_P[order])
    by_step = _argsort(step_P)
    order = order[by_step]
    return detection_P[order], by_time_G[nth_P[order]], tiou_P[order], step_P[by_step]


def _steps(group_P: np.ndarray, detection_P: np.ndarray) -> np.ndarray:
    """When each pair is decided: the first choices of each group's first detection, its second choices, and so on.

    The pairs come by group, in it by detection in order of score, of a detection the higher tIoU first.
    """
    choices_P = _starts(detection_P)
    turn_P, choice_P = _repeat(np.diff(choices_P, append=len(detection_P)))
    group_of_turn = group_P[choices_P]
    _, turn_in_group = _repeat(np.diff(_starts(group_of_turn), append=len(group_of_turn)))
    step_P: np.ndarray = turn_in_group[turn_P] * (choice_P.max(initial=0) + 1) + choice_P
    return step_P


def pair_up(key_N: np.ndarray, sorted_key_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every row of one table with every row of another, sorted one that has the same key: their places."""
    if not len(key_N):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    start, end = np.searchsorted(sorted_key_G, (key_N.min(), key_N.max() + 1))  # of a few keys, what fits in cache
    near_g = sorted_key_G[start:end]
    first_N = np.searchsorted(near_g, key_N)
    is_there_N = np.append(near_g, -1).take(first_N) == key_N
    rows, first = np.flatnonzero(is_there_N), first_N[is_there_N]
    pair_P, nth_P = _repeat(_lengths(near_g)[first])
    return rows[pair_P], start + first[pair_P] + nth_P


def tiou(detections: Detections, row_P: np.ndarray, ground_truth: GroundTruth, instance_P: np.ndarray) -> np.ndarray:
    """Overlap in time over union, pair by pair; 0 where both segments have no length."""
    start_P, end_P = detections.start_s_N[row_P], detections.end_s_N[row_P]
    true_start_P, true_end_P = ground_truth.start_s_N[instance_P], ground_truth.end_s_N[instance_P]
    overlap_P = np.maximum(np.minimum(end_P, true_end_P) - np.maximum(start_P, true_start_P), 0.0)
    union_P = (true_end_P - true_start_P) + (end_P - start_P) - overlap_P
    tiou_P: np.ndarray = np.divide(overlap_P, union_P, out=np.zeros_like(overlap_P), where=union_P > 0)
    return tiou_P


def _repeat(count_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as often as it counts: the row, and which of its repetitions this is."""
    row_P = np.repeat(np.arange(len(count_N)), count_N)
    return row_P, np.arange(len(row_P)) - np.repeat(np.cumsum(count_N) - count_N, count_N)


def _order(group_N: np.ndarray, score_N: np.ndarray, *tie_keys_N: np.ndarray) -> np.ndarray:
    """The order by (group, -score, tie keys...), many times faster than a lexsort of all keys.

    A whole number a row holds, from its first bit on, the group, as much of the score as there is room for, and the
    row; sorted, they are the order, but for the few rows whose groups and leading bits of the score are the same.
    """
    count = len(score_N)
    row_bits = count.bit_length()
    room = 64 - _bit_length(group_N) - row_bits
    assert room > 0
    ends = np.array([score_N.max(initial=-np.inf), score_N.min(initial=np.inf)]) if count else np.zeros(2)
    least, most = (int(bits) for bits in _falling(ends))
    excess = np.uint64(max((most - least).bit_length() - room, 0))
    order_N = np.empty(count, np.uint64)
    for start in range(0, count, BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, count))
        key_n = group_N[block].astype(np.uint64) << np.uint64(room)
        key_n |= (_falling(score_N[block]) - np.uint64(least)) >> excess
        order_N[block] = (key_n << np.uint64(row_bits)) | np.arange(block.start, block.stop, dtype=np.uint64)
    order_N.sort()

    shared = []  # places of rows whose key the next one has too
    for start in range(0, count, BLOCK_ROWS):
        key_n = order_N[start : start + BLOCK_ROWS + 1] >> np.uint64(row_bits)
        shared.append(start + np.flatnonzero(key_n[1:] == key_n[:-1]))
    order_N &= np.uint64(2**row_bits - 1)
    order: np.ndarray = order_N.view(np.intp)

    # These rows by all keys; none of them leaves its run of equal ones.
    first = np.concatenate([*shared, np.empty(0, np.intp)])
    places = np.union1d(first, first + 1)
    rows = order[places]
    order[places] = rows[np.lexsort([*(key[rows] for key in reversed(tie_keys_N)), -score_N[rows], group_N[rows]])]
    return order


def _falling(score_N: np.ndarray) -> np.ndarray:
    """Whole numbers that fall as scores rise."""
    # A float's bits, read as a whole number, rise with a positive float and with a negative one's size.
    bits_N = (score_N + 0.0).view(np.int64)  # -0.0 becomes 0.0
    falling_N: np.ndarray = np.where(bits_N < 0, bits_N, bits_N ^ np.int64(2**63 - 1)).view(np.uint64)
    return falling_N


def _argsort(key_N: np.ndarray) -> np.ndarray:
    """The stable order of whole numbers: with the rows in their last bits, as numpy sorts faster than it argsorts.

    But for short numbers, which it counts.
    """
    if _bit_length(key_N) <= 16:
        return np.argsort(key_N.astype(np.uint16), kind="stable")
    row_bits = np.uint64(len(key_N).bit_length())
    assert _bit_length(key_N) + row_bits <= 64
    packed_N = (key_N.astype(np.uint64) << row_bits) | np.arange(len(key_N), dtype=np.uint64)
    packed_N.sort()
    return (packed_N & ((np.uint64(1) << row_bits) - np.uint64(1))).astype(np.intp)


def _bit_length(value_N: np.ndarray) -> int:
    return int(value_N.max(initial=0)).bit_length()
