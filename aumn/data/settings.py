"""Which videos a run sees, how many at a time, and which of their snippets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from aumn.config.section import Count, Positive, Section, Seed, ShareBelowOne, Size, setting
from aumn.records import place_of

PlaceOfSet = Annotated[Path | str, BeforeValidator(lambda given: place_of(given) if isinstance(given, str) else given)]


class CacheSettings(Section):
    """Where shards of a remote set are kept, on each machine, and how much of them."""

    folder: Path | None = None
    size_gb: Positive = 100.0


class DataSettings(Section):
    """Which videos a run sees, in which order, and which of their snippets."""

    shards: PlaceOfSet = setting(
        ...,
        "Shard set that `aumn pack` wrote: a folder, s3://bucket/set, https://..., or what fsspec reads. It may move, "
        "since its identity is checked.",
        same_model=True,
    )
    read: Literal["shard", "range"] = setting(
        "shard",
        "Of a remote set: shard fetches whole tars into the cache; range reads single videos, each time they are "
        "needed, where no cache holds the set.",
        same_model=True,
    )
    cache: CacheSettings = setting(
        {"folder": None, "size_gb": 100.0},
        "Where a machine keeps tars of remote sets, for all its ranks; what was read longest ago makes room. folder "
        "null: a folder of the user's own in TMPDIR or /tmp.",
        same_model=True,
    )
    order: Literal["random", "shards"] = setting(
        "random",
        "random: any video next to any. shards: whole tars are shuffled, then the videos within data.window_shards of "
        "them, so that a cache that holds two windows fetches every tar once an epoch.",
    )
    window_shards: Size = setting(4, "Tars among which videos are shuffled.", needs="data.order=shards")
    store_away_s: Positive = setting(
        300.0, "Seconds that a remote set's store may be away; then the run ends, with a checkpoint.", same_model=True
    )
    on_damage: Literal["stop", "skip"] = setting(
        "stop",
        "Videos whose features are not what was packed: stop, or skip: leave them out of their steps, on all ranks "
        "alike, count and name them.",
        may_change=True,
    )
    damage_limit: Count = setting(
        10, "More damaged videos than this end the run.", may_change=True, needs="data.on_damage=skip"
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
