"""Every snippet's scores on disk: what is kept of many classes, and that it is read as it was written."""

import numpy as np
import pytest

from aumn.inference.snippet_scores import (
    ALL_CLASSES,
    KEPT_CLASSES,
    STEPS,
    ScoredModel,
    classes_to_keep,
    compact,
    read_scores,
    write_scores,
)
from aumn.records import Clock, InputError, Video, VideoScores

VIDEO = Video("v", "testing", 9, (3, 40), 5.5, 20.0)


def scores(num_classes: int, seed: int = 0) -> dict[str, VideoScores]:
    random = np.random.default_rng(seed)
    return {
        stream: VideoScores(random.random(num_classes), random.random(9), random.random((9, num_classes)))
        for stream in ("rgb", "flow")
    }


def test_few_classes_are_all_kept():
    assert classes_to_keep(scores(ALL_CLASSES), VIDEO, [2]) == list(range(ALL_CLASSES))


def test_of_many_classes_those_of_the_video_the_detected_and_the_best_are_kept():
    found = scores(50)
    kept = classes_to_keep(found, VIDEO, [17, 3])
    best = np.argsort(-(found["rgb"].video_C + found["flow"].video_C)).tolist()
    expected = {3, 40, 17}
    expected |= set([label for label in best if label not in expected][: KEPT_CLASSES - 3])
    assert kept == sorted(expected)
    assert classes_to_keep(found, VIDEO, list(range(12))) == [*range(12), 40]


def test_scores_are_read_as_they_were_written_to_a_step(tmp_path):
    similarity_Tk = np.random.default_rng(1).random((9, 2))
    rows = [
        compact(VIDEO, stream, score, similarity_Tk, clock=Clock(16, 36), classes=[3, 40], units=[0, 5])
        for stream, score in scores(50).items()
    ]
    model = ScoredModel("models:/x/1", ("a", "b"), 6, 0.3)
    write_scores(tmp_path / "scores", 0, rows[:1], model)
    write_scores(tmp_path / "scores", 1, rows[1:], model)
    found, read = read_scores(tmp_path / "scores")
    assert found == model
    for row, (stream, score) in zip(read, scores(50).items(), strict=True):
        assert (row.video, row.stream, row.duration_s, row.snippet_s) == ("v", stream, pytest.approx(8.2), 0.8)
        assert row.first_s == pytest.approx(0.5)
        assert (row.classes, row.units, row.video_c) == ([3, 40], [0, 5], score.video_C[[3, 40]].tolist())
        assert np.abs(row.attention_T / STEPS - score.attention_T).max() <= 0.5 / STEPS
        assert np.abs(row.cas_cT.T / STEPS - score.cas_TC[:, [3, 40]]).max() <= 0.5 / STEPS
        assert np.abs(row.similarity_kT.T / STEPS - similarity_Tk).max() <= 0.5 / STEPS
        assert row.threshold == score.attention_T.mean()
        assert row.peak_k == similarity_Tk.max(0).tolist()
        assert row.peak_snippet_k == similarity_Tk.argmax(0).tolist()


def test_parts_of_two_models_and_no_parts_are_refused(tmp_path):
    for rank, name in enumerate(("one", "other")):
        write_scores(tmp_path, rank, [], ScoredModel(name, ("a",), 7, 0.3))
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"holds no scores of one model: localize again with --scores into a new"):
            read_scores(folder)
