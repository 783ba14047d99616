"""A small report to look at: five videos of three classes, two streams of four units, names that try to be HTML."""

import json
import re
from pathlib import Path

import numpy as np

from aumn.inference.snippet_scores import ScoredModel, SnippetScores, compact, write_scores
from aumn.records import Detections, GroundTruth, Video, VideoScores
from aumn.report.build import Report, write_report
from aumn.report.measures import Measured
from aumn.report.runs import Training
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth

HOSTILE = '</script><img src=x onerror="window.hacked=1">&amp;{{script}}'
CLASSES = ("jump", HOSTILE, "swim")
VIDEOS = ("v0", "v1", f"v2 {HOSTILE}", "v3\u2028é", "v4")
TIOUS = (0.3, 0.5, 0.7)
TRUTH = [
    Instance("v0", "jump", 0, 4),
    Instance("v0", "jump", 6, 9),
    Instance("v0", HOSTILE, 12, 14),
    Instance("v1", HOSTILE, 2, 8),
    Instance(VIDEOS[2], "swim", 1, 3),
    Instance(VIDEOS[2], "jump", 10, 12),
]
FOUND = [
    Found("v0", "jump", 0.9, 0, 4),
    Found("v0", "jump", 0.8, 0, 3.5),
    Found("v0", "jump", 0.7, 6, 10),
    Found("v0", "swim", 0.3, 12, 14),
    Found("v1", HOSTILE, 0.6, 2, 5.5),
    Found("v1", HOSTILE, 0.2, 15, 16),
    Found(VIDEOS[2], "swim", 0.5, 1.5, 3),
    Found(VIDEOS[3], "jump", 0.4, 0, 1),
]
UNITS = 4
SNIPPETS = 25
TRAINING = Training({"loss": {10: 3.0, 20: float("nan"), 30: 1.0}, "rgb/total": {10: 2.0, 20: 1.0}})


def tables() -> tuple[Detections, GroundTruth]:
    return as_detections(FOUND, VIDEOS, CLASSES), as_ground_truth(TRUTH, VIDEOS, CLASSES)


def scores_of(video: str) -> dict[str, tuple[VideoScores, np.ndarray]]:
    """Each stream's scores and similarities (T x K), random but the same whenever asked for."""
    random = np.random.default_rng(VIDEOS.index(video))
    found = {}
    for stream in ("rgb", "flow"):
        similarity_TK = random.random((SNIPPETS, UNITS))
        cas_TC = random.dirichlet(np.ones(len(CLASSES)), SNIPPETS)
        found[stream] = (
            VideoScores(random.dirichlet(np.ones(len(CLASSES))), similarity_TK.max(1), cas_TC),
            similarity_TK,
        )
    return found


def rows() -> list[SnippetScores]:
    return [
        compact(
            Video(video, "testing", SNIPPETS, (), 20.0, 20.0),
            stream,
            scores,
            similarity_TK,
            stride_frames=16,
            classes=range(len(CLASSES)),
            units=range(UNITS),
        )
        for video in VIDEOS
        for stream, (scores, similarity_TK) in scores_of(video).items()
    ]


def write_case(folder: Path, *, with_scores: bool = True) -> tuple[Path, Measured]:
    """The page, and what was measured for it."""
    if with_scores:
        write_scores(folder / "scores", 0, rows(), ScoredModel("runs/case", CLASSES, UNITS, 0.3))
    report = Report(
        title=f"case {HOSTILE}",
        facts={"Run": HOSTILE},
        scores=folder / "scores" if with_scores else None,
        durations_s=dict.fromkeys(VIDEOS, 20.0),
        training=TRAINING,
    )
    page = folder / "report.html"
    return page, write_report(page, report, *tables(), TIOUS)


def contents_of(page: Path) -> dict:
    return json.loads(_element(page, "contents"))


def packed_of(page: Path) -> list[str]:
    return _element(page, "packed").splitlines()


def _element(page: Path, name: str) -> str:
    (found,) = re.findall(rf'id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return found
