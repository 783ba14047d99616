"""What weak labels alone tell of a configuration: for sets where no held-out video's actions have times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aumn.inference.remembered import RememberedScores

NAME = "classification mAP"


def judge(candidates: Sequence[RememberedScores]) -> list[float]:
    """A number for each of several networks that scored the same videos; higher is better, only among these."""
    return [classification_map(scores) for scores in candidates]


def classification_map(remembered: RememberedScores) -> float:
    """Mean over the classes that occur of the average precision with which the video score finds their videos.

    The streams' video scores count alike.
    """
    score_VC = np.array([np.mean([one.video_C for one in of.values()], axis=0) for of in remembered.scores])
    holds_VC = np.zeros(score_VC.shape, dtype=bool)
    for number, video in enumerate(remembered.videos):
        holds_VC[number, list(video.labels)] = True
    order_VC = np.argsort(-score_VC, axis=0, kind="stable")
    hits_VC = np.take_along_axis(holds_VC, order_VC, axis=0)
    precision_VC = hits_VC.cumsum(0) / np.arange(1, len(hits_VC) + 1)[:, None]
    occurs_C = holds_VC.any(0)
    if not occurs_C.any():
        return 0.0
    return float(((precision_VC * hits_VC).sum(0) / hits_VC.sum(0).clip(1))[occurs_C].mean())
