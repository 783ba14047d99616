"""Which videos a run sees, how many at a time, and which of their snippets."""

from __future__ import annotations

from pathlib import Path

from aumn.config.section import Section, Seed, ShareBelowOne, Size, setting


class DataSettings(Section):
    """Which videos a run sees, and which of their snippets."""

    shards: Path = setting(
        ..., "Shard set that `aumn pack` wrote. It may move, since its identity is checked.", same_model=True
    )
    subset: str = setting("training", "Subset to train on; THUMOS14 trains on `validation`.")
    holdout_share: ShareBelowOne = setting(
        0.0, "Share of the subset's videos held out of training, so that choices need no test video."
    )
    holdout_seed: Seed = setting(0, "Which videos are held out; independent of run.seed.", needs="data.holdout_share")
    snippets: Size | None = setting(
        750,
        "Snippets drawn a video (one at random from each of as many equal slices); null: all, padded. "
        "The paper does not say; usual are 750 for THUMOS14 and 50 to 150 for ActivityNet.",
    )


class BatchSettings(Section):
    """How many videos make a step; the result does not depend on how ranks and micro-batches share them."""

    global_videos: Size = setting(32, "Videos a step, over all ranks and micro-batches (paper: 32).")
    micro_videos: Size | None = setting(
        None, "Videos a rank's pass; null: its whole share in one pass.", may_change=True
    )
