"""What weak labels alone tell of a configuration: for sets where no held-out video's actions have times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from aumn.evaluation.evaluate import PROTOCOLS, evaluate, parse_tious
from aumn.inference.proposals import evidence
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import Detections, GroundTruth
from aumn.runtime.ranks import Ranks

NAME = "agreement and evidence"
SURE = 0.5
"""Another network's detections count as instances where they have so much of the best one's score."""


def judge(candidates: Sequence[tuple[RememberedScores, LocalizeSettings]]) -> list[float]:
    """A number between 0 and 1 for each of several networks that scored the same videos; it compares only these.

    It is the mean of two: how well a network agrees with each other one on where actions are, and how well its evidence
    says which classes a video holds. Right detections agree, since networks err in ways of their own; but networks
    that fail alike agree as well, which the labels tell. How either ranks configurations: docs/experiments.md.
    """
    found = [scores.localize(rules) for scores, rules in candidates]
    instances = [_instances(one, scores) for one, (scores, _) in zip(found, candidates, strict=True)]
    tious = parse_tious(PROTOCOLS["thumos14"])
    agreement: list[list[float]] = [[] for _ in candidates]
    for one, other in permutations(range(len(candidates)), 2):
        is_right = len(instances[other]) > 0  # ever; who finds none of a video's own classes is agreed with by nobody
        agreement[one].append(evaluate(found[one], instances[other], tious, Ranks()).average if is_right else 0.0)
    labels = [evidence_map(scores, rules) for scores, rules in candidates]
    return [float(np.mean([np.mean(of or [0.0]), told])) for of, told in zip(agreement, labels, strict=True)]


def evidence_map(remembered: RememberedScores, rules: LocalizeSettings) -> float:
    """`classification_map` of what `rules` take for evidence, its mean over each video's snippets."""
    of_each = ((of, evidence(of, rules).mean(0)) for of in remembered.scores)
    means = [{"evidence": replace(next(iter(of.values())), video_C=mean_C)} for of, mean_C in of_each]
    return classification_map(replace(remembered, scores=tuple(means)))


def _instances(found: Detections, remembered: RememberedScores) -> GroundTruth:
    """The surest detections of the classes that a video holds, as if they were true."""
    classes = len(found.labels)
    holds_VC = _labels(remembered, classes)
    best_VC = np.full((len(found.videos), classes), -np.inf)
    np.maximum.at(best_VC, (found.video_N, found.label_N), found.score_N)
    sure_N = found.score_N >= SURE * best_VC[found.video_N, found.label_N]
    kept_N = sure_N & holds_VC[found.video_N, found.label_N]
    columns = (column[kept_N] for column in (found.video_N, found.label_N, found.start_s_N, found.end_s_N))
    return GroundTruth(found.videos, found.labels, *columns)


def _labels(remembered: RememberedScores, classes: int) -> np.ndarray:
    holds_VC = np.zeros((len(remembered.videos), classes), dtype=bool)
    for number, video in enumerate(remembered.videos):
        holds_VC[number, list(video.labels)] = True
    return holds_VC


def classification_map(remembered: RememberedScores) -> float:
    """Mean over the classes that occur of the average precision with which the video score finds their videos.

    The streams' video scores count alike.
    """
    score_VC = np.array([np.mean([one.video_C for one in of.values()], axis=0) for of in remembered.scores])
    holds_VC = _labels(remembered, score_VC.shape[1])
    order_VC = np.argsort(-score_VC, axis=0, kind="stable")
    hits_VC = np.take_along_axis(holds_VC, order_VC, axis=0)
    precision_VC = hits_VC.cumsum(0) / np.arange(1, len(hits_VC) + 1)[:, None]
    occurs_C = holds_VC.any(0)
    if not occurs_C.any():
        return 0.0
    return float(((precision_VC * hits_VC).sum(0) / hits_VC.sum(0).clip(1))[occurs_C].mean())
