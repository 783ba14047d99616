"""The run itself, and the mAP that it follows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aumn.config.section import Count, Section, Seed, setting

HELD_OUT = "held_out"
"""The videos to evaluate on that are held out of training."""


class RunSettings(Section):
    """The run itself."""

    folder: Path = setting(..., "Where checkpoints and the final model go.", same_model=True)
    steps: Count = setting(
        ..., "Optimizer steps. A resumed run may change them where nothing else is a share of them.", may_change=True
    )
    seed: Seed = setting(0, "Of initial weights, order of videos, snippets and dropout.")
    engine: Literal["single", "ddp", "deepspeed"] = setting(
        "ddp",
        "`ddp` and `deepspeed` join whatever ranks were launched, also one; see docs/engines.md.",
        may_change=True,
    )
    device: Literal["cpu", "cuda"] = setting("cpu", "cuda is untested for want of a GPU.")
    log_every: Count = setting(10, "Steps between lines of metrics.", same_model=True)
    checkpoint_every: Count = setting(500, "Steps between checkpoints; the last step always has one.", same_model=True)
    keep_checkpoints: Count = setting(2, "How many of the newest checkpoints are kept.", same_model=True)
    step_timeout_s: Count | None = setting(
        None,
        "After how many seconds a rank that waits for another one in a step ends; null: learnt, ten times the slowest "
        "step so far, 30 at least, and data.store_away_s beyond where a store may be away.",
        same_model=True,
    )
    start_timeout_s: Count = setting(
        600,
        "The same outside of steps, where a rank may work alone: while ranks start (after 30 they say whom they wait "
        "for) and load, in an evaluation's longest videos, at a checkpoint, in publishing, and in the first steps.",
        same_model=True,
    )


class EvaluationSettings(Section):
    """The mAP followed while training; never used to choose a checkpoint unless it is of held-out training videos."""

    videos: str | None = setting(
        None,
        "`held_out`, or the name of a subset, or null: the run then reports no mAP, and the other settings here wait.",
    )
    every: Count = setting(100, "Steps between evaluations; the last step always has one.")
    protocol: Literal["thumos14", "activitynet"] = setting("thumos14", "tIoU 0.1:0.7:0.1 or 0.5:0.95:0.05.")
