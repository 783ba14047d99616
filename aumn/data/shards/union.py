"""Several shard sets read as one: their videos one behind the other, their classes united by name.

A set may call a class otherwise (`class_names`), and videos of two sets may have one id (`same_ids`). Features stay
where they are: each is read by its own set, from its own tars, through the machine's one cache.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from aumn.data.problems import DamagedVideoError
from aumn.data.settings import DataSettings
from aumn.data.shards.layout import Description
from aumn.data.shards.manifest import Manifest
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.records import Clock, InputError, Place


def open_sets(data: DataSettings, access: Access | None = None, identities: Sequence[str | None] = ()) -> ShardSet:
    """The set that settings name, or the union of those that they name.

    Of each the newest version is opened, or that of its identity, where there is one for each of them.
    """
    wanted = identities if len(identities) == len(data.places) else [None] * len(data.places)
    parts = [
        ShardSet.open(place, access or Access(), identity) for place, identity in zip(data.places, wanted, strict=True)
    ]
    return parts[0] if len(parts) == 1 else Union(parts, data.class_names, rename=data.same_ids == "rename")


class Union(ShardSet):
    """Several shard sets as one, which must have the same streams and snippets as long and as far apart."""

    def __init__(self, parts: Sequence[ShardSet], class_names: Mapping[str, str], *, rename: bool) -> None:
        for part in parts[1:]:
            check_alike(part, parts[0], f"{parts[0].path} has")
        self._parts = parts
        self._firsts = np.cumsum([0, *map(len, parts)])
        self.prefixes = ["", *(f"{part.name}/" if rename else "" for part in parts[1:])]
        self.class_names = class_names
        known = dict.fromkeys(label for part in parts for label in part.classes)
        for label in class_names.keys() - known.keys():
            near = difflib.get_close_matches(label, known, n=1)
            raise InputError(
                f"data.class_names renames {label!r}, which is a class of none of the sets"
                f"{f'; {near[0]!r} is' if near else ''}: correct or remove it."
            )
        classes = tuple(dict.fromkeys(class_names.get(label, label) for label in known))
        numbers = {name: number for number, name in enumerate(classes)}
        rows = Manifest.joined(
            [
                part._rows.relabelled([numbers[class_names.get(label, label)] for label in part.classes], len(classes))
                for part in parts
            ],
            [len(part._description.shards) for part in parts],
            self._unite_ids(rename=rename),
        )
        name, identity = name_and_identity(parts, class_names, rename=rename)
        extractor = next((part.extractor for part in parts if part.extractor), None)
        described = replace(
            parts[0]._description, name=name, identity=identity, classes=classes, extractor=extractor, left_out=()
        )
        self._describe(" and ".join(str(part.path) for part in parts), described, rows)

    @property
    def parts(self) -> Sequence[ShardSet]:
        """Each as it is alone."""
        return self._parts

    @property
    def is_remote(self) -> bool:
        """Whether any of them is."""
        return any(part.is_remote for part in self._parts)

    @property
    def bytes(self) -> int:
        """Of all their tars."""
        return sum(part.bytes for part in self._parts)

    def indices(self, subset: str, *more: str) -> list[int]:
        """See `ShardSet`; by a name for each set, each must have it."""
        if not more:
            return super().indices(subset)
        named = zip(self._parts, (subset, *more), self._firsts.tolist(), strict=False)
        return [first + index for part, name, first in named for index in part.indices(name)]

    def sets_of(self, indices: Sequence[int]) -> np.ndarray:
        """See `ShardSet`."""
        found: np.ndarray = np.searchsorted(self._firsts, np.asarray(indices), "right") - 1
        return found

    def tar_of(self, index: int) -> Place:
        """See `ShardSet`."""
        part, row = self._place(index)
        return part.tar_of(row)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """See `ShardSet`."""
        part, row = self._place(index)
        try:
            return part.read(row)
        except DamagedVideoError as error:
            raise DamagedVideoError(self.ids([index])[0], str(error)) from None

    @contextmanager
    def ahead(self, indices: Iterable[int], share: float = 1.0) -> Generator[None]:
        """See `ShardSet`; each remote set has its share of the cache by its size."""
        remote_bytes = sum(part.bytes for part in self._parts if part.is_remote)
        with ExitStack() as stack:
            for number, part in enumerate(self._parts):
                if part.is_remote:
                    stack.enter_context(
                        part.ahead(self._rows_of_part(number, indices), share * part.bytes / remote_bytes)
                    )
            yield

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """See `ShardSet`."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.interrupted())
            yield

    def _place(self, index: int) -> tuple[ShardSet, int]:
        (number,) = self.sets_of([index]).tolist()
        return self._parts[number], index - int(self._firsts[number])

    def _rows_of_part(self, number: int, indices: Iterable[int]) -> Iterator[int]:
        first, last = self._firsts[number : number + 2].tolist()
        return (index - first for index in indices if first <= index < last)

    def _unite_ids(self, *, rename: bool) -> pa.StringArray:
        named = zip(self._parts, self.prefixes, strict=True)
        ids = pa.concat_arrays([pc.binary_join_element_wise(prefix, part._rows.ids, "") for part, prefix in named])
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
        if not twice:
            return ids
        where, last = " and ".join(str(part.path) for part in self._parts), self._parts[-1].name
        some = f"{len(twice):,} ids of videos ({', '.join(map(repr, twice[:3]))}{', ...' * (len(twice) > 3)})"
        if rename:
            raise InputError(
                f"{some} are in several of {where} even with the sets' names before them: give the sets names of "
                "their own (aumn pack --name), or leave one out."
            )
        raise InputError(
            f"{some} are in several of {where}: if they are different videos, set data.same_ids=rename, which puts a "
            f"set's name before the ids of all sets but the first ({last}/{twice[0]}); if not, pack them in one alone."
        )


def name_and_identity(
    parts: Sequence[ShardSet | Description], class_names: Mapping[str, str], *, rename: bool
) -> tuple[str, str]:
    """Those of one set, or of the union of several: a hash of their identities and of how their names are changed."""
    if len(parts) == 1:
        return parts[0].name, parts[0].identity
    names = [part.name for part in parts]
    facts = [[part.identity for part in parts], sorted(class_names.items()), names[1:] if rename else None]
    return "+".join(names), xxhash.xxh3_64_hexdigest(json.dumps(facts).encode())


class Features(Protocol):
    """What is known of features: of a shard set's, or of those that a model was trained on."""

    @property
    def streams(self) -> dict[str, int]:
        """Their widths."""

    @property
    def extractor(self) -> dict[str, Any] | None:
        """What made them, where it is told."""

    @property
    def clock(self) -> Clock:
        """When snippets are."""


def check_alike(shards: ShardSet, theirs: Features, whose: str) -> None:
    """InputError unless a set's features are like others, of which `whose` says in a sentence whose they are."""
    if shards.streams != theirs.streams:
        raise InputError(
            f"{shards.path} has features {shards.streams} wide, {whose} {theirs.streams}: use features of the same "
            "extractor."
        )
    ours, others = shards.extractor or {}, theirs.extractor or {}
    if differing := [name for name in ours.keys() & others if ours[name] != others[name]]:
        facts = "; ".join(f"{name} {ours[name]} and {others[name]}" for name in sorted(differing))
        raise InputError(
            f"The features of {shards.path} and those that {whose} were extracted otherwise ({facts}): extract with "
            "the same extractor and weights."
        )
    if shards.clock != theirs.clock:
        raise InputError(
            f"{shards.path} has a snippet {shards.clock}, {whose} one {theirs.clock}: extract the features again like "
            "that."
        )
