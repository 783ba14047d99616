"""A run's folder as training leaves it, without the training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aumn.config.run_config import RunConfig
from aumn.runfolder.checkpoint import Checkpoint, ModelCard, save_checkpoint

TIOUS = ("0.1", "0.2")


def make_run(
    folder: Path, overrides: Mapping[str, Any], values: tuple[float, ...] | None, videos: str = "test"
) -> Path:
    """A run's folder as training leaves it, with this mAP at each threshold and on average."""
    settings: dict[str, dict[str, Any]] = {"data": {"shards": "x"}, "run": {"folder": str(folder), "steps": 10}}
    for name, value in overrides.items():
        section, _, field = name.partition(".")
        settings.setdefault(section, {})[field] = value
    config = RunConfig.model_validate(settings).model_dump(mode="json")
    names = [f"{videos}/mAP/{tiou}" for tiou in (*TIOUS, "average")]
    card = ModelCard(
        model=config["model"],
        localize=config["localize"],
        classes=("a",),
        streams={"rgb": 1, "flow": 1},
        stride_frames=16,
        dataset="x",
        dataset_identity="1f",
        metrics=dict(zip(names, values, strict=True)) if values else {},
        aumn_version="0",
        commit=None,
    )
    facts = {"tracking_run": None, "best": -1.0, "config": config, "optimizer": {}}
    save_checkpoint(folder, Checkpoint(10, {"w": torch.zeros(1)}, card, {"w": torch.zeros(1)}, facts), keep_last=1)
    return folder
