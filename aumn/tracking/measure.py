"""The mAP that a model's card records, and whether two of them were measured on the same videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aumn.runfolder.checkpoint import ModelCard


@dataclass(frozen=True)
class Measure:
    """Fractions, by threshold and on average; the same population is the same videos of the same data."""

    population: str | None  # None: held-out videos, and which those were is not recorded
    identity: str
    map_by_tiou: Mapping[float, float]
    average: float

    @property
    def thresholds(self) -> str:
        """Such as 0.1 to 0.7."""
        return f"{min(self.map_by_tiou):g} to {max(self.map_by_tiou):g}"

    def __str__(self) -> str:
        return f"{100 * self.average:.1f}% on {self.population or 'held-out videos'} (tIoU {self.thresholds})"


def measure(card: ModelCard, config: Mapping[str, Any] | None) -> Measure | None:
    """What the card records; None where nothing was measured. `config` says which videos were held out."""
    population, values = None, {}
    for name, value in card.metrics.items():
        videos, mark, tiou = name.partition("/mAP/")
        if mark:
            population, values[tiou] = _population(videos, card, config), value
    if "average" not in values:
        return None
    average = values.pop("average")
    by_tiou = {float(tiou): value for tiou, value in values.items()}
    return Measure(population, card.dataset_identity, dict(sorted(by_tiou.items())), average)


def why_incomparable(ours: Measure | None, theirs: Measure | None) -> str | None:
    """Why two mAP say nothing of each other; None where they were measured alike on the same videos."""
    if ours is None and theirs is None:
        return "neither records an mAP"
    if ours is None or theirs is None:
        return f"the {'second' if ours else 'first'} records no mAP"
    if ours.population is None or theirs.population is None:
        return "which videos were held out is not recorded"
    if ours.identity != theirs.identity:
        return f"they were measured on other data, {ours.identity} and {theirs.identity}"
    if (ours.population, [*ours.map_by_tiou]) != (theirs.population, [*theirs.map_by_tiou]):
        return f"one has {ours}, the other {theirs}"
    return None


def _population(videos: str, card: ModelCard, config: Mapping[str, Any] | None) -> str | None:
    if videos != "held_out":
        return f"{videos} of {card.dataset}"
    if config is None:
        return None
    share, subset, seed = (config["data"][name] for name in ("holdout_share", "subset", "holdout_seed"))
    return f"{share:.0%} of {subset} held out with seed {seed}, of {card.dataset}"
