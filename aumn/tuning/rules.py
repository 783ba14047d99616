"""Rules of localization chosen for a trained network, by what each is worth on videos whose scores are remembered.

The grid is searched part by part: from the model's own rules on, each part takes the best of its choices with the
others held, until none is better. That is some dozens of the thousands that the grid has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from aumn.evaluation.evaluate import evaluate
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import JOINT, GroundTruth
from aumn.runtime.ranks import Ranks
from aumn.tuning.criterion import evidence_map

Part = list[dict[str, Any]]
"""Choices for a part of the rules, each by the fields that it sets."""

TENTHS = [round(tenth / 10, 1) for tenth in range(1, 10)]
GRID: dict[str, Part] = {
    "proposals": [
        {"proposals": kind, "thresholds": thresholds}
        for kind in ("attention", "class_activation")
        for thresholds in ([], *([tenth] for tenth in TENTHS[:7]))
    ]
    + [
        {"proposals": kind, "thresholds": TENTHS, "contrast": contrast}
        for kind in ("attention", "class_activation")
        for contrast in (0.5, 1.0, 2.0)
    ],
    "curves": [
        {"scale": scale, "smoothing": snippets} for scale in ("probability", "log_odds") for snippets in (1, 3, 5, 9)
    ],
    "class_threshold": [{"class_threshold": share} for share in (0.005, 0.02, 0.1)],
    "contrast": [{"contrast": contrast} for contrast in (0.0, 0.25, 0.5, 1.0, 2.0)],
    "nms_tiou": [{"nms_tiou": tiou} for tiou in (0.1, 0.3, 0.5)],
    "fusion": [{"fusion": "nms", "fusion_sigma": 0.3}, {"fusion": "gaussian", "fusion_sigma": 0.3}],
}
"""What is tried of any model, beside `weights_of` its streams. Many thresholds help nobody without contrast: of nested
proposals the narrowest have the highest mean."""
LEAST = 0.005
"""What gains less than half a point in all is left as the model has it: a few videos do not tell."""


class Tried(NamedTuple):
    """Rules, and what they are worth: a fraction."""

    rules: LocalizeSettings
    value: float


class Choice(NamedTuple):
    """The best rules found, and all that they were compared with, each once, the model's own first."""

    best: Tried
    tried: list[Tried]
    grid: dict[str, Part]
    measure: str

    @property
    def own(self) -> Tried:
        """The model's."""
        return self.tried[0]

    def neighbours(self) -> list[tuple[str, Tried]]:
        """What was tried that differs from the best in one part alone, with the part, better ones first in each."""
        smallest = sorted(self.grid, key=lambda name: len(fields_of(self.grid[name])))
        found: dict[str, list[Tried]] = {name: [] for name in self.grid}
        for one in self.tried:
            changed = differing(one.rules, self.best.rules).keys()
            fitting = [name for name in smallest if changed and changed <= fields_of(self.grid[name])]
            if fitting:
                found[fitting[0]].append(one)
        return [(name, one) for name, ones in found.items() for one in sorted(ones, key=lambda one: -one.value)]


def choose_rules(
    scores: RememberedScores,
    truth: GroundTruth | None,
    own: LocalizeSettings,
    tious: Sequence[float],
    *,
    grid: dict[str, Part] | None = None,
    fixed: Collection[str] = (),
    advance: Callable[[int], None] = lambda _tried: None,
) -> Choice:
    """The rules by which `scores` get the highest mAP, but for parts that gain less than LEAST over the model's `own`.

    Without `truth`, labels alone tell: they say which streams are to be trusted, and nothing of the other rules, which
    stay. A choice that sets a `fixed` field otherwise than it is left out.
    """
    grid = {"weights": weights_of(list(scores.scores[0]), own), **(GRID if grid is None else grid)}
    mine = own.model_dump(mode="json")
    allowed = {
        name: [choice for choice in part if all(choice[field] == mine[field] for field in choice.keys() & set(fixed))]
        for name, part in grid.items()
        if truth is not None or name == "weights"
    }
    tried: dict[str, Tried] = {}

    def worth(rules: LocalizeSettings) -> Tried:
        key = rules.model_dump_json()
        if key not in tried:
            value = evidence_map(scores, rules) if truth is None else _value(scores, truth, rules, tious)
            tried[key] = Tried(rules, value)
            advance(len(tried))
        return tried[key]

    best, before = worth(own), -1.0
    while best.value > before:
        before = best.value
        for part in allowed.values():
            options = [best, *(worth(_changed(best.rules, choice)) for choice in part)]
            highest = max(one.value for one in options)
            good = (one for one in options if one.value == highest)
            best = min(good, key=lambda one: _distance(one.rules, own, list(scores.scores[0])))
    for part in allowed.values():  # not on the way, where half a point may lead to more
        back = worth(_changed(best.rules, {name: getattr(own, name) for name in fields_of(part)}))
        best = back if back.value >= before - LEAST else best
    if best.value < worth(own).value + LEAST:
        best = worth(own)
    return Choice(best, list(tried.values()), allowed, "mAP" if truth is not None else "classification mAP")


def weights_of(streams: Sequence[str], own: LocalizeSettings) -> Part:
    """Two streams' shares in tenths; of more, each alone, and all alike, with and without one of joint streams.

    None that are the model's own.
    """
    if len(streams) < 2:
        return []
    if len(streams) == 2:
        shares = [dict(zip(streams, (tenth / 10, (10 - tenth) / 10), strict=True)) for tenth in range(11)]
    else:
        apart = [stream for stream in streams if stream != JOINT]
        alike = [dict.fromkeys(some, 1 / len(some)) for some in ((streams, apart) if JOINT in streams else (streams,))]
        shares = [*alike, *({stream: 1.0} for stream in streams)]
    mine = own.shares(streams)
    others = [one for one in shares if {**dict.fromkeys(streams, 0.0), **one} != mine]
    return [{"weights": one} for one in (own.weights, *others)]


def fields_of(part: Part) -> set[str]:
    """The fields that it sets."""
    return {name for choice in part for name in choice}


def differing(rules: LocalizeSettings, others: LocalizeSettings) -> dict[str, Any]:
    """The fields in which rules differ from others, as JSON has them."""
    theirs = others.model_dump(mode="json")
    return {name: value for name, value in rules.model_dump(mode="json").items() if value != theirs[name]}


def _changed(rules: LocalizeSettings, choice: dict[str, Any]) -> LocalizeSettings:
    return LocalizeSettings.model_validate(rules.model_dump() | choice)


def _distance(rules: LocalizeSettings, own: LocalizeSettings, streams: Sequence[str]) -> tuple[int, float]:
    """In how many fields they differ, then by how much."""
    shares, mine = rules.shares(streams), own.shares(streams)
    numbers = [*(shares[stream] - mine[stream] for stream in streams), rules.contrast - own.contrast]
    return len(differing(rules, own)), sum(map(abs, [*numbers, rules.class_threshold - own.class_threshold]))


def _value(scores: RememberedScores, truth: GroundTruth, rules: LocalizeSettings, tious: Sequence[float]) -> float:
    return evaluate(scores.localize(rules), truth, tious, Ranks()).average
