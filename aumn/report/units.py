"""Action units a person can read: for each unit of each stream, what excites it most, and the classes that share it.

The top of a unit are the snippets with its highest similarity, at most one a video. A class's similarity is the mean
over the snippets whose middle lies in an instance of it; background's, over those that lie in none.

Letters: T snippets, C labels, then background, then all snippets together, l those of a video, k units that were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aumn.inference.snippet_scores import STEPS, SnippetScores
from aumn.records import GroundTruth

TOP_SNIPPETS = 12
Covers = dict[tuple[int, int, float, float], tuple[np.ndarray, np.ndarray]]


def summarize_units(scores: Sequence[Sequence[SnippetScores]], truth: GroundTruth) -> list[dict[str, Any]]:
    """The units of every stream, as the page has them; `scores` has an item a video of the ground truth."""
    by_stream: dict[str, list[tuple[int, SnippetScores]]] = {}
    for video, rows in enumerate(scores):
        for row in rows:
            by_stream.setdefault(row.stream, []).append((video, row))
    covers: Covers = {}
    return [_summarize(stream, rows, truth, covers) for stream, rows in by_stream.items()]


def _summarize(
    stream: str, rows: Sequence[tuple[int, SnippetScores]], truth: GroundTruth, covers: Covers
) -> dict[str, Any]:
    units = rows[0][1].units
    sum_kC, leads_k = np.zeros((len(units), len(truth.labels) + 2)), np.zeros(len(units))
    snippets_C = np.zeros(sum_kC.shape[1])
    by_video_G = np.argsort(truth.video_N, kind="stable")
    bounds_V = np.searchsorted(truth.video_N[by_video_G], np.arange(rows[-1][0] + 2))
    for video, row in rows:
        key = (video, len(row.attention_T), row.first_s, row.snippet_s)  # mostly the same for all streams
        if key not in covers:
            covers[key] = _cover(row, truth, by_video_G[bounds_V[video] : bounds_V[video + 1]])
        label_l, covered_lT = covers[key]
        sum_kC[:, label_l] += row.similarity_kT.astype(float) @ covered_lT.T  # whole numbers, so exact
        snippets_C[label_l] += covered_lT.sum(1)
        leads_k += np.bincount(row.similarity_kT.argmax(0), minlength=len(units))
    mean_kC = (sum_kC / STEPS / np.maximum(snippets_C, 1)).round(4)
    return {
        "stream": stream,
        "units": list(units),
        "mean": mean_kC[:, -1].tolist(),
        "leads": (leads_k / max(snippets_C[-1], 1)).round(4).tolist(),
        "classes": mean_kC[:, :-1].tolist(),
        "measured": (snippets_C > 0).tolist()[:-1],
        "top": [_top(rows, k) for k in range(len(units))],
    }


def _cover(row: SnippetScores, truth: GroundTruth, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The video's labels l, then background's number and that of all, and which snippets T each covers.

    A label covers a snippet whose middle lies in an instance of it; background, what none does.
    """
    middle_s_T = row.first_s + (np.arange(len(row.attention_T)) + 0.5) * row.snippet_s
    labels, label_g = np.unique(truth.label_N[instances], return_inverse=True)
    covered_lT = np.zeros((len(labels) + 2, len(middle_s_T)), bool)
    for g, label in zip(instances.tolist(), label_g.tolist(), strict=True):
        covered_lT[label] |= (middle_s_T >= truth.start_s_N[g]) & (middle_s_T < truth.end_s_N[g])
    covered_lT[-2] = ~covered_lT.any(0)
    covered_lT[-1] = True
    return np.append(labels, [len(truth.labels), len(truth.labels) + 1]), covered_lT


def _top(rows: Sequence[tuple[int, SnippetScores]], k: int) -> list[list[float]]:
    """[video, snippet, start_s, end_s, similarity] of the best videos; of equals the first in the list."""
    top = []
    for video, row in sorted(rows, key=lambda row: (-row[1].peak_k[k], row[0]))[:TOP_SNIPPETS]:
        snippet = row.peak_snippet_k[k]
        start_s = row.first_s + snippet * row.snippet_s
        top.append([video, snippet, round(start_s, 2), round(start_s + row.snippet_s, 2), round(row.peak_k[k], 4)])
    return top
