"""Eq. 16 and NMS against loops written from METHOD.md."""

import json
import math

import numpy as np
import pytest

from aumn.data.truth.annotations import read_ground_truth
from aumn.evaluation.evaluate import evaluate, parse_tious
from aumn.inference.proposals import detect
from aumn.inference.settings import LocalizeSettings
from aumn.records import Clock, Detections, Video, VideoScores
from aumn.runtime.ranks import Ranks

FPS, STRIDE = 25.0, 16


def make_video(snippets: int, duration_s: float = 1.5) -> Video:
    """Its duration is that of a release, which may be another video's, and counts for nothing."""
    return Video("v", "testing", snippets, (0,), duration_s, FPS)


def make_scores(
    rng: np.random.Generator, snippets: int, classes: int, sharpness: float = 2.0, streams: tuple = ("rgb", "flow")
) -> dict[str, VideoScores]:
    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    return {
        stream: VideoScores(
            softmax(sharpness * rng.normal(size=classes)),
            rng.uniform(size=snippets).round(1),
            softmax(sharpness * rng.normal(size=(snippets, classes))),
        )
        for stream in streams
    }


def plain_runs(curve, level):
    """Maximal runs above it, snippet by snippet."""
    first, found = None, []
    for t, value in enumerate([*curve, -np.inf]):
        if value > level and first is None:
            first = t
        elif value <= level and first is not None:
            found.append((first, t))
            first = None
    return found


def plain_spans(curves, thresholds):
    """Those above each curve's mean, or above any threshold, each once."""
    if not thresholds:
        return [span for curve in curves for span in plain_runs(curve, curve.mean())]
    levels = [(curve, min(curve) + t * (max(curve) - min(curve))) for curve in curves for t in thresholds]
    return sorted({span for curve, level in levels for span in plain_runs(curve, level)})


def plain_around(curve, first, past):
    """The mean over the quarters of a span's length around it, by the share of each snippet in them."""
    quarter, total, length = (past - first) / 4, 0.0, 0.0
    for t, value in enumerate(curve):
        share = max(0.0, min(first, t + 1) - max(first - quarter, t))
        share += max(0.0, min(past + quarter, t + 1) - max(past, t))
        total, length = total + share * value, length + share
    return total / length if length else 0.0


def plain_tiou(one, other):
    overlap = max(0.0, min(one[2], other[2]) - max(one[1], other[1]))
    return overlap / (max(one[2], other[2]) - min(one[1], other[1])) if overlap else 0.0


def plain_fused(kept, dropped, sigma):
    """Ends weighted by score and nearness; of no score above 0, its own."""
    weights = [max(row[0], 0) * math.exp(-((1 - plain_tiou(kept, row)) ** 2) / (2 * sigma**2)) for row in dropped]
    if not sum(weights):
        return kept
    return kept[0], *(sum(w * row[i] for w, row in zip(weights, dropped, strict=True)) / sum(weights) for i in (1, 2))


def plain_curve(curve, rules):
    """Snippet by snippet: log-odds over those of 1 in 400, then the mean of those that are there around each."""
    if rules.scale == "log_odds":
        highest = 1 - 2**-23
        curve = [max(math.log(min(p, highest) / (1 - min(p, highest)) * 400), 0) if p > 0 else 0.0 for p in curve]
    before, behind = (rules.smoothing - 1) // 2, rules.smoothing // 2
    return np.array([np.mean(curve[max(0, t - before) : t + behind + 1]) for t in range(len(curve))])


def plain_detections(scores, rules):
    """Snippet by snippet, proposal by proposal."""
    weight = rules.weights
    video_C = sum(weight[s] * scores[s].video_C for s in scores)
    classes = [c for c, y in enumerate(video_C) if y > rules.class_threshold] or [int(np.argmax(video_C))]
    rows = []
    for c in classes:
        fused = sum(weight[s] * scores[s].attention_T * scores[s].cas_TC[:, c] for s in scores)
        fused = plain_curve(fused, rules)
        attention = [plain_curve(s.attention_T, rules) for s in scores.values()]
        curves = attention if rules.proposals == "attention" else [fused]
        candidates = []
        for first, past in plain_spans(curves, rules.thresholds) or [(0, len(fused))]:
            score = np.mean(fused[first:past]) - rules.contrast * plain_around(fused, first, past)
            candidates.append((float(score), first * STRIDE / FPS, past * STRIDE / FPS))
        candidates.sort(key=lambda row: (-row[0], row[1], row[2]))
        while candidates:
            best, *others = candidates
            dropped = [row for row in others if plain_tiou(best, row) > rules.nms_tiou]
            candidates = [row for row in others if row not in dropped]
            rows.append(
                (c, *(plain_fused(best, [best, *dropped], rules.fusion_sigma) if rules.fusion != "nms" else best))
            )
    return rows


@pytest.mark.parametrize("proposals", ["attention", "class_activation"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"thresholds": (0.0, 0.35, 0.7)},
        {"contrast": 0.6},
        {"scale": "log_odds"},
        {"smoothing": 4},
        {"scale": "log_odds", "smoothing": 5, "contrast": 0.5},
        {"fusion": "gaussian", "fusion_sigma": 0.2},
        {"thresholds": [0.5, 0.1, 0.3], "contrast": 1.5, "fusion": "gaussian"},
    ],
)
@pytest.mark.parametrize("at_once", [2048, 0])
def test_detections_equal_the_plain_loops(proposals, more, at_once, monkeypatch):
    monkeypatch.setattr("aumn.inference.proposals.MOST_AT_ONCE", at_once)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        snippets, classes = int(rng.integers(2, 90)), int(rng.integers(1, 9))
        streams = ("rgb", "flow", "audio", "pose")[: seed % 4 + 1]
        scores = make_scores(rng, snippets, classes, streams=streams)
        weights = dict(zip(streams, rng.dirichlet(np.ones(len(streams))).tolist(), strict=True))
        nms = {"class_threshold": 0.2, "nms_tiou": rng.uniform(0.1, 0.6)}
        rules = LocalizeSettings(weights=weights, proposals=proposals, **nms, **more)
        found = detect(scores, make_video(snippets), Clock(STRIDE, STRIDE), rules)
        expected = np.array(plain_detections(scores, rules))
        columns = np.stack([found.label_N, found.score_N, found.start_s_N, found.end_s_N], axis=1)
        np.testing.assert_allclose(columns, expected, rtol=1e-9, atol=1e-12, err_msg=str(seed))


def test_no_class_above_the_threshold_keeps_the_best_one():
    scores = make_scores(np.random.default_rng(0), 30, 50, sharpness=0.0)
    scores["flow"].video_C[17] += 0.01
    found = detect(scores, make_video(30), Clock(STRIDE, STRIDE), LocalizeSettings())
    assert set(found.label_N) == {17}


@pytest.mark.parametrize(
    ("clock", "fps", "later_s"),
    [(Clock(16, 16), 25.0, 0.0), (Clock(16, 64), 25.0, 0.96), (Clock(4, 16), 30.0, 0.2), (Clock(16, 6), 25.0, -0.2)],
)
def test_a_snippet_stands_for_a_stride_around_the_middle_of_its_window(clock, fps, later_s):
    attention_T = np.array([0, 0, 1, 1, 0, 0, 0, 1.0])
    score = VideoScores(np.array([0.9]), attention_T, attention_T[:, None])
    found = detect({"rgb": score}, Video("v", "", 8, (), 99.0, fps), clock, LocalizeSettings())
    snippet_s = clock.stride_frames / fps
    np.testing.assert_allclose(np.sort(found.start_s_N), np.array([2, 7]) * snippet_s + later_s)
    np.testing.assert_allclose(np.sort(found.end_s_N), np.array([4, 8]) * snippet_s + later_s)
    middle_s = (2 * clock.stride_frames + clock.window_frames / 2) / fps
    assert found.start_s_N.min() + snippet_s / 2 == pytest.approx(middle_s)


@pytest.mark.parametrize("snippets", [1, 9, 100])
@pytest.mark.parametrize(
    ("more", "score"),
    [
        ({}, 0.15),
        ({"smoothing": 4, "thresholds": [0.1, 0.5]}, 0.15),
        ({"smoothing": 5, "proposals": "class_activation", "contrast": 1.0}, 0.15),
        ({"smoothing": 999, "scale": "log_odds", "proposals": "class_activation"}, math.log(0.15 / 0.85 * 400)),
        ({"smoothing": 3, "scale": "log_odds"}, math.log(0.15 / 0.85 * 400)),
    ],
)
def test_a_constant_attention_proposes_the_whole_video(snippets, more, score):
    scores = VideoScores(np.array([0.8, 0.2]), np.full(snippets, 0.3), np.full((snippets, 2), 0.5))
    found = detect(
        {"rgb": scores, "flow": scores},
        make_video(snippets),
        Clock(STRIDE, STRIDE),
        LocalizeSettings(class_threshold=0.5, **more),
    )
    np.testing.assert_allclose((found.start_s_N, found.end_s_N), ([0], [snippets * STRIDE / FPS]))
    np.testing.assert_allclose(found.score_N, score)


@pytest.mark.parametrize("weights", [{"rgb": 1.0}, {"rgb": 0.0, "flow": 1.0}])
def test_a_stream_of_no_weight_proposes_nothing(weights):
    scores = make_scores(np.random.default_rng(5), 40, 6)
    (stream,) = (name for name, share in weights.items() if share == 1)
    both = detect(scores, make_video(40), Clock(STRIDE, STRIDE), LocalizeSettings(weights=weights))
    alone = detect({stream: scores[stream]}, make_video(40), Clock(STRIDE, STRIDE), LocalizeSettings())
    for column in ("label_N", "score_N", "start_s_N", "end_s_N"):
        np.testing.assert_array_equal(getattr(both, column), getattr(alone, column))


def test_equal_scores_keep_the_earlier_proposal():
    rgb = VideoScores(np.ones(1), np.array([1.0, 1, 1, 0, 0, 0]), np.ones((6, 1)))
    flow = VideoScores(np.ones(1), np.array([0.0, 1, 1, 1, 0, 0]), np.ones((6, 1)))
    found = detect(
        {"rgb": rgb, "flow": flow},
        make_video(6),
        Clock(STRIDE, STRIDE),
        LocalizeSettings(weights={"rgb": 0.5, "flow": 0.5}),
    )
    np.testing.assert_allclose(found.start_s_N, [0])


def test_each_class_has_proposals_of_its_own():
    attention = np.array([1.0, 1, 1, 1, 1, 0])
    first_T = np.array([1.0, 1, 0, 0, 0, 1])
    score = VideoScores(np.full(2, 0.5), attention, np.stack([first_T, 1 - first_T], axis=1))
    rules = LocalizeSettings(proposals="class_activation")
    found = detect({"rgb": score, "flow": score}, make_video(6), Clock(STRIDE, STRIDE), rules)
    np.testing.assert_allclose(found.label_N, [0, 1])
    np.testing.assert_allclose(found.start_s_N, [0, 1.28])
    np.testing.assert_allclose(found.end_s_N, [1.28, 3.2])
    np.testing.assert_allclose(found.score_N, [1, 1])


@pytest.mark.shared
def test_a_perfect_detector_of_thumos14_finds_what_lies_behind_the_stated_durations(shared_data):
    """The release counts 30 frames a second in every video; six have fewer, and last longer than it says."""
    rates = json.loads((shared_data / "thumos14/fps_dict.json").read_text())
    truth = read_ground_truth(shared_data / "thumos14/gt_ftcl.json", "test")
    times_N2 = np.stack([truth.start_s_N, truth.end_s_N], axis=1)
    for row, number in enumerate(truth.video_N):
        fps, stated = rates[truth.videos[number]], truth.durations_s[truth.videos[number]]
        if truth.end_s_N[row] > stated:
            attention_T = np.zeros(round(stated * 30))
            attention_T[round(truth.start_s_N[row] * fps) : round(truth.end_s_N[row] * fps)] = 1
            score = VideoScores(np.ones(1), attention_T, np.ones((len(attention_T), 1)))
            video = Video("v", "test", len(attention_T), (), stated, fps)
            found = detect({"rgb": score}, video, Clock(1, 1), LocalizeSettings())
            times_N2[row] = found.start_s_N[0], found.end_s_N[0]
    detections = Detections(truth.videos, truth.labels, truth.video_N, truth.label_N, np.ones(len(truth)), *times_N2.T)
    assert (np.abs(times_N2 - np.stack([truth.start_s_N, truth.end_s_N], axis=1)).max(1) > 1).sum() == 26
    assert evaluate(detections, truth, parse_tious("0.1:0.7:0.1"), Ranks()).average > 0.988  # 0.975 if cut there
