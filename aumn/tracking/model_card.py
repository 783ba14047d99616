"""What a person reads of a model version: MODEL_CARD.md among its files, and the short form in MLflow's UI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aumn.config.section import Section
from aumn.runfolder.checkpoint import ModelCard
from aumn.tracking.measure import measure


def write_model_card(card: ModelCard, config: Mapping[str, Any] | None) -> str:
    """The whole card, Markdown."""
    streams = " and ".join(f"{stream} ({width} wide)" for stream, width in card.streams.items())
    return f"""# AUMN trained on {card.dataset}

Finds actions in untrimmed videos: when they start and end, and which they are. Trained with video-level labels alone,
as the Action Unit Memory Network (Luo et al., CVPR 2021).

{summarize(card, config)}
## Data

- Shard set `{card.dataset}`, identity `{card.dataset_identity}` (equal for the same videos, features and labels).
- Features: {streams}, a snippet every {card.stride_frames} frames. Other features than these give nonsense.
- {len(card.classes)} classes: {", ".join(card.classes)}.

## Use

```python
model = mlflow.pyfunc.load_model("models:/<name>/<version>")
model.predict({{{_arrays(card)}}}, params={{"fps": 25.0, "duration_s": 61.2}})
```

with float32 arrays, snippets x width; fps or duration_s may be left out.
It is the same as `aumn localize models:/<name>/<version> SHARDS --subset SUBSET --out DETECTIONS`.

## Settings

Localization, as measured: {_inline(card.localize)}. Network: {_inline(card.model)}. All settings of the
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


def _arrays(card: ModelCard) -> str:
    return ", ".join(f'"{stream}": {stream}_TD' for stream in card.streams)


def _inline(settings: Section) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.model_dump().items())
