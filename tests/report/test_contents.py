"""What is written into the page, against what it is computed from."""

import base64
import zlib

import numpy as np
import pytest

from aumn.inference.snippet_scores import STEPS
from aumn.report.units import TOP_SNIPPETS
from tests.evaluation_reference import Instance
from tests.report.cases import (
    CASE,
    CLASSES,
    FOUND,
    HOSTILE,
    TRUTH,
    UNITS,
    VIDEOS,
    contents_of,
    element_of,
    scores_of,
    write_page,
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    page, measured = write_page(tmp_path_factory.mktemp("contents"), **CASE)
    return page, contents_of(page), measured


class Packed:
    """The content of a line, read from its start on."""

    def __init__(self, text: str) -> None:
        self.left = zlib.decompress(base64.b64decode(text))

    def take(self, size: int) -> np.ndarray:
        taken, self.left = self.left[:size], self.left[size:]
        return np.frombuffer(taken, np.uint8)

    def numbers(self, count: int) -> list[float]:
        return self.take(8 * count).view(float).tolist()

    def rows(self, count: int, width: int, tious: int) -> list[tuple[list[float], list[int]]]:
        numbers = [self.numbers(width) for _ in range(count)]
        return [(row, self.take(tious).tolist()) for row in numbers]


def test_average_precision_is_the_area_under_the_places_of_true_positives(written):
    _, contents, measured = written
    classes = contents["classes"]
    assert classes["names"] == list(measured.evaluation.labels) == sorted(CLASSES)
    for label, instances in enumerate(classes["instances"]):
        for t, place_M in enumerate(classes["places"][label]):
            precisions = [(i + 1) / place for i, place in enumerate(place_M)]
            area = sum(max(precisions[i:]) for i in range(len(precisions))) / instances
            assert area == pytest.approx(measured.evaluation.ap_CT[label, t], abs=1e-12)
            assert classes["ap"][t][label] == pytest.approx(area, abs=1e-5)
    assert contents["overview"]["map"] == measured.evaluation.map_T


def test_the_list_counts_what_each_video_holds(written):
    videos = written[1]["videos"]
    assert videos["ids"] == sorted(VIDEOS)
    for v, video in enumerate(videos["ids"]):
        assert videos["instances"][v] == sum(instance.video == video for instance in TRUTH)
        assert videos["detections"][v] == sum(row.video == video for row in FOUND)
    assert [sum(found) for found in videos["found"]] == [4, 4, 3]
    assert videos["duration_s"] == [20.0] * len(VIDEOS)


def test_packed_videos_hold_their_events_and_their_scores_to_a_step(written):
    page, contents, _ = written
    videos, names, tious = contents["videos"], contents["names"], len(contents["overview"]["tious"])
    (line,) = element_of(page, "packed").split()
    packed = Packed(line)
    for index, video in enumerate(videos["ids"]):
        instances = packed.rows(videos["instances"][index], 3, tious)
        assert sorted((video, names[int(label)], start / 1000, end / 1000) for (label, start, end), _ in instances) == [
            row for row in sorted(TRUTH) if row.video == video
        ]
        if video == "v0":
            assert [taken for _, taken in instances] == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
        detections = packed.rows(videos["detections"][index], 4, tious)
        assert [
            (video, names[int(label)], pytest.approx(score), start / 1000, end / 1000)
            for (label, score, start, end), _ in detections
        ] == [row for row in FOUND if row.video == video]
        assert packed.numbers(1) == [2]
        for place, (expected, similarity_TK) in enumerate(scores_of(VIDEOS.index(video)).values()):
            stream, snippets, snippet_s, first_s, threshold, kept = packed.numbers(6)
            assert (stream, snippets, snippet_s, first_s, kept) == (place, len(similarity_TK), 0.8, 0, len(CLASSES))
            assert threshold == pytest.approx(expected.attention_T.mean())
            assert [names[int(label)] for label in packed.numbers(len(CLASSES))] == list(CLASSES)
            assert packed.numbers(len(CLASSES)) == pytest.approx(expected.video_C)
            whole = np.column_stack([expected.attention_T, expected.cas_TC, similarity_TK]).T
            found = packed.take(whole.size).reshape(whole.shape) / STEPS
            assert np.abs(found - whole).max() <= 0.5 / STEPS + 1e-9
    assert not packed.left


def test_units_are_described_by_the_snippets_and_classes_that_excite_them(written):
    contents = written[1]
    (rgb, flow) = contents["units"]
    assert (rgb["stream"], flow["stream"]) == ("rgb", "flow")
    position = {video: v for v, video in enumerate(contents["videos"]["ids"])}
    for k in range(UNITS):
        peaks = []
        for number, video in enumerate(VIDEOS):
            similarity_T = scores_of(number)["flow"][1][:, k]
            peaks.append((-similarity_T.max(), position[video], int(similarity_T.argmax())))
        expected = [[video, snippet, -peak] for peak, video, snippet in sorted(peaks)][:TOP_SNIPPETS]
        assert [[row[0], row[1]] for row in flow["top"][k]] == [row[:2] for row in expected]
        assert [row[4] for row in flow["top"][k]] == pytest.approx([row[2] for row in expected], abs=1e-4)
        assert flow["top"][k][0][2:4] == pytest.approx([expected[0][1] * 0.8, (expected[0][1] + 1) * 0.8])


def test_a_class_shares_a_unit_by_the_mean_over_its_snippets(tmp_path):
    """Each snippet once, also where instances of a class overlap, and in two classes where these do."""
    more = [("v0", "jump", 2, 5.2), ("v0", "jump", 2.4, 4.4), ("v0", "swim", 3.6, 30), ("v1", HOSTILE, 2.2, 2.3)]
    truth = [*TRUTH, *(Instance(*row) for row in more)]
    contents = contents_of(write_page(tmp_path, **CASE | {"truth": truth})[0])
    inside = {label: [] for label in [*contents["classes"]["names"], "background"]}
    for number, video in enumerate(VIDEOS):
        for t, similarity_K in enumerate(scores_of(number)["rgb"][1]):
            middle_s = (t + 0.5) * 0.8
            held = {row.label for row in truth if row.video == video and row.start_s <= middle_s < row.end_s}
            for label in held or {"background"}:
                inside[label].append(similarity_K)
    mean_KC = np.transpose([np.mean(rows, axis=0) for rows in inside.values()])
    np.testing.assert_allclose(contents["units"][0]["classes"], mean_KC, atol=3e-3)


def test_no_name_can_end_the_element_it_lies_in(written):
    page, contents, _ = written
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("</script>") == 3
    assert contents["facts"] == {"Run": f"case {HOSTILE}"}
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_equal_input_makes_equal_bytes(written, tmp_path):
    again, _ = write_page(tmp_path, **CASE)
    assert again.read_bytes() == written[0].read_bytes()


def test_thresholds_and_curves_without_a_number_are_no_broken_json(written):
    contents = written[1]
    assert contents["overview"]["tious"] == [0.3, 0.5, 0.7]
    assert contents["training"]["curves"]["loss"] == [[10, 20, 30], [3.0, None, 1.0]]
