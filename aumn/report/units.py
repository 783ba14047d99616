"""Action units a person can read: for each unit of each stream, what excites it most, and the classes that share it.

The top of a unit are the snippets with its highest similarity, at most one a video. A class's similarity is the mean
over the snippets whose middle lies in an instance of it; background's, over those that lie in none.

Letters: V videos, R rows of a stream's scores, T snippets of all its videos, C labels, then background, then all
snippets together, P stretches of snippets that a label covers, k units that were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aumn.evaluation.average_precision import pair_up
from aumn.inference.snippet_scores import STEPS, SnippetScores
from aumn.records import GroundTruth

TOP_SNIPPETS = 12


def summarize_units(scores: Sequence[Sequence[SnippetScores]], truth: GroundTruth) -> list[dict[str, Any]]:
    """The units of every stream, as the page has them; `scores` has an item a video of the ground truth."""
    by_stream: dict[str, list[tuple[int, SnippetScores]]] = {}
    for video, rows in enumerate(scores):
        for row in rows:
            by_stream.setdefault(row.stream, []).append((video, row))
    return [_summarize(stream, rows, truth) for stream, rows in by_stream.items()]


def _summarize(stream: str, rows: Sequence[tuple[int, SnippetScores]], truth: GroundTruth) -> dict[str, Any]:
    units, size = rows[0][1].units, len(truth.labels) + 2
    similarity_kT = np.concatenate([row.similarity_kT for _, row in rows], axis=1)
    label_P, start_P, end_P = _cover(rows, truth)
    sum_kC, snippets_C = np.empty((len(units), size)), np.bincount(label_P, end_P - start_P, size)
    until_T = np.zeros(similarity_kT.shape[1] + 1, int)
    for k, similarity_T in enumerate(similarity_kT):
        np.cumsum(similarity_T, out=until_T[1:])
        sum_kC[k] = np.bincount(label_P, until_T[end_P] - until_T[start_P], size)
    for found in (sum_kC.T, snippets_C):  # what no label covers
        found[-2] = found[-1] - found[-2]
    mean_kC = (sum_kC / STEPS / np.maximum(snippets_C, 1)).round(4)
    leads_k = np.bincount(similarity_kT.argmax(0), minlength=len(units)) / max(snippets_C[-1], 1)
    peak_kV = np.array([row.peak_k for _, row in rows]).T
    return {
        "stream": stream,
        "units": list(units),
        "mean": mean_kC[:, -1].tolist(),
        "leads": leads_k.round(4).tolist(),
        "classes": mean_kC[:, :-1].tolist(),
        "measured": (snippets_C > 0).tolist()[:-1],
        "top": [_top(rows, k, peak_V) for k, peak_V in enumerate(peak_kV)],
    }


def _cover(rows: Sequence[tuple[int, SnippetScores]], truth: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretches P of snippets, which count on from video to video: label, first, end; those of a label are disjoint.

    A label covers a snippet whose middle lies in an instance of it; the number after them what any label does, the one
    after that everything.
    """
    by_video_G = np.argsort(truth.video_N, kind="stable")
    row_P, nth_P = pair_up(np.array([video for video, _ in rows]), truth.video_N[by_video_G])
    clock_R3 = np.array([(row.first_s, row.snippet_s, len(row.attention_T)) for _, row in rows])
    first_s_P, snippet_s_P, snippets_P = clock_R3[row_P].T
    before_P = (np.cumsum(clock_R3[:, 2]) - clock_R3[:, 2])[row_P]

    def from_time(time_s_P: np.ndarray) -> np.ndarray:
        """The first snippet whose middle is not before."""
        t_P = np.ceil((time_s_P - first_s_P) / snippet_s_P - 0.5)
        t_P += first_s_P + (t_P + 0.5) * snippet_s_P < time_s_P  # what was divided is rounded, and may be one off
        t_P -= first_s_P + (t_P - 0.5) * snippet_s_P >= time_s_P
        from_P: np.ndarray = (before_P + np.clip(t_P, 0, snippets_P)).astype(int)
        return from_P

    instance_P, labels, snippets = by_video_G[nth_P], len(truth.labels), int(clock_R3[:, 2].sum())
    label_P = np.append(truth.label_N[instance_P], np.full(len(row_P), labels))
    start_P, end_P = (np.tile(from_time(column[instance_P]), 2) for column in (truth.start_s_N, truth.end_s_N))
    order = np.lexsort((start_P, label_P))
    label_P, start_P, end_P = label_P[order], start_P[order], end_P[order]
    # Each stretch begins where those of its label before it have ended.
    own_P = label_P * snippets
    reached_P = np.maximum.accumulate(own_P + end_P)
    start_P = np.maximum(start_P, np.append(0, reached_P[:-1]) - own_P)
    return np.append(label_P, labels + 1), np.append(start_P, 0), np.append(reached_P - own_P, snippets)


def _top(rows: Sequence[tuple[int, SnippetScores]], k: int, peak_V: np.ndarray) -> list[list[float]]:
    """[video, snippet, start_s, end_s, similarity] of the best videos; of equals the first in the list."""
    top = []
    for video, row in [rows[place] for place in np.argsort(-peak_V, kind="stable")[:TOP_SNIPPETS]]:
        snippet = row.peak_snippet_k[k]
        start_s = row.first_s + snippet * row.snippet_s
        top.append([video, snippet, round(start_s, 2), round(start_s + row.snippet_s, 2), round(row.peak_k[k], 4)])
    return top
