"""The error taxonomy against itself written plainly, one detection and one threshold at a time."""

import numpy as np
import pytest

from aumn.evaluation.errors import KINDS, LENGTHS, MOST_PER_INSTANCE, by_length, diagnose, profile, removal_gains
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth, average_precision, tiou

TIOUS = (0.3, 0.5, 0.75)
CASES = range(12)


def draw(seed: int, detections: int = 150) -> tuple[list[Found], list[Instance]]:
    """Crowded videos, with ties in score and tIoU, duplicates, and instances of two classes at the same times."""
    random = np.random.default_rng(seed)

    def times(count: int):
        start_s, length_s = random.integers(0, 12, count) / 2, random.integers(1, 9, count) / 2
        return zip(random.integers(0, 6, count), random.integers(0, 3, count), start_s, start_s + length_s, strict=True)

    truth = [Instance(f"v{v}", "abc"[c], float(s), float(e)) for v, c, s, e in times(25)]
    truth += [row._replace(label="a") for row in truth[:5] if row.label == "b"]
    scores = (random.permutation(2 * detections)[:detections] // 2) / detections
    rows = [
        Found(f"v{v}", "abcd"[c], float(x), float(s), float(e))
        for x, (v, c, s, e) in zip(scores, times(detections), strict=True)
    ]
    return rows, truth


def tables(rows: list[Found], truth: list[Instance]):
    videos, labels = [f"v{number}" for number in range(6)], list("abcd")
    return as_detections(rows, videos, labels), as_ground_truth(truth, videos, labels)


def plain_kinds(rows: list[Found], truth: list[Instance], threshold: float) -> tuple[list[str], set[int]]:
    """Each detection's kind, and the positions of the instances that are taken."""
    kinds, taken = [""] * len(rows), set()
    for n in sorted(range(len(rows)), key=lambda n: (-rows[n].score, rows[n].start_s, rows[n].end_s, n)):
        row = rows[n]
        own = [g for g, i in enumerate(truth) if (i.video, i.label) == (row.video, row.label) and g not in taken]
        best = max(own, key=lambda g: (tiou(row, truth[g]), -truth[g].start_s, -truth[g].end_s, -g), default=None)
        if best is not None and tiou(row, truth[best]) >= threshold:
            taken.add(best)
            kinds[n] = "true positive"
        else:
            kinds[n] = plain_error(row, truth, threshold)
    return kinds, taken


def plain_error(row: Found, truth: list[Instance], threshold: float) -> str:
    here = [instance for instance in truth if instance.video == row.video]
    if not here:
        return "background"
    highest = max(tiou(row, instance) for instance in here)
    same = any(tiou(row, instance) == highest and instance.label == row.label for instance in here)
    if highest >= threshold:
        return "double detection" if same else "wrong label"
    if highest >= 0.1:
        return "localization" if same else "confusion"
    return "background"


@pytest.mark.parametrize("seed", CASES)
def test_kinds_and_misses_are_those_of_the_plain_reference(seed):
    rows, truth = draw(seed)
    found = diagnose(*tables(rows, truth), TIOUS)
    for t, threshold in enumerate(TIOUS):
        kinds, taken = plain_kinds(rows, truth, threshold)
        assert [KINDS[kind] for kind in found.kind_NT[:, t]] == kinds
        assert set(np.flatnonzero(found.taken_GT[:, t]).tolist()) == taken
        assert kinds.count("true positive") == len(taken)


def test_no_detections_miss_everything():
    found = diagnose(*tables([], draw(0)[1]), TIOUS)
    assert found.kind_NT.shape == (0, len(TIOUS))
    assert not found.taken_GT.any()


@pytest.mark.parametrize("seed", CASES[:4])
def test_gains_are_differences_of_plain_average_precisions(seed):
    rows, truth = draw(seed, detections=60)
    detections, ground_truth = tables(rows, truth)
    found = diagnose(detections, ground_truth, TIOUS)
    gains = removal_gains(detections, ground_truth, found)
    labels = sorted({instance.label for instance in truth})
    for t, threshold in enumerate(TIOUS):
        kinds, taken = plain_kinds(rows, truth, threshold)
        before = [average_precision(rows, truth, label, threshold) for label in labels]
        for k, kind in enumerate(KINDS[1:], start=1):
            kept = [row for row, its in zip(rows, kinds, strict=True) if its != kind]
            after = [average_precision(kept, truth, label, threshold) for label in labels]
            assert gains[t, k] == pytest.approx(float(sum(after) - sum(before)) / len(labels), abs=1e-12)
        left = [instance for g, instance in enumerate(truth) if g in taken]
        after = [
            average_precision(rows, left, label, threshold) if any(i.label == label for i in left) else 1
            for label in labels
        ]
        assert gains[t, -1] == pytest.approx(float(sum(after) - sum(before)) / len(labels), abs=1e-12)


def test_a_profile_cuts_each_class_by_its_own_number_of_instances():
    truth = [Instance("v0", "a", 0, 4), Instance("v0", "a", 6, 9), Instance("v1", "b", 0, 4)]
    rows = [Found("v0", "a", 1 - n / 100, 0, 4) for n in range(5)] + [Found("v1", "b", 0.5, 0, 4)]
    detections, ground_truth = tables(rows, truth)
    counts = profile(detections, ground_truth, diagnose(detections, ground_truth, [0.5]))
    assert counts.shape == (1, MOST_PER_INSTANCE, len(KINDS))
    assert counts[0, 0].tolist() == [2, 1, 0, 0, 0, 0]
    assert counts[0, 1].tolist() == [0, 2, 0, 0, 0, 0]
    assert counts[0, 2].tolist() == [0, 1, 0, 0, 0, 0]
    many = as_detections([Found("v1", "b", 0.5, 0, 4)] * 30, detections.videos, detections.labels)
    assert profile(many, ground_truth, diagnose(many, ground_truth, [0.5])).sum() == MOST_PER_INSTANCE


def test_groups_by_length_hold_a_fifth_each_and_every_detection_once():
    truth = [Instance("v0", "a", 100 * n, 100 * n + n + 1) for n in range(10)]
    rows = [Found("v0", "a", 0.9, 300, 304), Found("v0", "a", 0.5, 350, 351), Found("v0", "a", 0.4, 990, 1040)]
    detections, ground_truth = tables(rows, truth)
    groups = by_length(detections, ground_truth, diagnose(detections, ground_truth, [0.5, 0.9]))
    assert groups.instances_L.tolist() == [2] * len(LENGTHS)
    assert (groups.bounds_s[0], groups.bounds_s[-1]) == (1, 10)
    assert groups.missed_TL.tolist() == [[2, 1, 2, 2, 2]] * 2
    of_kind = {(KINDS[e], LENGTHS[group]): n for (group, e), n in np.ndenumerate(groups.kind_TLE[0]) if n}
    assert of_kind == {("true positive", "S"): 1, ("background", "XS"): 1, ("background", "XL"): 1}
