"""What `evaluate` reports, and that it reports the same whatever the order, the parts, the numbering and the ranks."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aumn import ends
from aumn.data.truth.annotations import read_ground_truth
from aumn.evaluation import average_precision, own_truth
from aumn.evaluation.evaluate import PROTOCOLS, Evaluation, choose_tious, evaluate, parse_tious
from aumn.inference.detections import read_detections
from aumn.inference.parts import write_part
from aumn.records import Detections, GroundTruth, InputError
from aumn.runtime.ranks import Ranks
from tests.evaluation.evaluate_ranks import TIOUS
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth, as_rows
from tests.launching import python, succeed, torchrun

TRUTH = [Instance("v1", "run", 0, 4), Instance("v1", "run", 6, 9), Instance("v2", "jump", 3, 5)]
ROWS = [Found("v1", "run", 0.9, 0, 4), Found("v2", "jump", 0.8, 3, 4.2), Found("v2", "run", 0.7, 0, 4)]


def measure(rows: list[Found], truth: list[Instance] = TRUTH, videos=("v1", "v2"), tious=(0.5, 0.75)) -> Evaluation:
    return evaluate(as_detections(rows), as_ground_truth(truth, videos), tious, Ranks())


def random_case(count: int) -> tuple[Detections, GroundTruth]:
    """Many detections with many ties and duplicates, over more videos and labels than have ground truth."""
    random = np.random.default_rng(11)

    def draw(count: int, videos: int, labels: int) -> list[Found]:
        names = zip(random.integers(0, videos, count).tolist(), random.integers(0, labels, count).tolist(), strict=True)
        score, start_s, length_s = (random.integers(0, most, count) / 4 for most in (4, 40, 20))
        numbers = zip(score.tolist(), start_s.tolist(), (start_s + length_s).tolist(), strict=True)
        return [Found(f"v{v}", f"class {c}", *row) for (v, c), row in zip(names, numbers, strict=True)]

    rows, truth = draw(count, 25, 9), draw(count // 8, 20, 7)
    instances = [Instance(row.video, row.label, row.start_s, row.end_s) for row in truth]
    return as_detections(rows + rows[::5]), as_ground_truth(instances, [f"v{video}" for video in range(22)])


def test_json_states_the_population_and_full_precision():
    truth = [*TRUTH, Instance("v1", "swim", 2, 2)]
    report = json.loads(json.dumps(measure(ROWS, truth, ["v1", "v2", "v3"], parse_tious("0.55:0.75:0.1")).to_json()))
    assert report["mAP"] == {"0.55": (1 / 2 + 1 + 0) / 3, "0.65": 0.5 / 3, "0.75": 0.5 / 3}
    assert report["average"] == pytest.approx((1.5 + 0.5 + 0.5) / 9, abs=1e-16)
    assert report["population"] == {"videos": 3, "instances": 4, "classes": 3}
    assert report["per_class"]["run"] == {"0.55": 0.5, "0.65": 0.5, "0.75": 0.5}
    assert report["per_class"]["jump"] == {"0.55": 1.0, "0.65": 0.0, "0.75": 0.0}
    assert report["per_class"]["swim"] == {"0.55": 0.0, "0.65": 0.0, "0.75": 0.0}


def test_detections_outside_the_population_are_false_positives_and_said_to_be():
    stranger = Found("elsewhere", "run", 0.95, 0, 4)
    evaluation = measure([*ROWS, stranger])
    assert evaluation.to_json()["per_class"]["run"]["0.5"] == 0.25  # 1/2 at the first of two instances
    assert evaluation.population == measure(ROWS).population
    assert evaluation.counts.outside_population == {"elsewhere": 1}
    assert evaluation.notes() == ["False positives outside the population: 1 detection of 1 video, such as elsewhere."]


def test_detections_of_labels_without_ground_truth_count_for_nothing_and_are_said_to():
    strangers = [Found("v1", label, 0.99, 0, 4) for label in ("a", "b", "c", "d", "d")]
    evaluation = measure([*ROWS, *strangers])
    assert evaluation.map_T == measure(ROWS).map_T
    assert evaluation.population == measure(ROWS).population
    assert evaluation.counts.unknown_labels == {"a": 1, "b": 1, "c": 1, "d": 2}
    assert evaluation.notes() == ["Left out, for want of ground truth: 5 detections of 4 labels, such as a, b, c."]


def test_whatever_is_missing_is_said():
    truth = [*TRUTH, Instance("v1", "swim", 2, 2)]
    evaluation = measure(ROWS[:1], truth, ["v1", "v2", "v3"])
    assert evaluation.notes() == [
        "Without a detection, so AP 0: 2 of 3 classes, such as jump, swim.",
        "Without a detection: 2 of 3 videos.",
        "Never matched, for want of length: 1 instance.",
        "Hardly to be matched, for they last 0.02 s at most: 1 instance.",
    ]
    assert measure(ROWS).notes() == []


JUMP = Instance("v2", "jump", 3, 5)
ODD = [  # what is odd about the ground truth and the detections, and the one note that tells of it
    ([*TRUTH, JUMP], ROWS, {}, "Annotated once more, to the same times: 1 instance."),
    (TRUTH, ROWS, {"left_out": 2}, "Left out, for they end before they start: 2 instances."),
    (TRUTH, ROWS, {"swapped": 1}, "Taken with start and end exchanged, for they end before they start: 1 instance."),
    (TRUTH, ROWS, {"untimed": {"v3"}}, "Not measured on, for nobody annotated when: 1 video."),
    (
        [*TRUTH, *(Instance("v1", label, 7, 9) for label in ("Playing volleyball", "Volleyball"))],
        [*ROWS, *(Found("v1", label, 0.1, 7, 9) for label in ("Playing volleyball", "Volleyball"))],
        {},
        "Kept apart by spelling alone: 1 group of labels, such as 'Playing volleyball' and 'Volleyball'.",
    ),
    (
        [*TRUTH, Instance("v1", "Ambiguous", 7, 9)],
        [*ROWS, Found("v1", "Ambiguous", 0.1, 7, 9)],
        {},
        "'Ambiguous' is measured as a class; THUMOS14 calls so what is not to be measured on.",
    ),
    (
        TRUTH,
        ROWS,
        {"durations_s": {"v1": 5.0, "v2": 5.0}},
        "Behind their video's duration in the ground truth: 1 of 3 instances start there, and 0 more end there.",
    ),
    (
        TRUTH,
        [Found("v1", "run", 0.9, 260, 270), Found("v2", "jump", 0.8, 70, 120), ROWS[0]],
        {"durations_s": {"v1": 9.0, "v2": 5.0}},
        "Behind their video's duration in the ground truth: 2 of 3 detections start there, and 0 more end there. "
        "Are these times frames? Divided by 30 a second, all lie inside.",
    ),
    (
        TRUTH,
        [row._replace(start_s=row.start_s + 90, end_s=row.end_s + 90) for row in ROWS],
        {},
        "No detection overlaps an instance of its class by the lowest tIoU.",
    ),
    (
        [row._replace(video=f"v_{row.video}") for row in TRUTH],
        ROWS,
        {},
        "Named with v_ in one of the two files alone: 2 videos.",
    ),
]


@pytest.mark.parametrize(("truth", "rows", "facts", "note"), ODD)
def test_what_is_odd_is_said(truth: list[Instance], rows: list[Found], facts: dict, note: str):
    evaluation = evaluate(as_detections(rows), replace(as_ground_truth(truth), **facts), TIOUS, Ranks())
    assert evaluation.notes() == [note]
    assert json.loads(json.dumps(evaluation.to_json()))["notes"] == [note]


def test_videos_that_nobody_annotated_times_in_cost_nothing():
    """Neither do their detections."""
    truth = replace(as_ground_truth(TRUTH), untimed={"v3", "v_v4"})
    strangers = [Found(video, "run", 0.95, 0, 4) for video in ("v3", "v4")]
    assert evaluate(as_detections([*ROWS, *strangers]), truth, (0.5, 0.75), Ranks()).map_T == measure(ROWS).map_T


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "subset", "short", "duplicate", "starting", "ending"),
    [
        ("activitynet/gt_activitynet13.json", "training", 44, 30, 0, 1164),
        ("activitynet/gt_activitynet13.json", "validation", 30, 19, 1, 568),
        ("thumos14/gt_ftcl.json", "test", 0, 0, 60, 62),
    ],
)
def test_what_is_odd_about_real_ground_truth(
    shared_data: Path, file: str, subset: str, short: int, duplicate: int, starting: int, ending: int
):
    truth = read_ground_truth(shared_data / file, subset)
    counts = evaluate(as_detections([Found(truth.videos[0], "x", 1, 0, 1)]), truth, [0.5], Ranks()).counts
    ends = counts.instance_ends
    assert (counts.short_instances, counts.duplicate_instances) == (short, duplicate)
    assert (ends.starting, ends.ending) == (starting, ending)


def test_no_detections_are_a_zero_with_a_reason():
    evaluation = measure([])
    assert evaluation.map_T == [0.0, 0.0]
    assert evaluation.average == 0.0
    assert evaluation.notes() == ["There are no detections, so every average precision is 0."]


def test_annotations_of_other_videos_are_refused():
    with pytest.raises(
        InputError, match=r"None of the 3 detections is of a video .* as 'v1', it has videos such as 'x'"
    ):
        measure(ROWS, [Instance("x", "run", 0, 1)], ["x"])


def test_ground_truth_without_instances_is_refused():
    with pytest.raises(InputError, match=r"no instance to find: choose a subset that has annotations"):
        measure(ROWS, [])


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_parts_and_numbering_change_nothing(tmp_path_factory: pytest.TempPathFactory, random):
    detections, truth = random_case(300)
    expected = evaluate(detections, truth, TIOUS, Ranks()).to_json()
    rows, names = as_rows(detections), [*detections.videos, "unused"]
    random.shuffle(rows)
    random.shuffle(names)
    shuffled = as_detections(rows, names, random.sample(detections.labels, len(detections.labels)))
    assert evaluate(shuffled, shuffled_truth(truth, random), TIOUS, Ranks()).to_json() == expected

    folder = tmp_path_factory.mktemp("parts")
    cuts = sorted(random.sample(range(len(rows)), 3))
    for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        write_part(as_detections(rows[start:end]), folder / f"{start}.parquet")
    assert evaluate(read_detections(folder)[0], truth, TIOUS, Ranks()).to_json() == expected


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_neither_do_blocks_of_rows_whether_a_videos_lie_together_or_apart(monkeypatch: pytest.MonkeyPatch, rows: int):
    apart, truth = random_case(2_000)
    expected = evaluate(apart, truth, TIOUS, Ranks()).to_json()
    for module in (average_precision, own_truth, ends):
        monkeypatch.setattr(module, "BLOCK_ROWS", rows)
    together = average_precision.take(apart, np.argsort(apart.video_N, kind="stable"))
    for detections in (apart, together):
        assert evaluate(detections, truth, TIOUS, Ranks()).to_json() == expected


def shuffled_truth(truth: GroundTruth, random) -> GroundTruth:
    """The same instances in another order, with other numbers for videos and labels."""
    order = np.array(random.sample(range(len(truth)), len(truth)))
    renumbered = {}
    for column, names in (("video", truth.videos), ("label", truth.labels)):
        new_names = random.sample(names, len(names))
        new_number = np.array([new_names.index(name) for name in names], dtype=np.int32)
        renumbered |= {f"{column}s": new_names, f"{column}_N": new_number[getattr(truth, f"{column}_N")][order]}
    return replace(truth, **renumbered, start_s_N=truth.start_s_N[order], end_s_N=truth.end_s_N[order])


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """What each rank of 1, 2 and 3 reports of one set of parts."""
    folder = tmp_path_factory.mktemp("ranks")
    detections, truth = random_case(60_000)
    (folder / "detections").mkdir()
    for number, share in enumerate(np.array_split(np.random.default_rng(2).permutation(len(detections)), 7)):
        columns = {name: column[share] for name, column in asdict(detections).items() if name.endswith("_N")}
        videos = [f"v_{name}" if number < 2 else name for name in detections.videos]  # the same ones, all the same
        write_part(replace(detections, videos=videos, **columns), folder / "detections" / f"{number}.parquet")
    columns = {
        name: value for name, value in asdict(truth).items() if name in ("videos", "labels") or name[-2:] == "_N"
    }
    np.savez(folder / "truth.npz", **columns)
    worker = Path(__file__).with_name("evaluate_ranks.py")
    succeed(python(worker, folder))
    for size in (2, 3):
        succeed(torchrun(size, worker, folder))
    return {
        size: [json.loads((folder / f"{rank}of{size}.json").read_text()) for rank in range(size)] for size in (1, 2, 3)
    }


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_report_what_one_process_reports_to_the_last_bit(on_ranks: dict[int, list[dict]], size: int):
    (alone,) = on_ranks[1]
    assert alone["evaluation"]["average"] > 0.01
    for report in on_ranks[size]:
        assert report["evaluation"] == alone["evaluation"]


def test_a_rank_needs_less_memory_where_there_are_more(on_ranks: dict[int, list[dict]]):
    rows = {size: [report["rows"] for report in reports] for size, reports in on_ranks.items()}
    assert {size: sum(counts) for size, counts in rows.items()} == dict.fromkeys((1, 2, 3), 72_000)
    peaks = [max(report["peak_bytes"] for report in on_ranks[size]) for size in (1, 2, 3)]
    assert peaks[1] < 0.8 * peaks[0]
    assert peaks[2] < 0.6 * peaks[0]


def test_what_one_rank_alone_finds_wrong_ends_all_with_its_sentence(tmp_path: Path):
    """The second part is read by the second rank alone."""
    rows = [Found(f"v{i}", "run", score, 0, 4) for i, score in enumerate((0.5, 0.4, 0.3, float("nan")))]
    for number, share in enumerate((rows[:2], rows[2:])):
        write_part(as_detections(share), tmp_path / f"{number}.parquet")
    database = {row.video: {"subset": "s", "duration": 9.0, "annotations": [TRUE]} for row in rows}
    (tmp_path / "gt.json").write_text(json.dumps({"database": database}))
    command = ("evaluate", tmp_path, "--annotations", tmp_path / "gt.json", "--protocol", "thumos14")
    ended = torchrun(2, "-m", "aumn", *command)
    assert ended.returncode == 1
    assert ended.stderr.count("1.parquet, row 1 (from 0), video 'v3': score=nan; every detection needs finite") == 1
    assert ended.stderr.count("Traceback") == 1  # torchrun's own, of its child's exit code


TRUE = {"label": "run", "segment": [0.0, 4.0]}


def test_a_process_alone_imports_nothing_slow(on_ranks: dict[int, list[dict]]):
    assert not {"torch", "pandas", "mlflow"} & set(on_ranks[1][0]["modules"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1:0.7:0.1", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        (PROTOCOLS["activitynet"], (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        ("0.5", (0.5,)),
        ("0.7, 0.3,0.5,0.30,0.30000000000000000001", (0.3, 0.5, 0.7)),
        ("0.5:1:0.25", (0.5, 0.75, 1.0)),
    ],
)
def test_tious_are_the_decimals_that_were_written(text: str, expected: tuple[float, ...]):
    assert parse_tious(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "0.5,", "0.1:0.7", "0.1:0.7:0.1:2", "0.1:0.7:0", "0.1:0.7:-0.1", "0.7:0.1:0.1", "0:0.5:0.1", "0.5,1.1",
        "0", "-0.5", "1e-400", "nan", "inf", "0.1:inf:0.1", "nan:0.5:0.1", "0.1:0.75:0.1", "0.1:0.1:0.7",
        "0.001:1:0.001",
        ",".join(f"0.{number}" for number in range(100, 201)),
    ],
)  # fmt: skip
def test_other_tious_are_refused(text: str):
    with pytest.raises(
        InputError, match=rf"tIoU thresholds {text!r} cannot be read: give first:last:step .* 0.1:0.7:0.1"
    ):
        parse_tious(text)


def test_thresholds_come_from_a_protocol_or_are_spelled_out():
    assert choose_tious("thumos14", None) == parse_tious("0.1:0.7:0.1")
    assert choose_tious(None, "0.3,0.5") == (0.3, 0.5)
    for both_or_neither in ((None, None), ("thumos14", "0.5")):
        with pytest.raises(InputError, match=r"Give either --protocol thumos14 or activitynet, or --tiou"):
            choose_tious(*both_or_neither)
    with pytest.raises(InputError, match=r"protocol 'thumos' is not known: choose thumos14 or activitynet"):
        choose_tious("thumos", None)


def test_the_usual_means_of_thumos14():
    evaluation = measure(ROWS, tious=parse_tious(PROTOCOLS["thumos14"]))
    means = evaluation.usual_means()
    assert list(means) == ["0.1:0.5", "0.3:0.7", "0.1:0.7"]
    assert means["0.1:0.5"] == pytest.approx(np.mean(evaluation.map_T[:5]))
    assert means["0.3:0.7"] == pytest.approx(np.mean(evaluation.map_T[2:]))
    assert means["0.1:0.7"] == evaluation.average
    assert measure(ROWS, tious=parse_tious("0.1:0.5:0.1")).usual_means().keys() == {"0.1:0.5"}
    assert measure(ROWS).usual_means() == {}
