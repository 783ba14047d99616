"""What is written into the page, against what it is computed from."""

import base64
import json
import zlib

import numpy as np
import pytest

from aumn.inference.snippet_scores import STEPS
from aumn.report.units import TOP_SNIPPETS
from tests.report.cases import (
    CLASSES,
    FOUND,
    HOSTILE,
    TIOUS,
    TRUTH,
    UNITS,
    VIDEOS,
    contents_of,
    packed_of,
    scores_of,
    write_case,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    page, measured = write_case(tmp_path_factory.mktemp("contents"))
    return page, contents_of(page), measured


def unpack(text: str) -> tuple[dict, bytes]:
    content = zlib.decompress(base64.b64decode(text))
    length = int.from_bytes(content[:4], "little")
    return json.loads(content[4 : 4 + length]), content[4 + length :]


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


def test_a_packed_video_holds_its_events_and_its_scores_to_a_step(written):
    page, contents, _ = written
    v = contents["videos"]["ids"].index("v0")
    header, scores = unpack(packed_of(page)[v])
    names = contents["names"]
    assert [(names[row[0]], *row[1:3]) for row in header["gt"]] == [tuple(row[1:]) for row in TRUTH[:3]]
    assert [row[3] for row in header["gt"]] == ["111", "111", "000"]
    assert [(names[row[0]], *row[1:4]) for row in header["det"]] == [tuple(row[1:]) for row in FOUND[:4]]
    at = 0
    for stream, (expected, similarity_TK) in zip(header["streams"], scores_of("v0").values(), strict=True):
        count = stream["snippets"] * (1 + len(CLASSES) + UNITS)
        table = np.frombuffer(scores[at : at + count], np.uint8).reshape(-1, stream["snippets"]) / STEPS
        whole = np.column_stack([expected.attention_T, expected.cas_TC, similarity_TK]).T
        assert np.abs(table - whole).max() <= 0.5 / STEPS + 1e-9
        assert [names[label] for label in stream["classes"]] == list(CLASSES)
        at += count
    assert at == len(scores)


def test_units_are_described_by_the_snippets_and_classes_that_excite_them(written):
    contents = written[1]
    (rgb, flow) = contents["units"]
    assert (rgb["stream"], flow["stream"]) == ("rgb", "flow")
    position = {video: v for v, video in enumerate(contents["videos"]["ids"])}
    for k in range(UNITS):
        peaks = []
        for video in VIDEOS:
            similarity_T = scores_of(video)["flow"][1][:, k]
            peaks.append((-similarity_T.max(), position[video], int(similarity_T.argmax())))
        expected = [[video, snippet, -peak] for peak, video, snippet in sorted(peaks)][:TOP_SNIPPETS]
        assert [[row[0], row[1]] for row in flow["top"][k]] == [row[:2] for row in expected]
        assert [row[4] for row in flow["top"][k]] == pytest.approx([row[2] for row in expected], abs=1e-4)
        assert flow["top"][k][0][2:4] == pytest.approx([expected[0][1] * 0.8, (expected[0][1] + 1) * 0.8])


def test_a_class_shares_a_unit_by_the_mean_over_its_snippets(written):
    contents = written[1]
    labels = contents["classes"]["names"]
    middle_s = (np.arange(25) + 0.5) * 0.8
    inside: dict[str, list[np.ndarray]] = {label: [] for label in [*labels, "background"]}
    for video in VIDEOS:
        similarity_TK = scores_of(video)["rgb"][1]
        covered = np.zeros(25, dtype=bool)
        for label in labels:
            within = np.zeros(25, dtype=bool)
            for instance in TRUTH:
                if (instance.video, instance.label) == (video, label):
                    within |= (middle_s >= instance.start_s) & (middle_s < instance.end_s)
            inside[label].append(similarity_TK[within])
            covered |= within
        inside["background"].append(similarity_TK[~covered])
    for k in range(UNITS):
        means = [np.concatenate(parts)[:, k].mean() for parts in inside.values()]
        assert contents["units"][0]["classes"][k] == pytest.approx(means, abs=3e-3)


def test_no_name_can_end_the_element_it_lies_in(written):
    page, contents, _ = written
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("</script>") == 3
    assert contents["facts"] == {"Run": HOSTILE}
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_equal_input_makes_equal_bytes(written, tmp_path):
    again, _ = write_case(tmp_path)
    assert again.read_bytes() == written[0].read_bytes()


def test_thresholds_and_curves_without_a_number_are_no_broken_json(written):
    contents = written[1]
    assert contents["overview"]["tious"] == list(TIOUS)
    assert contents["training"]["curves"]["loss"] == [[10, 20, 30], [3.0, None, 1.0]]
