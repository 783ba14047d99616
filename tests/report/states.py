"""Every state that a page is really met in, each a small page of its own; tests and people look at all of them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aumn.inference.snippet_scores import ScoredModel, compact, write_scores
from aumn.records import Video, VideoScores
from aumn.report.build import Report, write_comparison, write_report
from aumn.report.runs import Training, open_run
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth
from tests.report.cases import write_case
from tests.report.runs import make_run

LONG = "a very long name that somebody thought was needed to tell this class from its twenty neighbours " * 2
STEPS = range(10, 210, 10)
CURVES = {
    "loss": {step: 3.0 / step for step in STEPS},
    **{f"{stream}/total": {step: 2.0 / step for step in STEPS} for stream in ("rgb", "flow")},
    **{f"test/mAP/{tiou}": {100: 0.25, 200: 0.5} for tiou in ("0.5", "average")},
}


def write_page(
    folder: Path,
    truth: Sequence[Instance],
    found: Sequence[Found],
    *,
    videos: Sequence[str] = (),
    classes: Sequence[str] = (),
    tious: Sequence[float] = (0.1, 0.3, 0.5, 0.7),
    units: int | None = 4,
    training: Training | None = None,
) -> Path:
    """A page of these rows; with `units` also random scores of two streams."""
    labels = list(classes) or sorted({row.label for row in truth})
    every = list(videos) or sorted({row.video for row in truth})
    if units:
        random, rows = np.random.default_rng(0), []
        for video in every:
            for stream in ("rgb", "flow"):
                similarity_TK, cas_TC = random.random((30, units)), random.dirichlet(np.ones(len(labels)), 30)
                scores = VideoScores(cas_TC.mean(0), similarity_TK.max(1), cas_TC)
                place = Video(video, "test", 30, (), 20.0, 24.0)
                kept = {"classes": range(len(labels)), "units": range(units)}
                rows.append(compact(place, stream, scores, similarity_TK, stride_frames=16, **kept))
        write_scores(folder / "scores", 0, rows, ScoredModel("runs/case", tuple(labels), units, 0.3))
    report = Report("case", {"Run": "runs/case"}, folder / "scores" if units else None, {}, training)
    write_report(folder / "page.html", report, as_detections(found, every, labels),
                 as_ground_truth(truth, every, labels), tious)  # fmt: skip
    return folder / "page.html"


def write_runs(folder: Path, *runs: tuple[dict, tuple[float, ...] | None]) -> Path:
    folders = [make_run(folder / f"run{number}", *run) for number, run in enumerate(runs)]
    write_comparison(folder / "page.html", [open_run(path) for path in folders])
    return folder / "page.html"


ONE = Instance("v0", "jump", 2, 8)
HIT = Found("v0", "jump", 0.9, 2, 8)
MANY = [Instance(f"v{n}", f"class {n % 20}", 1, 4 + n / 10) for n in range(40)]
MANY_HITS = [Found(row.video, row.label, 1 - n / 50, row.start_s, row.end_s + n / 20) for n, row in enumerate(MANY)]

STATES: dict[str, Callable[[Path], Path]] = {
    "all there is": lambda folder: write_case(folder)[0],
    "no notes": lambda folder: write_page(folder, [ONE], [HIT], training=Training(CURVES)),
    "one class, one video, one threshold": lambda folder: write_page(folder, [ONE], [HIT], tious=(0.5,), units=1),
    "no detections": lambda folder: write_page(folder, [ONE], []),
    "no detections, no scores": lambda folder: write_page(folder, [ONE], [], units=None),
    "nothing annotated in a video": lambda folder: write_page(
        folder, [ONE], [HIT, Found("v1", "jump", 0.5, 1, 2)], videos=("v0", "v1", "v2")
    ),
    "nothing known of a video": lambda folder: write_page(folder, [ONE], [], videos=("v0", "v1"), units=None),
    "nothing right": lambda folder: write_page(folder, [ONE], [HIT._replace(start_s=10, end_s=11)]),
    "many classes and units": lambda folder: write_page(folder, MANY, MANY_HITS, units=64, training=Training(CURVES)),
    "long names": lambda folder: write_page(
        folder, [ONE._replace(label=LONG, video=LONG), ONE], [HIT._replace(label=LONG, video=LONG), HIT]
    ),
    "ten thresholds": lambda folder: write_page(folder, [ONE], [HIT], tious=[t / 100 for t in range(50, 100, 5)]),
    "no curves": lambda folder: write_page(folder, [ONE], [HIT], training=Training({}, "This run logged nothing.")),
    "curves that are not finite": lambda folder: write_page(
        folder,
        [ONE],
        [HIT],
        training=Training({"loss": {10: math.inf, 20: math.nan}, "rgb/total": {10: 1.0, 20: math.inf}, "lr": {5: 0}}),
    ),
    "runs, K": lambda folder: write_runs(
        folder, *(({"model.units": units, "run.seed": seed}, (0.2, 0.1, 0.15)) for units in (1, 7) for seed in (0, 1))
    ),
    "runs, one K alone measured": lambda folder: write_runs(
        folder, ({"model.units": 1}, None), ({"model.units": 7}, (0.2, 0.1, 0.15))
    ),
    "runs, ablation": lambda folder: write_runs(
        folder, ({"model.units": 1, "loss.diversity": 0}, (0.0, 0.0, 0.0)), ({"model.units": 7}, (0.0, 0.0, 0.0))
    ),
    "runs, nothing differs": lambda folder: write_runs(folder, ({}, (0.2, 0.1, 0.15)), ({}, (0.2, 0.1, 0.15))),
    "runs, K, no finite mAP": lambda folder: write_runs(
        folder, ({"model.units": 1}, (math.inf, 0.1, math.inf)), ({"model.units": 7}, (math.nan, 0.1, 0.2))
    ),
    "runs, infinite": lambda folder: write_runs(
        folder, ({"run.seed": 1}, (math.inf, 0.1, math.inf)), ({}, (0.2, 0.1, 0.15))
    ),
}  # fmt: skip
