"""Reports to look at: pages of a few rows with drawn scores, and runs' folders as training leaves them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from aumn.config.run_config import RunConfig
from aumn.inference.snippet_scores import ScoredModel, compact, write_scores
from aumn.records import Clock, Video, VideoScores
from aumn.report.measures import Measured
from aumn.report.reporting import write_report
from aumn.report.runs import Training
from aumn.runfolder.checkpoint import Checkpoint, ModelCard, save_checkpoint
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth

HOSTILE = '</script><img src=x onerror="window.hacked=1">&amp;${script}'
CLASSES = ("jump", HOSTILE, "swim")
VIDEOS = ("v0", "v1", f"v2 {HOSTILE}", "v3\u2028é", "v4")
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
CASE = {"truth": TRUTH, "found": FOUND, "videos": VIDEOS, "classes": CLASSES, "tious": (0.3, 0.5, 0.7),
        "title": f"case {HOSTILE}", "training": TRAINING}  # fmt: skip
"""Five videos of three classes, two streams of four units, names that try to be HTML."""


def scores_of(
    video: int, classes: int = len(CLASSES), units: int = UNITS, streams: Sequence[str] = ("rgb", "flow")
) -> dict[str, tuple[VideoScores, np.ndarray]]:
    """Each stream's scores and similarities (T x K) of a video, random but the same whenever asked for."""
    random, found = np.random.default_rng(video), {}
    for stream in streams:
        similarity_TK, cas_TC = random.random((SNIPPETS, units)), random.dirichlet(np.ones(classes), SNIPPETS)
        found[stream] = VideoScores(cas_TC.mean(0), similarity_TK.max(1), cas_TC), similarity_TK
    return found


def write_page(
    folder: Path,
    truth: Sequence[Instance],
    found: Sequence[Found],
    *,
    videos: Sequence[str] = (),
    classes: Sequence[str] = (),
    tious: Sequence[float] = (0.1, 0.3, 0.5, 0.7),
    units: int | None = UNITS,
    title: str = "case",
    training: Training | None = None,
    streams: Sequence[str] = ("rgb", "flow"),
    films: Mapping[str, Path] = MappingProxyType({}),
) -> tuple[Path, Measured]:
    """A page of these rows, with `units` also of drawn scores; and what was measured for it."""
    labels = list(classes) or sorted({row.label for row in truth})
    every = list(videos) or sorted({row.video for row in truth})
    rows = [
        compact(Video(video, "test", SNIPPETS, (), 20.0, 20.0), stream, scores, similarity_TK, clock=Clock(16, 16),
                classes=range(len(labels)), units=range(units))
        for index, video in enumerate(every if units else ())
        for stream, (scores, similarity_TK) in scores_of(index, len(labels), units, streams).items()
    ]  # fmt: skip
    if units:
        write_scores(
            folder / "scores",
            0,
            rows,
            ScoredModel("runs/case", tuple(labels), units, dict.fromkeys(streams, 1 / len(streams))),
        )
    durations_s = dict.fromkeys(every, 20.0) if units else {}
    ground_truth = replace(as_ground_truth(truth, every, labels), durations_s=durations_s)
    measured = write_report(
        folder / "page.html", as_detections(found, every, labels), ground_truth, tious, title=title,
        facts={"Run": title},
        scores=folder / "scores" if units else None, training=training, films=films,
    )  # fmt: skip
    return folder / "page.html", measured


def make_run(
    folder: Path, overrides: Mapping[str, Any], values: tuple[float, ...] | None, videos: str = "test"
) -> Path:
    """A run's folder as training leaves it, with this mAP at tIoU 0.1, at 0.2 and on average."""
    settings: dict[str, dict[str, Any]] = {"data": {"shards": "x"}, "run": {"folder": str(folder), "steps": 10}}
    for name, value in overrides.items():
        section, _, field = name.partition(".")
        settings.setdefault(section, {})[field] = value
    config = RunConfig.model_validate(settings).model_dump(mode="json")
    names = [f"{videos}/mAP/{tiou}" for tiou in ("0.1", "0.2", "average")]
    card = ModelCard(
        model=config["model"],
        localize=config["localize"],
        classes=("a",),
        streams={"rgb": 1, "flow": 1},
        stride_frames=16,
        dataset="x",
        dataset_identity="1f",
        metrics=dict(zip(names, values, strict=True)) if values else {},
        aumn_version="0",
        commit=None,
    )
    facts = {"tracking_run": None, "best": -1.0, "config": config, "optimizer": {}}
    save_checkpoint(folder, Checkpoint(10, {"w": torch.zeros(1)}, card, {"w": torch.zeros(1)}, facts), keep_last=1)
    return folder


def contents_of(page: Path) -> dict:
    return json.loads(element_of(page, "contents"))


def element_of(page: Path, name: str) -> str:
    """What stands in one of the page's script elements: `contents`, or the videos, `packed`, a line each."""
    (found,) = re.findall(rf'id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return found
