"""A shard set that videos are added to: what it tells of what is added, which must be alike, and how it grows.

The old version stays whole: its tars and tables are left as they are, and its description under its identity, by which
a run that trains on it goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.packing.options import PackOptions
from aumn.data.packing.shard_writer import PlannedVideo
from aumn.data.shards.layout import DESCRIPTION, Description, kept_as, read_description, sample_key
from aumn.data.shards.shard_set import ShardSet
from aumn.data.shards.stores import open_store
from aumn.data.sources.releases import JOINT
from aumn.data.truth.annotated import AnnotatedVideo
from aumn.data.truth.annotations import Annotations, read_annotations
from aumn.files import sync, whole_file
from aumn.records import Clock, InputError, Place

SHOWN = 3


@dataclass(frozen=True)
class Base:
    """The set as it is before it grows."""

    path: Place
    description: Description
    shards: ShardSet
    truth: Annotations

    @classmethod
    def open(cls, path: Place) -> Base:
        """Open its newest version."""
        description = read_description(open_store(path))
        if description.tars is not None:
            raise InputError(
                f"{path} was made by `aumn index` of tars in {description.tars}, beside which nothing is put: pack the "
                "new videos into a set of their own, and train on both (data.shards: [A, B])."
            )
        identity = description.identity
        base = cls(path, description, ShardSet.open(path, identity=identity), read_annotations(path, identity=identity))
        if base.rows.keys() != base.truth.videos.keys():
            raise InputError(f"{path}: the annotations are of other videos than the manifest: fetch the set again.")
        return base

    @cached_property
    def rows(self) -> dict[str, int]:
        """Where each video is among the set's."""
        return {video.id: row for row, video in enumerate(self.shards.videos)}

    def complete(self, options: PackOptions) -> PackOptions:
        """The options with what the set tells, where the user does not."""
        ours = self.description
        told: dict[str, Any] = {"name": ours.name, "dtype": ours.dtype, "window_frames": ours.window_frames}
        told |= {"on_bad": self.truth.on_bad, "rescaled": self._is_rescaled() or None}
        if options.layout in {JOINT, "wtalc"} or options.features.suffix == ".npy":
            told["joint"] = ",".join(f"{name}={width}" for name, width in ours.streams.items())
        else:
            told["streams"] = ",".join(ours.streams)
        if options.streams or options.joint:
            told |= {"streams": options.streams, "joint": options.joint}
        if self.truth.on_bad not in {"stop", options.on_bad or self.truth.on_bad}:
            raise InputError(
                f"--on-bad {options.on_bad} contradicts {self.path}, which was packed with --on-bad "
                f"{self.truth.on_bad}: leave it out."
            )
        return replace(options, **{name: value for name, value in told.items() if getattr(options, name) is None})

    def fps(self) -> float | None:
        """The frame rate of all its features, where they have one that the ground truth did not tell."""
        rates = {video.fps for video in self.shards.videos}
        return rates.pop() if len(rates) == 1 and {video.fps for video in self.truth.videos.values()} != rates else None

    def _is_rescaled(self) -> bool:
        """Whether it was packed with --rescaled: as many snippets in all videos, which last as long as the video."""
        videos, clock = self.shards.videos, self.shards.clock
        is_alike = len({video.snippets for video in videos}) == 1 < len({video.fps for video in videos})
        return is_alike and all(video.fps == clock.lasts_s(video.snippets, 1) / video.duration_s for video in videos)

    def accept(self, planned: Description) -> Description:
        """The set's description with the classes of what is added; InputError where that is of another kind."""
        ours, both = self.description, (self.description, planned)
        facts = {name: [getattr(one, name) for one in both] for name in ("name", "streams", "dtype")}
        facts["snippets"] = [str(Clock(one.stride_frames, one.window_frames or one.stride_frames)) for one in both]
        if ours.extractor and not planned.extractor:
            facts["extractor"] = [ours.extractor.get("name"), "none that is told"]
        elif ours.extractor and planned.extractor:
            names = sorted(ours.extractor.keys() | planned.extractor)
            facts |= {f"extractor's {name}": [(one.extractor or {}).get(name) for one in both] for name in names}
        if differing := [
            f"{name} {values[0]}, not {values[1]}" for name, values in facts.items() if values[0] != values[1]
        ]:
            raise InputError(
                f"{self.path} holds other features than those to add ({'; '.join(differing)}): what is added must be "
                "like what is there; leave options that say otherwise out, extract alike, or pack another set."
            )
        return replace(ours, classes=planned.classes)

    def hold(self, videos: Sequence[PlannedVideo], truth: Annotations) -> np.ndarray:
        """Which of the videos it holds already, alike as far as headers tell; InputError where one is otherwise."""
        changed = {
            video.id: difference
            for video in truth.videos.values()
            if video.id in self.rows and (difference := _differ(_told(self.truth.videos[video.id]), _told(video)))
        }
        is_held = []
        for video in videos:
            is_held.append(video.features.video in self.rows)
            if not is_held[-1]:
                continue
            there = self.shards.videos[self.rows[video.features.video]]
            ours = {"snippets": there.snippets, "duration": there.duration_s, "fps": there.fps}
            theirs = {"snippets": video.features.snippets, "duration": video.duration_s, "fps": video.fps}
            if difference := _differ(ours, theirs):
                changed.setdefault(there.id, difference)
        self._refuse(changed)
        return np.array(is_held, bool)

    def refuse_others(self, checksums: Mapping[str, Mapping[str, int]]) -> None:
        """InputError unless videos that it holds have, in every stream, the features that it holds; by checksum."""
        ours = self.shards.checksum
        self._refuse(
            {
                video: "features"
                for video, sums in sorted(checksums.items())
                if any(ours(self.rows[video], stream) != number for stream, number in sums.items())
            }
        )

    def _refuse(self, changed: Mapping[str, str]) -> None:
        if changed:
            some = ", ".join(f"{video!r} (other {what})" for video, what in [*changed.items()][:SHOWN])
            raise InputError(
                f"{self.path} holds {len(changed):,} of these videos otherwise: {some}"
                f"{', ...' * (len(changed) > SHOWN)}: give them other ids, or pack all anew into another set."
            )

    def next_number(self, subset: str) -> int:
        """Of the first tar that is added to a subset."""
        name = re.compile(re.escape(sample_key(subset)) + r"-(\d+)\.tar")
        found = (name.fullmatch(shard.file) for shard in self.description.shards)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def refuse_growth(self) -> None:
        """InputError where another run has added to the set since it was opened."""
        if read_description(open_store(self.path)).identity != self.description.identity:
            raise InputError(f"Another run has just added to {self.path}: run the same command again.")

    def grow(self, added: Path) -> None:
        """Let the set be what the files of a folder make of it; killed at any moment, this leaves the old set whole."""
        assert isinstance(self.path, Path)
        for file in added.iterdir():
            if file.name != DESCRIPTION:
                file.rename(self.path / file.name)
        with whole_file(self.path / kept_as(self.description.identity)) as kept:
            kept.write_bytes((self.path / DESCRIPTION).read_bytes())
        (added / DESCRIPTION).rename(self.path / DESCRIPTION)
        sync(self.path)


def _told(video: AnnotatedVideo) -> dict[str, Any]:
    times = sorted(video.annotations)
    return {
        "subset": video.subset, "labels": video.labels(), "times": times, "duration": video.duration_s, "fps": video.fps
    }  # fmt: skip


def _differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    return next((name for name in ours if ours[name] != theirs[name]), None)
