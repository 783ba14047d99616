"""The mAP that a model's card records, and whether two of them were measured on the same videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aumn.runfolder.checkpoint import ModelCard

_HELD_OUT = "held_out"
_AVERAGE = "/mAP/average"


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
    named = next((name for name in card.metrics if name.endswith(_AVERAGE)), None)
    if named is None:
        return None
    videos = named.removesuffix(_AVERAGE)
    prefix = f"{videos}/mAP/"
    by_tiou = {
        float(name.removeprefix(prefix)): value
        for name, value in card.metrics.items()
        if name.startswith(prefix) and name != named
    }
    population = _population(videos, card, config)
    return Measure(population, card.dataset_identity, dict(sorted(by_tiou.items())), card.metrics[named])


def why_incomparable(ours: Measure | None, theirs: Measure | None) -> str | None:
    """Why two mAP say nothing of each other; None where they were measured alike on the same videos."""
    if ours is None or theirs is None:
        return (
            "neither records an mAP"
            if ours is theirs
            else f"the {'first' if ours is None else 'second'} records no mAP"
        )
    if ours.population is None or theirs.population is None:
        return "which videos were held out is not recorded"
    if ours.identity != theirs.identity:
        return f"they were measured on other data, {ours.identity} and {theirs.identity}"
    if (ours.population, [*ours.map_by_tiou]) != (theirs.population, [*theirs.map_by_tiou]):
        return f"one has {ours}, the other {theirs}"
    return None


def _population(videos: str, card: ModelCard, config: Mapping[str, Any] | None) -> str | None:
    if videos != _HELD_OUT:
        return f"{videos} of {card.dataset}"
    if config is None:
        return None
    data = config["data"]
    return (
        f"{data['holdout_share']:.0%} of {data['subset']} held out with seed {data['holdout_seed']}, of {card.dataset}"
    )
