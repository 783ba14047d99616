"""Action units a person can read: for each unit of each stream, what excites it most, and the classes that share it.

Letters: T snippets, C labels, k units that were kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aumn.inference.snippet_scores import STEPS, SnippetScores
from aumn.records import GroundTruth

TOP_SNIPPETS = 12


class UnitSummary:
    """One stream's units over a subset, gathered video by video.

    The top of a unit are the snippets with its highest similarity, at most one a video. A class's similarity is the
    mean over the snippets whose middle lies in an instance of it; background's, over those that lie in none.
    """

    def __init__(self, stream: str, units: Sequence[int], num_labels: int) -> None:
        self.stream, self.units = stream, list(units)
        self.sum_kC = np.zeros((len(units), num_labels + 1))  # the last column: background
        self.snippets_C = np.zeros(num_labels + 1)
        self.sum_k, self.snippets = np.zeros(len(units)), 0
        self.leads_k = np.zeros(len(units))
        self.peaks: list[tuple[int, SnippetScores]] = []

    def add(self, video: int, row: SnippetScores, inside_TC: np.ndarray) -> None:
        """Take in one video's similarities; `inside_TC` says of each snippet which labels' instances it lies in."""
        covered_TC = np.column_stack([inside_TC, ~inside_TC.any(1)]).astype(np.float64)
        similarity_kT = row.similarity_kT / STEPS
        self.sum_kC += similarity_kT @ covered_TC
        self.snippets_C += covered_TC.sum(0)
        self.sum_k += similarity_kT.sum(1)
        self.snippets += similarity_kT.shape[1]
        self.leads_k += np.bincount(row.similarity_kT.argmax(0), minlength=len(self.units))
        self.peaks.append((video, row))

    def contents(self) -> dict[str, Any]:
        """As the page has it."""
        mean_kC = np.divide(self.sum_kC, self.snippets_C, out=np.zeros_like(self.sum_kC), where=self.snippets_C > 0)
        return {
            "stream": self.stream,
            "units": self.units,
            "mean": _short(self.sum_k / max(1, self.snippets)),
            "leads": _short(self.leads_k / max(1, self.snippets)),
            "classes": [_short(mean_C) for mean_C in mean_kC],
            "measured": (self.snippets_C > 0).tolist(),
            "top": [self._top(k) for k in range(len(self.units))],
        }

    def _top(self, k: int) -> list[list[float]]:
        """[video, snippet, start_s, end_s, similarity] of the best videos; of equals the first in the list."""
        best = sorted(self.peaks, key=lambda peak: (-peak[1].peak_k[k], peak[0]))[:TOP_SNIPPETS]
        return [
            [video, snippet, *_seconds(row, snippet), round(row.peak_k[k], 4)]
            for video, row in best
            for snippet in [row.peak_snippet_k[k]]
        ]


def summarize_units(rows: Iterable[tuple[int, SnippetScores]], ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """The units of every stream; a row comes with its video's number in the ground truth."""
    by_video = np.argsort(ground_truth.video_N, kind="stable")
    bounds = np.searchsorted(ground_truth.video_N[by_video], np.arange(len(ground_truth.videos) + 1))
    summaries: dict[str, UnitSummary] = {}
    for video, row in rows:
        instances = by_video[bounds[video] : bounds[video + 1]]
        summary = summaries.setdefault(row.stream, UnitSummary(row.stream, row.units, len(ground_truth.labels)))
        summary.add(video, row, _inside(row, ground_truth, instances))
    return [summary.contents() for summary in summaries.values()]


def _inside(row: SnippetScores, ground_truth: GroundTruth, instances: np.ndarray) -> np.ndarray:
    middle_s_T = (np.arange(len(row.attention_T)) + 0.5) * row.snippet_s
    inside_TC = np.zeros((len(middle_s_T), len(ground_truth.labels)), dtype=bool)
    for g in instances:
        within_T = (middle_s_T >= ground_truth.start_s_N[g]) & (middle_s_T < ground_truth.end_s_N[g])
        inside_TC[within_T, ground_truth.label_N[g]] = True
    return inside_TC


def _seconds(row: SnippetScores, snippet: int) -> tuple[float, float]:
    end_s = min((snippet + 1) * row.snippet_s, row.duration_s)
    return round(snippet * row.snippet_s, 2), round(end_s, 2)


def _short(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
