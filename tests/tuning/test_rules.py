"""Rules chosen on remembered scores: what the search finds, what ties go to, and what stays."""

import numpy as np
import pytest

from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import Clock, GroundTruth, Video, VideoScores
from aumn.tuning.rules import choose_rules, weights_of

TIOUS = (0.3, 0.5, 0.7)


def remembered(streams=("good", "bad"), videos=6, snippets=40):
    """Of two classes; `good` knows class and time, with a soft edge above its mean; the others know nothing."""
    rng = np.random.default_rng(0)
    of_videos, scores, rows = [], [], []
    for number in range(videos):
        label, first = number % 2, 4 + 3 * number
        curve_T = np.full(snippets, 0.1)
        curve_T[first - 3 : first + 11] = 0.5
        curve_T[first : first + 8] = 0.9
        of_stream = {}
        for stream in streams:
            attention_T = curve_T if stream == "good" else rng.uniform(size=snippets)
            video_C = np.eye(2)[label] * 0.8 + 0.1 if stream == "good" else np.array([0.5, 0.5])
            of_stream[stream] = VideoScores(video_C, attention_T, np.tile(video_C, (snippets, 1)))
        of_videos.append(Video(f"v{number}", "training", snippets, (label,), 40.0, 1.0))
        scores.append(of_stream)
        rows.append((number, label, first, first + 8))
    video_N, label_N, start_s_N, end_s_N = map(np.array, zip(*rows, strict=True))
    truth = GroundTruth(
        [video.id for video in of_videos], ["a", "b"],
        video_N.astype(np.int32), label_N.astype(np.int32), start_s_N.astype(float), end_s_N.astype(float),
    )  # fmt: skip
    return RememberedScores(tuple(of_videos), tuple(scores), ("a", "b"), Clock(1, 1)), truth


def test_the_search_finds_what_the_network_knows():
    scores, truth = remembered()
    own = LocalizeSettings(nms_tiou=0.25)
    counted = []
    choice = choose_rules(scores, truth, own, TIOUS, advance=counted.append)
    assert choice.own.rules == own
    assert choice.own.value < 0.5
    assert choice.best.value == 1 == max(one.value for one in choice.tried)
    assert choice.best.rules.weights == {"good": 1.0, "bad": 0.0}
    assert choice.best.rules.nms_tiou == 0.25  # nothing is gained by another
    assert choice.best.rules.class_threshold == 0.1
    assert counted == list(range(1, len(choice.tried) + 1))
    assert len({one.rules.model_dump_json() for one in choice.tried}) == len(choice.tried)
    parts = [part for part, _ in choice.neighbours()]
    assert list(dict.fromkeys(parts)) == [
        "weights", "proposals", "curves", "class_threshold", "contrast", "nms_tiou", "fusion",
    ]  # fmt: skip
    again = choose_rules(scores, truth, choice.best.rules, TIOUS)
    assert again.best == choice.best  # what is best already stays, whatever is as good


def test_given_rules_stay():
    scores, truth = remembered()
    own = LocalizeSettings(weights={"good": 0.5, "bad": 0.5}, thresholds=[0.3])
    choice = choose_rules(scores, truth, own, TIOUS, fixed={"weights", "thresholds"})
    assert {(str(one.rules.weights), one.rules.thresholds) for one in choice.tried} == {(str(own.weights), (0.3,))}
    assert {one.rules.proposals for one in choice.tried} == {"attention", "class_activation"}


def test_labels_alone_choose_whom_to_trust_and_nothing_else():
    scores, _ = remembered()
    own = LocalizeSettings(weights={"good": 0.0, "bad": 1.0}, contrast=0.7)
    choice = choose_rules(scores, None, own, TIOUS)
    assert choice.measure == "classification mAP"
    assert (choice.own.value < 1, choice.best.value) == (True, 1.0)
    assert choice.best.rules == own.model_copy(update={"weights": {"good": 0.2, "bad": 0.8}})  # as good, and nearest
    assert choose_rules(scores, None, own, TIOUS, fixed={"weights"}).tried == [choice.own]


@pytest.mark.parametrize(
    ("worth", "expected"),
    [
        ({(0.02, 0.3): 0.501, (0.02, 0.5): 0.502, (0.1, 0.5): 0.4}, (0.1, 0.3)),  # each alone given back costs more
        ({(0.02, 0.3): 0.501, (0.02, 0.5): 0.52, (0.1, 0.5): 0.4}, (0.02, 0.5)),
        ({(0.02, 0.3): 0.503, (0.02, 0.5): 0.52, (0.1, 0.5): 0.517}, (0.1, 0.5)),
    ],
)
def test_what_gains_less_than_half_a_point_in_all_is_left(worth, expected, monkeypatch):
    def value(_scores, _truth, rules, _tious):
        return worth.get((rules.class_threshold, rules.nms_tiou), 0.5 if rules == LocalizeSettings() else 0.0)

    monkeypatch.setattr("aumn.tuning.rules._value", value)
    best = choose_rules(*remembered(("good",), videos=1), LocalizeSettings(), TIOUS).best
    assert (best.rules.class_threshold, best.rules.nms_tiou) == expected


@pytest.mark.parametrize(
    ("streams", "own", "count"),
    [
        (["rgb"], {}, 0),
        (["rgb", "flow"], {}, 11),
        (["rgb", "flow"], {"rgb": 0.45, "flow": 0.55}, 12),
        (list("abc"), {}, 4),
        (["rgb", "flow", "joint"], {}, 6),
        (["joint"], {}, 0),
    ],
)
def test_shares_that_are_tried(streams, own, count):
    rules = LocalizeSettings(weights=own)
    made = [LocalizeSettings(**choice).shares(streams) for choice in weights_of(streams, rules)]
    assert len(made) == count == len({str(shares) for shares in made})
    assert not made or made[0] == rules.shares(streams)
