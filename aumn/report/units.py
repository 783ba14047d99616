"""Action units a person can read: for each unit of each stream, what excites it most, and the classes that share it.

The top of a unit are the snippets with its highest similarity, at most one a video. A class's similarity is the mean
over the snippets whose middle lies in an instance of it; background's, over those that lie in none.

Letters: T snippets, C labels, then background, then all snippets together, k units that were kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aumn.inference.snippet_scores import STEPS, SnippetScores
from aumn.records import GroundTruth

TOP_SNIPPETS = 12

Row = tuple[int, SnippetScores]
"""One stream's scores of a video, with the video's number in the ground truth."""


def summarize_units(rows: Iterable[Row], truth: GroundTruth) -> list[dict[str, Any]]:
    """The units of every stream, as the page has them."""
    by_stream: dict[str, list[Row]] = {}
    for video, row in rows:
        by_stream.setdefault(row.stream, []).append((video, row))
    by_video = np.argsort(truth.video_N, kind="stable")
    instances = np.split(by_video, np.searchsorted(truth.video_N[by_video], np.arange(1, len(truth.videos))))
    return [_summarize(of_stream, truth, instances) for of_stream in by_stream.values()]


def _summarize(rows: Sequence[Row], truth: GroundTruth, instances: Sequence[np.ndarray]) -> dict[str, Any]:
    units = rows[0][1].units
    sum_kC, leads_k = np.zeros((len(units), len(truth.labels) + 2)), np.zeros(len(units))
    snippets_C = np.zeros(sum_kC.shape[1])
    for video, row in rows:
        covered_TC = _cover(row, truth, instances[video])
        sum_kC += row.similarity_kT / STEPS @ covered_TC
        snippets_C += covered_TC.sum(0)
        leads_k += np.bincount(row.similarity_kT.argmax(0), minlength=len(units))
    mean_kC = sum_kC / np.maximum(snippets_C, 1)
    return {
        "stream": rows[0][1].stream,
        "units": list(units),
        "mean": _short(mean_kC[:, -1]),
        "leads": _short(leads_k / np.maximum(snippets_C, 1)[-1]),
        "classes": [_short(mean_C) for mean_C in mean_kC[:, :-1]],
        "measured": (snippets_C > 0).tolist()[:-1],
        "top": [_top(rows, k) for k in range(len(units))],
    }


def _cover(row: SnippetScores, truth: GroundTruth, instances: np.ndarray) -> np.ndarray:
    """T x C: which labels' instances a snippet's middle lies in, or else that it is background."""
    middle_s_T = (np.arange(len(row.attention_T)) + 0.5) * row.snippet_s
    covered_TC = np.zeros((len(middle_s_T), len(truth.labels) + 2))
    for g in instances:
        within_T = (middle_s_T >= truth.start_s_N[g]) & (middle_s_T < truth.end_s_N[g])
        covered_TC[within_T, truth.label_N[g]] = 1
    covered_TC[:, -2] = ~covered_TC.any(1)
    covered_TC[:, -1] = 1
    return covered_TC


def _top(rows: Sequence[Row], k: int) -> list[list[float]]:
    """[video, snippet, start_s, end_s, similarity] of the best videos; of equals the first in the list."""
    best = sorted(rows, key=lambda row: (-row[1].peak_k[k], row[0]))[:TOP_SNIPPETS]
    return [
        [video, snippet, *_seconds(row, snippet), round(row.peak_k[k], 4)]
        for video, row in best
        for snippet in [row.peak_snippet_k[k]]
    ]


def _seconds(row: SnippetScores, snippet: int) -> tuple[float, float]:
    end_s = min((snippet + 1) * row.snippet_s, row.duration_s)
    return round(snippet * row.snippet_s, 2), round(end_s, 2)


def _short(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
