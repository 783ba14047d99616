"""The shard set: tars of features that any WebDataset reader can stream, read here by byte offset in any order.

data_shards/README.md documents the format. Temporal ground truth lies in annotations.parquet, which nothing here opens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import xxhash

from aumn.addresses import public
from aumn.data.problems import DamagedVideoError, about
from aumn.data.shards import layout
from aumn.data.shards.cache import ShardCache
from aumn.data.shards.manifest import Manifest
from aumn.data.shards.stores import AWAY_S, Folder, Store, open_store
from aumn.data.shards.tars import MappedTars, RemoteTars, Tars
from aumn.records import Clock, InputError, Place, Video


@dataclass(frozen=True, slots=True)
class Access:
    """How a remote set is read: whole shards into a cache on this machine, or what is asked for alone."""

    whole: bool = False
    cache_folder: Path | None = None  # None: a user's own in the machine's temporary folder
    cache_bytes: int = 100 * 10**9
    away_s: float = AWAY_S  # how long the store may be away


class ShardSet:
    """A packed dataset: its videos, and the features of each as read-only arrays; of local tars, views into their maps.

    Safe to read from several threads. Features are verified against their checksum on every read.
    """

    prefixes: Sequence[str] = ("",)
    """What stands before the ids of each of `parts`; see `union`."""
    class_names: Mapping[str, str] = {}
    """What labels of `parts` are called here, where it is otherwise."""

    def __init__(
        self,
        store: Store,
        description: layout.Description,
        rows: Manifest,
        access: Access = Access(),
        tars: Store | None = None,
    ) -> None:
        self._describe(store.place, description, rows)
        self.cache: ShardCache | None = None  # of a remote set
        tars = tars or store
        self._place_of_tars = tars.place
        if isinstance(tars, Folder):
            self._tars: Tars = MappedTars(tars.place, description.shards)
        else:
            self.cache = ShardCache(access.cache_folder, access.cache_bytes)
            self._tars = RemoteTars(
                tars,
                description.shards,
                self.cache,
                whole=access.whole,
                name=lru_cache(maxsize=None)(self._cached_name),
                check=self._find_damage,
            )

    def _describe(self, path: Place, description: layout.Description, rows: Manifest) -> None:
        self.path = path
        self.name = description.name
        self.identity = description.identity
        self.classes = description.classes
        self.streams = description.streams
        self.dtype = np.dtype(description.dtype)
        self.stride_frames = description.stride_frames
        self.window_frames = description.window_frames
        self.clock = Clock(self.stride_frames, self.window_frames or self.stride_frames)
        self.left_out = description.left_out
        self.extractor = description.extractor
        self.videos: Sequence[Video] = rows
        """Every video of every subset, in the order that `indices` and `read` count in."""
        self._rows, self._description = rows, description

    @classmethod
    def open(cls, path: Place, access: Access = Access(), identity: str | None = None) -> ShardSet:
        """Read the description and the manifest; of a set in a folder, check that every tar is there in its full size.

        A remote set's tars are checked when they are read. The newest version of the set is opened, or the one of this
        identity if the set holds it.
        """
        store = open_store(path, access.away_s)
        description = layout.read_description(store, identity)
        manifest = description.table(layout.MANIFEST)
        content = layout.read_table_bytes(store, manifest, description)
        with about(layout.file_of(store, manifest)):
            rows = Manifest(content, list(description.streams))
            rows.check(description)
        tars = layout.store_of_tars(store, description, access.away_s)
        for shard in description.shards if isinstance(tars, Folder) else ():
            size, file = tars.size(shard.file), layout.file_of(tars, shard.file)
            if size is None:
                remedy = "index the tars where they are now" if description.tars else "pack the features again"
                raise InputError(f"{file} is missing: fetch this shard again, or {remedy}.")
            if size != shard.bytes:
                raise InputError(
                    f"{file} has {size:,} bytes where {layout.DESCRIPTION} says "
                    f"{shard.bytes:,}: it is truncated or another's; fetch this shard again."
                )
        return cls(store, description, rows, access, tars)

    def __len__(self) -> int:
        return len(self.videos)

    def check_identity(self) -> None:
        """InputError where the set is not what was packed under its identity, which models and runs carry."""
        found = self._rows.identity(self._description)
        if found != self.identity:
            raise InputError(
                f"{self.path} has the identity {found}, where its {layout.DESCRIPTION} says {self.identity}: it was "
                "edited after it was packed; fetch it or pack it again."
            )

    def ids(self, indices: Sequence[int]) -> list[str]:
        """The names of these videos."""
        names: list[str] = self._rows.ids.take(np.asarray(indices, dtype=np.int64)).to_pylist()
        return names

    def unlabelled(self, indices: Sequence[int]) -> list[int]:
        """Those of these videos that have no label."""
        chosen = np.asarray(indices, dtype=np.int64)
        bounds = self._rows.label_bounds
        found: list[int] = chosen[bounds[chosen] == bounds[chosen + 1]].tolist()
        return found

    def longest_first(self, indices: Sequence[int]) -> list[int]:
        """These videos by falling number of snippets, and by name where that is the same."""
        chosen = np.asarray(indices, dtype=np.int64)
        order = np.lexsort((np.array(self.ids(indices)), -self._rows.snippets_N[chosen]))
        found: list[int] = chosen[order].tolist()
        return found

    @property
    def parts(self) -> Sequence[ShardSet]:
        """The sets whose union this is (see `union`), or itself alone."""
        return (self,)

    @property
    def subsets(self) -> list[str]:
        """Those that have videos."""
        return self._rows.subsets

    def relabelled(self, classes: Sequence[str]) -> ShardSet:
        """The same set with its labels numbered by other classes, which have all of its own among them."""
        found = copy(self)
        found.classes = tuple(classes)
        found._rows = self._rows.relabelled([classes.index(name) for name in self.classes], len(classes))
        found.videos = found._rows
        return found

    def indices(self, subset: str, *more: str) -> list[int]:
        """The positions of the videos of subsets; of a union by one name for each of `parts`, or one that any has."""
        if more:
            return sorted({index for name in (subset, *more) for index in self.indices(name)})
        rows = self._rows
        if subset not in rows.subsets:
            counts = np.bincount(rows.subset_N, minlength=len(rows.subsets))
            known = ", ".join(f"{name} ({count} videos)" for name, count in zip(rows.subsets, counts, strict=True))
            raise InputError(f"{self.path} has no subset {subset!r}; it has {known}.")
        found: list[int] = np.flatnonzero(rows.subset_N == rows.subsets.index(subset)).tolist()
        return found

    @property
    def is_remote(self) -> bool:
        """Whether its tars may be away for a while."""
        return self.cache is not None

    @property
    def bytes(self) -> int:
        """Of all its tars."""
        return sum(shard.bytes for shard in self._description.shards)

    def tar_of(self, index: int) -> Place:
        """The tar that holds a video."""
        file = self._description.shards[int(self._rows.shard_N[index])].file
        place = self._place_of_tars
        return place / file if isinstance(place, Path) else f"{public(place)}/{file}"

    def shards_of(self, indices: Sequence[int]) -> np.ndarray:
        """The number of each video's tar."""
        numbers: np.ndarray = self._rows.shard_N[np.asarray(indices, dtype=np.int64)]
        return numbers

    def sets_of(self, indices: Sequence[int]) -> np.ndarray:
        """Of which of `parts` each video is."""
        return np.zeros(len(indices), np.int64)

    def checksum(self, index: int, stream: str) -> int:
        """That of a video's features in one stream: equal features have it, in any video."""
        return int(self._rows.xxh3_N[stream][index])

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Each stream's features of one video, T x D: read-only views that stay valid for as long as they are kept."""
        rows, shard = self._rows, int(self._rows.shard_N[index])
        wanted = [(rows.offset_N[stream].item(index), rows.bytes_N[stream].item(index)) for stream in self.streams]
        video = self._rows.ids[index].as_py()
        try:
            members = dict(zip(self.streams, self._tars.spans(shard, wanted), strict=True))
            if (damaged := self._damaged(index, members)) and self._tars.forget(shard):
                members = dict(zip(self.streams, self._tars.spans(shard, wanted), strict=True))
                damaged = self._damaged(index, members)
        except DamagedVideoError as error:
            raise DamagedVideoError(video, str(error)) from None
        if damaged:
            raise DamagedVideoError(
                video,
                f"{self.tar_of(index)}: {damaged} does not match its checksum, so the file is damaged; fetch this "
                "shard again or pack anew.",
            )
        snippets = int(rows.snippets_N[index])
        return {stream: self._array_of(member, stream, snippets) for stream, member in members.items()}

    def _array_of(self, member: memoryview, stream: str, snippets: int) -> np.ndarray:
        shape = snippets, self.streams[stream]
        if suffix := self._description.decoded.get(stream):
            from aumn.data.sources.containers import decode

            values = decode(f"{stream}.{suffix}", member)
            values = values.reshape(shape[::-1]).T if self._description.transposed else values.reshape(shape)
            features_TD = values.astype(self.dtype, order="C")
            features_TD.flags.writeable = False
            return features_TD
        # The array is the tail of the .npy file: shape and dtype are known, so its header needs no parsing.
        array_bytes = math.prod(shape) * self.dtype.itemsize
        return np.frombuffer(member[len(member) - array_bytes :], self.dtype).reshape(shape)

    def ahead(self, indices: Iterable[int], share: float = 1.0) -> AbstractContextManager[None]:
        """While the block runs, a remote set's tars are fetched in the order in which these videos will be read.

        `share` is what they may take of the cache. A union goes through `indices` once for each remote set.
        """
        return self._tars.ahead((int(self._rows.shard_N[index]) for index in indices), share)

    def interrupted(self) -> AbstractContextManager[None]:
        """While the block runs, whoever waits for a remote set is sent away with an error."""
        return self._tars.interrupted()

    def _damaged(self, index: int, members: dict[str, memoryview]) -> str:
        """The first of a video's members that is not what was packed."""
        for stream, member in members.items():
            if xxhash.xxh3_64_intdigest(member) != self._rows.xxh3_N[stream].item(index):
                return f"what it holds of stream {stream} of video {self._rows.ids[index].as_py()!r}"
        return ""

    def _find_damage(self, shard: int, content: memoryview) -> str:
        """The first member of a whole tar that is not what was packed."""
        for index in self._rows_of(shard).tolist():
            members = {}
            for stream in self.streams:
                first = self._rows.offset_N[stream].item(index)
                members[stream] = content[first : first + self._rows.bytes_N[stream].item(index)]
            if damaged := self._damaged(index, members):
                return damaged
        return ""

    def _cached_name(self, shard: int) -> str:
        """A tar's name in a cache: a fingerprint of what the manifest says of its members, and its own."""
        rows, digest = self._rows_of(shard), xxhash.xxh3_64()
        for stream in self.streams:
            for column, kind in ((self._rows.offset_N, "<i8"), (self._rows.bytes_N, "<i8"), (self._rows.xxh3_N, "<u8")):
                digest.update(np.ascontiguousarray(column[stream][rows].astype(kind)).tobytes())
        return f"{digest.hexdigest()}-{Path(self._description.shards[shard].file).name}"

    def _rows_of(self, shard: int) -> np.ndarray:
        order_N, bounds = self._by_shard
        rows: np.ndarray = order_N[bounds[shard] : bounds[shard + 1]]
        return rows

    @cached_property
    def _by_shard(self) -> tuple[np.ndarray, np.ndarray]:
        """Videos by their tars, and where in that order each tar's begin."""
        order_N = np.argsort(self._rows.shard_N, kind="stable")
        return order_N, np.searchsorted(self._rows.shard_N[order_N], np.arange(len(self._description.shards) + 1))
