"""Eq. 16 and NMS against loops written from METHOD.md."""

import numpy as np
import pytest

from aumn.inference.proposals import detect
from aumn.inference.settings import LocalizeSettings
from aumn.records import Video, VideoScores

FPS, STRIDE = 25.0, 16


def make_video(snippets: int, duration_s: float | None = None) -> Video:
    return Video("v", "testing", snippets, (0,), snippets * STRIDE / FPS if duration_s is None else duration_s, FPS)


def make_scores(
    rng: np.random.Generator, snippets: int, classes: int, sharpness: float = 2.0
) -> dict[str, VideoScores]:
    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    return {
        stream: VideoScores(
            softmax(sharpness * rng.normal(size=classes)),
            rng.uniform(size=snippets).round(1),
            softmax(sharpness * rng.normal(size=(snippets, classes))),
        )
        for stream in ("rgb", "flow")
    }


def plain_runs(curve):
    """Maximal runs above the mean, snippet by snippet."""
    mean, first, found = curve.mean(), None, []
    for t, value in enumerate([*curve, -np.inf]):
        if value > mean and first is None:
            first = t
        elif value <= mean and first is not None:
            found.append((first, t))
            first = None
    return found


def plain_detections(scores, video, rules):
    """Snippet by snippet, proposal by proposal."""
    weight = {"rgb": rules.theta, "flow": 1 - rules.theta}
    video_C = sum(weight[s] * scores[s].video_C for s in scores)
    classes = [c for c, y in enumerate(video_C) if y > rules.class_threshold] or [int(np.argmax(video_C))]
    rows = []
    for c in classes:
        fused = sum(weight[s] * scores[s].attention_T * scores[s].cas_TC[:, c] for s in scores)
        curves = [s.attention_T for s in scores.values()] if rules.proposals == "attention" else [fused]
        candidates = []
        for first, past in (run for curve in curves for run in plain_runs(curve)):
            start, end = first * STRIDE / FPS, min(past * STRIDE / FPS, video.duration_s)
            if end > start:
                candidates.append((float(np.mean(fused[first:past])), start, end))
        candidates.sort(key=lambda row: (-row[0], row[1], row[2]))
        kept = []
        for score, start, end in candidates:
            overlaps = (max(0.0, min(end, e) - max(start, s)) for _, s, e in kept)
            unions = (max(end, e) - min(start, s) for _, s, e in kept)
            if all(o / u <= rules.nms_tiou for o, u in zip(overlaps, unions, strict=True)):
                kept.append((score, start, end))
        rows += [(c, *row) for row in kept]
    return rows


@pytest.mark.parametrize("proposals", ["attention", "class_activation"])
@pytest.mark.parametrize("seed", range(20))
def test_detections_equal_the_plain_loops(seed, proposals):
    rng = np.random.default_rng(seed)
    snippets, classes = int(rng.integers(2, 90)), int(rng.integers(1, 9))
    scores = make_scores(rng, snippets, classes)
    duration_s = snippets * STRIDE / FPS * rng.uniform(0.6, 1.1)
    rules = LocalizeSettings(
        theta=rng.uniform(), class_threshold=0.2, nms_tiou=rng.uniform(0.1, 0.6), proposals=proposals
    )
    video = make_video(snippets, duration_s)
    found = detect(scores, video, STRIDE, rules)
    expected = np.array(plain_detections(scores, video, rules))
    columns = np.stack([found.label_N, found.score_N, found.start_s_N, found.end_s_N], axis=1)
    np.testing.assert_allclose(columns, expected, rtol=1e-9, atol=1e-12)


def test_no_class_above_the_threshold_keeps_the_best_one():
    scores = make_scores(np.random.default_rng(0), 30, 50, sharpness=0.0)
    scores["flow"].video_C[17] += 0.01
    found = detect(scores, make_video(30), STRIDE, LocalizeSettings())
    assert set(found.label_N) == {17}


@pytest.mark.parametrize("snippets", [1, 9])
def test_a_constant_attention_proposes_the_whole_video(snippets):
    score = VideoScores(np.array([0.8, 0.2]), np.full(snippets, 0.3), np.full((snippets, 2), 0.5))
    found = detect({"rgb": score, "flow": score}, make_video(snippets), STRIDE, LocalizeSettings(class_threshold=0.5))
    np.testing.assert_allclose((found.start_s_N, found.end_s_N), ([0], [snippets * STRIDE / FPS]))
    np.testing.assert_allclose(found.score_N, 0.15)


@pytest.mark.parametrize(("theta", "stream"), [(1.0, "rgb"), (0.0, "flow")])
def test_a_stream_of_no_weight_proposes_nothing(theta, stream):
    scores = make_scores(np.random.default_rng(5), 40, 6)
    rules = LocalizeSettings(theta=theta)
    both, alone = (detect(part, make_video(40), STRIDE, rules) for part in (scores, {stream: scores[stream]}))
    for column in ("label_N", "score_N", "start_s_N", "end_s_N"):
        np.testing.assert_array_equal(getattr(both, column), getattr(alone, column))


def test_equal_scores_keep_the_earlier_proposal():
    rgb = VideoScores(np.ones(1), np.array([1.0, 1, 1, 0, 0, 0]), np.ones((6, 1)))
    flow = VideoScores(np.ones(1), np.array([0.0, 1, 1, 1, 0, 0]), np.ones((6, 1)))
    found = detect({"rgb": rgb, "flow": flow}, make_video(6), STRIDE, LocalizeSettings(theta=0.5))
    np.testing.assert_allclose(found.start_s_N, [0])


def test_attention_past_the_stated_duration_alone_proposes_the_whole_video():
    score = VideoScores(np.ones(1), np.array([0.0, 0, 0, 1, 1]), np.ones((5, 1)))
    found = detect({"rgb": score, "flow": score}, make_video(5, 1.5), STRIDE, LocalizeSettings())
    np.testing.assert_allclose((found.start_s_N, found.end_s_N), ([0], [1.5]))


def test_each_class_has_proposals_of_its_own():
    attention = np.array([1.0, 1, 1, 1, 1, 0])
    first_T = np.array([1.0, 1, 0, 0, 0, 1])
    score = VideoScores(np.full(2, 0.5), attention, np.stack([first_T, 1 - first_T], axis=1))
    rules = LocalizeSettings(proposals="class_activation")
    found = detect({"rgb": score, "flow": score}, make_video(6), STRIDE, rules)
    np.testing.assert_allclose(found.label_N, [0, 1])
    np.testing.assert_allclose(found.start_s_N, [0, 1.28])
    np.testing.assert_allclose(found.end_s_N, [1.28, 3.2])
    np.testing.assert_allclose(found.score_N, [1, 1])
