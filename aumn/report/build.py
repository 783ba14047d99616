"""The report put together: what was measured, every video, the units, and the run's own record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aumn import __version__
from aumn.inference.snippet_scores import ScoredModel, SnippetScores, read_scores
from aumn.records import Detections, GroundTruth
from aumn.report.measures import Measured, classes, errors, measure, overview
from aumn.report.page import write_page
from aumn.report.runs import Run, Training
from aumn.report.sweep import compare
from aumn.report.units import summarize_units
from aumn.report.videos import list_videos, pack_videos


@dataclass(frozen=True, slots=True)
class Report:
    """What goes into one page beside detections and ground truth."""

    title: str
    facts: Mapping[str, str]  # where it all comes from: shown as they are, in this order
    scores: Path | None = None  # the folder that `localize_subset` wrote with the detections
    durations_s: Mapping[str, float] = field(default_factory=dict)
    training: Training | None = None


def write_report(
    out: Path, report: Report, detections: Detections, ground_truth: GroundTruth, tious: Sequence[float]
) -> Measured:
    """Measure and write the page; what was measured, for a line about it."""
    measured = measure(detections, ground_truth, tious)
    model, scores = _read(report.scores)
    names = _names(measured, model)
    durations_s = {row.video: row.duration_s for rows in scores.values() for row in rows} | dict(report.durations_s)
    position = {video: index for index, video in enumerate(measured.ground_truth.videos)}
    known = [(position[video], row) for video, rows in sorted(scores.items()) if video in position for row in rows]
    contents = {
        "version": __version__,
        "title": report.title,
        "facts": dict(report.facts),
        "names": names,
        "overview": overview(measured),
        "classes": classes(measured),
        "errors": errors(measured),
        "videos": list_videos(measured, durations_s),
        "theta": model.theta if model else None,
        "units": summarize_units(known, measured.ground_truth),
        "training": _training(report.training),
    }
    numbers = {name: index for index, name in enumerate(names)}
    packed = pack_videos(measured, scores, numbers, model.classes if model else ())
    write_page(out, report.title, contents, packed)
    return measured


def write_comparison(out: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Several runs on one page: K sweep, ablation, every setting; the comparison, for a line about it."""
    comparison = compare(runs)
    title = f"{len(runs)} runs"
    write_page(out, title, {"version": __version__, "title": title, "sweep": comparison})
    return comparison


def _training(training: Training | None) -> dict[str, Any] | None:
    """As the page has it; JSON has no NaN and no infinity."""
    if training is None:
        return None

    def finite(value: float) -> float | None:
        return float(f"{value:.5g}") if math.isfinite(value) else None

    curves = {name: [list(curve), list(map(finite, curve.values()))] for name, curve in training.curves.items()}
    return {"curves": curves, "note": training.note}


def _read(folder: Path | None) -> tuple[ScoredModel | None, dict[str, list[SnippetScores]]]:
    if folder is None:
        return None, {}
    model, rows = read_scores(folder)
    by_video: dict[str, list[SnippetScores]] = {}
    for row in rows:
        by_video.setdefault(row.video, []).append(row)
    return model, by_video


def _names(measured: Measured, model: ScoredModel | None) -> list[str]:
    """Labels as the page numbers them: the evaluated classes, then whatever else the model knows."""
    labels = list(measured.evaluation.labels)
    return labels + [label for label in (model.classes if model else ()) if label not in set(labels)]
