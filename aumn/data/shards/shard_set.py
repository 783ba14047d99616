"""The shard set: tars of features that any WebDataset reader can stream, read here by byte offset in any order.

data_shards/README.md documents the format. Temporal ground truth lies in annotations.parquet, which nothing here opens.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from aumn.data.problems import about
from aumn.data.shards import layout
from aumn.data.shards.manifest import Manifest
from aumn.records import Clock, InputError, Video

OPEN_TARS = 256  # each open map holds a file descriptor, and 1,024 is a usual limit


class ShardSet:
    """A packed dataset: its videos, and each one's features as read-only views into memory-mapped tars.

    Safe to read from several threads. Features are verified against their checksum on every read.
    """

    def __init__(self, path: Path, description: layout.Description, rows: Manifest) -> None:
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
        self._tars = description.tars_in(path)
        self.videos: Sequence[Video] = rows
        """Every video of every subset, in the order that `indices` and `read` count in."""
        self._rows, self._description = rows, description
        self._map = lru_cache(maxsize=OPEN_TARS)(_map_tar)

    @classmethod
    def open(cls, path: Path) -> ShardSet:
        """Read the description and the manifest, and check that every tar is there in its full size."""
        description = layout.read_description(path)
        content = layout.read_table_bytes(path, layout.MANIFEST, description)
        with about(path / layout.MANIFEST):
            rows = Manifest(content, list(description.streams))
            rows.check(description)
        for shard, file in zip(description.shards, description.tars_in(path), strict=True):
            if not file.is_file():
                remedy = "index the tars where they are now" if description.tars else "pack the features again"
                raise InputError(f"{file} is missing: fetch this shard again, or {remedy}.")
            size = file.stat().st_size
            if size != shard.bytes:
                raise InputError(
                    f"{file} has {size:,} bytes where {layout.DESCRIPTION} says {shard.bytes:,}: "
                    "it is truncated or another's; fetch this shard again."
                )
        return cls(path, description, rows)

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

    def indices(self, subset: str) -> list[int]:
        """The positions of a subset's videos."""
        rows = self._rows
        if subset not in rows.subsets:
            counts = np.bincount(rows.subset_N, minlength=len(rows.subsets))
            known = ", ".join(f"{name} ({count} videos)" for name, count in zip(rows.subsets, counts, strict=True))
            raise InputError(f"{self.path} has no subset {subset!r}; it has {known}.")
        found: list[int] = np.flatnonzero(rows.subset_N == rows.subsets.index(subset)).tolist()
        return found

    def tar_of(self, index: int) -> Path:
        """The tar that holds a video."""
        return self._tars[int(self._rows.shard_N[index])]

    def checksum(self, index: int, stream: str) -> int:
        """That of a video's features in one stream: equal features have it, in any video."""
        return int(self._rows.xxh3_N[stream][index])

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Each stream's features of one video, T x D: read-only views that stay valid for as long as they are kept."""
        tar, snippets = self._map(self.tar_of(index)), int(self._rows.snippets_N[index])
        features = {}
        for stream in self.streams:
            first, size = self._rows.offset_N[stream].item(index), self._rows.bytes_N[stream].item(index)
            if tar.size() < first + size:  # asks the file; to touch a page of a map behind its end is a SIGBUS
                raise InputError(f"{self.tar_of(index)} became shorter while it was read: fetch this shard again.")
            member = memoryview(tar)[first : first + size]
            if xxhash.xxh3_64_intdigest(member) != self._rows.xxh3_N[stream].item(index):
                raise InputError(
                    f"{self.tar_of(index)}: what it holds of stream {stream} of video {self.ids([index])[0]!r} "
                    "does not match its checksum, so the file is damaged; fetch this shard again or pack anew."
                )
            features[stream] = self._array_of(member, stream, snippets)
        return features

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


def _map_tar(tar: Path) -> mmap.mmap:
    try:
        with tar.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise InputError(f"{tar} cannot be read ({error}): fetch this shard again.") from None
