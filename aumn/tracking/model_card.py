"""What a model's card says: its mAP and whether another's can be compared with it; and MODEL_CARD.md, for people."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aumn.config.section import Section
from aumn.runfolder.checkpoint import ModelCard


def write_model_card(card: ModelCard, config: Mapping[str, Any] | None) -> str:
    """The whole card, Markdown."""
    streams = ", ".join(f"{stream} ({width} wide)" for stream, width in card.streams.items())
    rules = _inline(card.localize, weights=card.localize.shares(card.networks))
    if card.chosen_rules:
        rules += f", {card.chosen_rules}"
    arrays = ", ".join(f'"{stream}": {stream}_TD' for stream in card.streams)
    return f"""# AUMN trained on {card.dataset}

Finds actions in untrimmed videos: when they start and end, and which they are. Trained with video-level labels alone,
as the Action Unit Memory Network (Luo et al., CVPR 2021).

{summarize(card, config)}
## Data

- Shard set `{card.dataset}`, identity `{card.dataset_identity}` (equal for the same videos, features and labels).
- Features: {streams}, a snippet {card.clock}. Other features than these give nonsense.
- {len(card.classes)} classes: {", ".join(card.classes)}.

## Use

```python
model = mlflow.pyfunc.load_model("models:/<name>/<version>")
model.predict({{{arrays}}}, params={{"fps": 25.0, "duration_s": 61.2}})
```

with float32 arrays, snippets x width; fps or duration_s may be left out.
It is the same as `aumn localize models:/<name>/<version> SHARDS --subset SUBSET --out DETECTIONS`.

## Settings

Localization, as measured: {rules}. Network: {_inline(card.model)}. All settings of the
run: `config.yaml`. Made by aumn {card.aumn_version}, commit {card.commit or "unknown"}.
"""


def summarize(card: ModelCard, config: Mapping[str, Any] | None) -> str:
    """The mAP by threshold, with the videos that it was measured on."""
    measured = measure(card, config)
    if measured is None:
        return "Not measured: no mAP was followed in training.\n"
    names = [*(f"{tiou:g}" for tiou in measured.map_by_tiou), "average"]
    values = [f"{100 * value:.1f}" for value in (*measured.map_by_tiou.values(), measured.average)]
    rows = (["tIoU", *names], ["---"] * (len(names) + 1), ["mAP, %", *values])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Measured on {measured.population or 'held-out videos'}:\n\n{table}\n"


def _inline(settings: Section, **resolved: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in {**settings.model_dump(), **resolved}.items())


@dataclass(frozen=True)
class Measure:
    """Fractions, by threshold and on average; the same population is the same videos of the same data."""

    population: str | None  # None: held-out videos, and which those were is not recorded
    identity: str
    map_by_tiou: Mapping[float, float]
    average: float

    def __str__(self) -> str:
        tious = f"{min(self.map_by_tiou):g} to {max(self.map_by_tiou):g}"
        return f"{100 * self.average:.1f}% on {self.population or 'held-out videos'} (tIoU {tious})"


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
    data = config["data"]
    if named := sorted(data.get("holdout_videos", [])):
        digest = hashlib.sha256("\n".join(named).encode()).hexdigest()[:8]
        return f"{len(named)} of {data['subset']} held out by name (checksum {digest}), of {card.dataset}"
    groups = data.get("holdout_groups")
    subset = f"the groups {groups} of {data['subset']}" if groups else data["subset"]
    return f"{data['holdout_share']:.0%} of {subset} held out with seed {data['holdout_seed']}, of {card.dataset}"
