"""Which videos a run sees, how many at a time, and which of their snippets."""

from __future__ import annotations

import csv
import hashlib
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from aumn.config.section import Count, Positive, Section, Seed, ShareBelowOne, Size, refusal, setting
from aumn.records import Place, place_of

TABLE = re.compile(r"(.+\.csv):([^#]+)(?:#([0-9a-f]+))?", re.IGNORECASE)  # with the checksum of its groups


def _places(given: Any) -> Any:
    places = _texts("shards", given)
    return [place_of(place) for place in places] if isinstance(places, list) else place_of(places)


def _texts(name: str, given: Any) -> Any:
    """One, or a list of several; a list of one is the one."""
    several = given if isinstance(given, list) else [given]
    if not several or not all(isinstance(one, str | Path) for one in several):
        raise refusal(f"data.{name}={given!r} must be one name, or a list with a name for each shard set")
    return several[0] if len(several) == 1 else several


def _names(given: Any) -> Any:
    """A list, or what a file has on its lines."""
    if not isinstance(given, str | Path):
        return given
    try:
        return [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise refusal(
            f"data.holdout_videos={str(given)!r} cannot be read ({why}): name a file with a video a line"
        ) from None


def groups_of(given: str) -> dict[str, str] | None:
    """Each video's group by the table that `data.holdout_groups` names, None where it is a pattern."""
    if not (named := TABLE.fullmatch(given)):
        return None
    table, column, _ = named.groups()
    try:
        with Path(table).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "it is no CSV in UTF-8"
        raise refusal(f"data.holdout_groups={given!r} cannot be read ({why}): name a table and its column") from None
    if not rows or not {"video", column} <= set(rows[0]):
        found = ", ".join(name for name in rows[0] if name) if rows else "no rows"
        raise refusal(f"data.holdout_groups={given!r}: the table has {found}; it needs the columns video and {column}")
    group_of: dict[str, str] = {}
    for row in rows:
        video, group = ((row[name] or "").strip() for name in ("video", column))
        if group and group_of.setdefault(video, group) != group:
            raise refusal(f"data.holdout_groups={given!r}: video {video} is of {group_of[video]} and of {group}")
    return group_of


def _groups(given: Any) -> Any:
    """As it was given; a table with a checksum of its groups, by which a run that goes on finds the same ones."""
    if not isinstance(given, str):
        return given
    if (group_of := groups_of(given)) is None:
        try:
            re.compile(given)
        except re.error as error:
            raise refusal(f"data.holdout_groups={given!r} is no regular expression: {error}") from None
        return given
    name, _, wanted = given.partition("#")
    found = hashlib.sha256(repr(sorted(group_of.items())).encode()).hexdigest()[:8]
    if wanted not in {"", found}:
        raise refusal(f"data.holdout_groups={given!r}: the table's groups are others now ({found}); put those back")
    return f"{name}#{found}"


class CacheSettings(Section):
    """Where shards of a remote set are kept, on each machine, and how much of them."""

    folder: Path | None = None
    size_gb: Positive = 100.0


class DataSettings(Section):
    """Which videos a run sees, in which order, and which of their snippets."""

    shards: Annotated[Path | str | list[Path | str], BeforeValidator(_places)] = setting(
        ...,
        "Shard set that `aumn pack` wrote: a folder, s3://bucket/set, https://..., or what fsspec reads; or a list of "
        "them, which are trained on together. They may move, since their identities are checked.",
        same_model=True,
    )
    weights: list[Positive] | None = setting(
        None,
        "How often videos of each of several sets are drawn: [1, 3] for a quarter and three quarters of an epoch, "
        "whatever their sizes. null: every video of every set comes once an epoch.",
    )
    class_names: dict[str, str] = setting(
        {}, "What labels of several sets are called together, where their names differ: {Long jump: LongJump}."
    )
    same_ids: Literal["refuse", "rename"] = setting(
        "refuse",
        "Videos of several sets that have one id: refuse, or rename: put the set's name before it (anet/v_x), in all "
        "sets but the first.",
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
    subset: Annotated[str | list[str], BeforeValidator(partial(_texts, "subset"))] = setting(
        "training",
        "Subset to train on, or a list of them; THUMOS14 trains on `validation`. Of several sets: one name, or a list "
        "of one each.",
    )
    holdout_share: ShareBelowOne = setting(
        0.0, "Share of the subset's videos held out of training, so that choices need no test video."
    )
    holdout_seed: Seed = setting(0, "Which videos are held out; independent of run.seed.", needs="data.holdout_share")
    holdout_groups: Annotated[str | None, BeforeValidator(_groups)] = setting(
        None,
        "Which videos are held out together: persons.csv:person, a table with a column `video` and one to go by; or "
        "a regular expression, of videos in whose names it finds the same, such as a person's clips by '^[^_]+' "
        "(where it has groups in brackets, these count). data.holdout_share is then that of the groups.",
        needs="data.holdout_share",
    )
    holdout_videos: Annotated[list[str], BeforeValidator(_names)] = setting(
        [], "In place of a share: the names of the videos to hold out, or a file with one a line."
    )
    snippets: Size | None = setting(
        750,
        "Snippets drawn a video (one at random from each of as many equal slices); null: all, padded. "
        "The paper does not say; usual are 750 for THUMOS14 and 50 to 150 for ActivityNet.",
    )

    @property
    def places(self) -> list[Place]:
        """Of all its sets."""
        return self.shards if isinstance(self.shards, list) else [self.shards]

    @property
    def subsets(self) -> list[str]:
        """The one of each set; of one set, all that are trained on."""
        return self.subset if isinstance(self.subset, list) else [self.subset] * len(self.places)

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        sets, problems = len(self.places), []
        if self.holdout_videos and self.holdout_share:
            problems.append(
                "data.holdout_videos names the videos to hold out: leave out data.holdout_share, or the names"
            )
        for name, given in (("subset", self.subsets), ("weights", self.weights)):
            if given is not None and len(given) != sets and (sets, name) != (1, "subset"):
                problems.append(f"data.{name} has {len(given)} for {sets} shard sets: give one for each")
        for name, default in (("weights", None), ("class_names", {}), ("same_ids", "refuse")):
            if sets == 1 and getattr(self, name) != default:
                problems.append(
                    f"data.{name} has no effect with one shard set: leave it out, or list more in data.shards"
                )
        if problems:
            raise refusal("\n".join(problems))
        return self


class BatchSettings(Section):
    """How many videos make a step; the result does not depend on how ranks and micro-batches share them."""

    global_videos: Size = setting(32, "Videos a step, over all ranks and micro-batches (paper: 32).")
    micro_videos: Size | None = setting(
        None, "Videos a rank's pass; null: its whole share in one pass.", may_change=True
    )
