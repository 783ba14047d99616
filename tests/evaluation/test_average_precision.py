"""The protocol against its definition on random input full of ties, and by hand where a definition had to be chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aumn.evaluation.evaluate import evaluate
from aumn.runtime.ranks import Ranks
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth, average_precision

VIDEOS = ["v1", "v10", "v2", "w"]
LABELS = ["jump", "run", "swim"]
TIOUS = (0.1, 0.3, 0.5, 0.75, 1.0)

videos, labels = st.sampled_from(VIDEOS), st.sampled_from(LABELS)
scores = st.sampled_from([0.0, -0.0, 0.25, 0.5, -1.0])
segments = st.tuples(st.integers(0, 9), st.integers(0, 5)).map(lambda times: (times[0] / 3, (times[0] + times[1]) / 3))
founds = st.tuples(videos, labels, scores, segments).map(lambda row: Found(*row[:3], *row[3]))
instances = st.tuples(videos, labels, segments).map(lambda row: Instance(*row[:2], *row[2]))


def measure(rows: list[Found], truth: list[Instance], tious=TIOUS) -> np.ndarray:
    return evaluate(as_detections(rows), as_ground_truth(truth, VIDEOS), tious, Ranks()).ap_CT


def assert_as_defined(rows: list[Found], truth: list[Instance]) -> None:
    classes = sorted({instance.label for instance in truth})
    expected_CT = [[float(average_precision(rows, truth, label, tiou)) for tiou in TIOUS] for label in classes]
    np.testing.assert_allclose(measure(rows, truth), expected_CT, rtol=1e-14, atol=0)


@settings(max_examples=300, deadline=None)
@given(st.lists(founds, min_size=1, max_size=30), st.lists(instances, min_size=1, max_size=12))
def test_agrees_with_the_definition_where_everything_ties(rows, truth):
    assert_as_defined(rows, truth)


@settings(max_examples=100, deadline=None)
@given(st.lists(founds, min_size=1, max_size=40), st.lists(instances, min_size=1, max_size=25))
def test_agrees_with_the_definition_where_many_compete_for_many(rows, truth):
    def gather(row):
        return row._replace(video="w", label="run")

    assert_as_defined(list(map(gather, rows)), list(map(gather, truth)))


def test_agrees_with_the_definition_on_numbers_that_never_tie():
    random = np.random.default_rng(5)
    truth = [
        Instance(random.choice(VIDEOS), random.choice(LABELS), start_s, start_s + random.exponential(8))
        for start_s in random.random(60) * 90
    ]
    rows = [Found(aim.video, aim.label, random.random(), *np.sort(random.normal(aim[2:], 2))) for aim in truth * 8]
    assert measure(rows, truth)[:, :-1].min() > 0.01  # nothing is exact, so tIoU 1 is out of reach
    assert_as_defined(rows, truth)


def found(score: float, start_s: float, end_s: float, video: str = "v1") -> Found:
    return Found(video, "run", score, start_s, end_s)


def instance(start_s: float, end_s: float, video: str = "v1") -> Instance:
    return Instance(video, "run", start_s, end_s)


def test_precision_is_interpolated():
    """Right, wrong, right: precision 1 at the first of two instances, 2/3 at the second."""
    rows = [found(0.9, 0, 4), found(0.8, 20, 24), found(0.7, 10, 14)]
    assert measure(rows, [instance(0, 4), instance(10, 14)], [0.5]).item() == (1 + 2 / 3) / 2
    # A wrong one before two right ones: the better precision at the higher recall, 2/3, counts for both.
    rows = [found(0.9, 20, 24), found(0.8, 0, 4), found(0.7, 10, 14)]
    assert measure(rows, [instance(0, 4), instance(10, 14)], [0.5]).item() == 2 / 3


def test_a_detection_takes_the_best_instance_that_is_left():
    """The second detection overlaps the first instance more, but that is taken; it gets the second one."""
    rows = [found(0.9, 0, 10), found(0.8, 1, 11)]
    truth = [instance(0, 10), instance(4, 14)]
    assert measure(rows, truth, [0.5]).item() == 1.0
    assert measure(rows, truth, [0.6]).item() == 0.5  # 7/13 of the second instance


def test_of_equal_tious_the_earlier_instance_is_taken():
    """The first detection overlaps two instances by 1/3 each; only the later one would be left for the second."""
    rows = [found(0.9, 4, 8), found(0.8, 7, 12)]
    assert measure(rows, [instance(2, 6), instance(6, 10)], [0.3]).item() == 1.0
    rows = [found(0.9, 4, 8), found(0.8, 0, 5)]
    assert measure(rows, [instance(2, 6), instance(6, 10)], [0.3]).item() == 0.5


def test_equal_scores_rank_by_video_name_then_time():
    truth = [instance(0, 4, "v10"), instance(0, 4, "v2")]
    ahead = [found(0.5, 0, 4, "v10"), found(0.5, 8, 9, "v2")]
    behind = [found(0.5, 8, 9, "v10"), found(0.5, 0, 4, "v2")]
    assert measure(ahead, truth, [0.5]).item() == 0.5  # the right one is the first of two
    assert measure(behind, truth, [0.5]).item() == 0.25
    assert measure([found(0.5, 0, 4), found(0.5, 0, 9)], [instance(0, 4)], [0.5]).item() == 1.0
    assert measure([found(0.5, 0, 4), found(0.5, 0, 1)], [instance(0, 4)], [0.5]).item() == 0.5


def test_a_duplicate_detection_is_wrong_and_a_duplicate_instance_is_one_more_to_find():
    once, twice = [found(0.5, 0, 4)], [found(0.5, 0, 4)] * 2
    other = instance(0, 4, "v2")
    later = [found(0.1, 0, 4, "v2")]
    assert measure(twice + later, [instance(0, 4), other], [0.5]).item() == pytest.approx((1 + 2 / 3) / 2)
    assert measure(once, [instance(0, 4)] * 2, [0.5]).item() == 0.5
    assert measure(twice, [instance(0, 4)] * 2, [0.5]).item() == 1.0


def test_an_instance_without_length_counts_and_is_never_found():
    truth = [instance(3, 3), instance(10, 14)]
    assert measure([found(0.9, 10, 14), found(0.8, 2, 4), found(0.7, 3, 3)], truth, [0.1]).item() == 0.5


def test_exactly_the_threshold_is_enough():
    assert measure([found(0.9, 0, 3)], [instance(0, 4)], [0.75]).item() == 1.0
    assert measure([found(0.9, 0, 3)], [instance(0, 4)], [np.nextafter(0.75, 1)]).item() == 0.0
