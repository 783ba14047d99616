"""A shard set's manifest: one row a video, held as columns of equal length N, and the identity of what they describe.

Each video's features lie in one tar; the manifest says which, and where each stream's member starts in it. Every rank
holds all of it, so columns stay as Arrow read them, and a video is an object only while somebody looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from aumn.data.shards.layout import Description, open_table
from aumn.records import InputError, Video

MEMBER_PARTS = ("offset", "bytes", "xxh3")
CHUNK_VIDEOS = 4096  # become objects at once, where all are looked at in turn


class Manifest(Sequence[Video]):
    """All rows as videos, made anew whenever they are looked at, and the columns that they are made of.

    Columns are numpy arrays on Arrow's own memory, read a thousand times faster than pyarrow's scalars; they are read
    one by one, so that only one at a time is held twice. Labels are flat: video i has
    `labels[label_bounds[i] : label_bounds[i + 1]]`.
    """

    def __init__(self, content: bytes, streams: Sequence[str]) -> None:
        file = open_table(content, schema(streams))
        column = {name: file.read([name])[name].combine_chunks() for name in file.schema_arrow.names}
        if any(values.null_count for values in (*column.values(), column["labels"].values)):
            raise InputError("has empty cells: fetch the shard set again.")
        subset = column["subset"].dictionary_encode()
        self.ids: pa.StringArray = column["id"]
        self.subsets: list[str] = subset.dictionary.to_pylist()  # the distinct ones; `subset_N` indexes them
        self.subset_N: np.ndarray = _numpy(subset.indices)
        self.shard_N: np.ndarray = _numpy(column["shard"])
        self.snippets_N: np.ndarray = _numpy(column["snippets"])
        self.label_bounds: np.ndarray = _numpy(column["labels"].offsets)
        self.labels: np.ndarray = _numpy(column["labels"].values)
        self.duration_s_N: np.ndarray = _numpy(column["duration_s"])
        self.fps_N: np.ndarray = _numpy(column["fps"])
        # Where each stream's tar members are: byte offset of the .npy file in its tar, its size, and its xxh3_64.
        self.offset_N, self.bytes_N, self.xxh3_N = (
            {stream: _numpy(column[f"{stream}_{part}"]) for stream in streams} for part in MEMBER_PARTS
        )

    def names(self, indices: Sequence[int]) -> list[str]:
        """The videos' ids."""
        place = pa.py_buffer(np.ascontiguousarray(indices, dtype=np.int64))
        names: list[str] = self.ids.take(pa.Array.from_buffers(pa.int64(), len(indices), [None, place])).to_pylist()
        return names

    def check(self, description: Description) -> None:
        """Hold the rows against what dataset.json says; InputError, without a subject, for the first that cannot be."""
        shards, itemsize = description.shards, np.dtype(description.dtype).itemsize
        in_range_L = (self.labels >= 0) & (self.labels < len(description.classes))
        bad_labels_N = np.searchsorted(self.label_bounds, np.flatnonzero(~in_range_L), "right") - 1
        fits = {
            "shard": (self.shard_N >= 0) & (self.shard_N < len(shards)),
            "snippets": self.snippets_N > 0,
            "duration_s": (self.duration_s_N > 0) & (self.duration_s_N < np.inf),
            "fps": (self.fps_N > 0) & (self.fps_N < np.inf),
            "labels": ~np.isin(np.arange(len(self)), bad_labels_N),
        }
        tar_bytes_N = np.array([shard.bytes for shard in shards] + [0])[np.where(fits["shard"], self.shard_N, -1)]
        for stream, width in description.streams.items():
            offset_N, bytes_N = self.offset_N[stream], self.bytes_N[stream]
            array_bytes = 0 if stream in description.decoded else width * itemsize  # a snippet has at least
            fits[f"{stream}_bytes"] = bytes_N >= self.snippets_N.astype(np.int64) * array_bytes
            fits[f"{stream}_offset"] = (offset_N >= 0) & (offset_N <= tar_bytes_N - bytes_N)
        for name, fits_N in fits.items():
            if not fits_N.all():
                video = self.ids[int(np.argmin(fits_N))].as_py()
                raise InputError(
                    f"has a {name} of video {video!r} that cannot be in the set that dataset.json describes, so one of "
                    "the two was edited or damaged: fetch the shard set again."
                )

    def identity(self, description: Description) -> str:
        """A short hash of the content: features, labels and classes that are equal have it, however cut into tars."""
        facts = [description.classes, list(description.streams.items()), description.dtype, description.stride_frames]
        facts += [description.window_frames] if description.window_frames else []
        digest = xxhash.xxh3_64(json.dumps(facts).encode())
        digest.update(json.dumps([self.ids.to_pylist(), self.subsets]).encode())
        numbers = [self.subset_N, self.snippets_N, self.label_bounds, self.labels, self.duration_s_N, self.fps_N]
        numbers += [self.xxh3_N[stream].astype("<u8") for stream in description.streams]
        for column in numbers:
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def relabelled(self, number_of: Sequence[int], count: int) -> Manifest:
        """The same videos with label i as `number_of[i]` of `count`; two of a video that become one count once."""
        flat = self.labels[self.label_bounds[0] : self.label_bounds[-1]]
        video_L = np.repeat(np.arange(len(self)), np.diff(self.label_bounds))
        key_L = np.unique(video_L * count + np.asarray(number_of, np.int64)[flat])
        found = copy(self)
        found.labels = (key_L % max(count, 1)).astype(np.int32)
        found.label_bounds = np.searchsorted(key_L, np.arange(len(self) + 1) * count).astype(np.int32)
        return found

    @staticmethod
    def joined(parts: Sequence[Manifest], shards: Sequence[int], ids: pa.StringArray) -> Manifest:
        """The rows of all, one behind the other, by other ids; `shards` says how many tars each part has.

        Where a video's members lie in its tar, its own part alone knows.
        """
        found = copy(parts[0])
        found.ids, found.subsets = ids, list(dict.fromkeys(name for part in parts for name in part.subsets))
        found.offset_N = found.bytes_N = found.xxh3_N = {}
        numbers = [np.array([found.subsets.index(name) for name in part.subsets]) for part in parts]
        found.subset_N = np.concatenate([of[part.subset_N] for of, part in zip(numbers, parts, strict=True)])
        firsts = np.cumsum([0, *shards[:-1]])
        found.shard_N = np.concatenate([part.shard_N + first for part, first in zip(parts, firsts, strict=True)])
        for name in ("snippets_N", "labels", "duration_s_N", "fps_N"):
            setattr(found, name, np.concatenate([getattr(part, name) for part in parts]))
        sizes = np.concatenate([np.diff(part.label_bounds) for part in parts])
        found.label_bounds = np.concatenate([[0], np.cumsum(sizes)])
        return found

    def __len__(self) -> int:
        return len(self.subset_N)

    def __iter__(self) -> Iterator[Video]:
        for first in range(0, len(self), CHUNK_VIDEOS):
            yield from self._videos_at(slice(first, min(first + CHUNK_VIDEOS, len(self))))

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> list[Video]: ...
    def __getitem__(self, index: int | slice) -> Video | list[Video]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._videos_at(slice(place, place + 1))[0]

    def _videos_at(self, rows: slice) -> list[Video]:
        bounds = self.label_bounds[rows.start : rows.stop + 1].tolist()
        labels = self.labels[bounds[0] : bounds[-1]].tolist()
        columns = (self.subset_N, self.snippets_N, self.duration_s_N, self.fps_N)
        numbers = zip(*(column[rows].tolist() for column in columns), strict=True)
        return [
            Video(video, self.subsets[subset], snippets, tuple(labels[a - bounds[0] : b - bounds[0]]), duration_s, fps)
            for video, (a, b), (subset, snippets, duration_s, fps) in zip(
                self.ids[rows].to_pylist(), pairwise(bounds), numbers, strict=True
            )
        ]


def schema(streams: Sequence[str]) -> pa.Schema:
    """The columns of manifest.parquet."""
    fields = [
        ("id", pa.string()),
        ("subset", pa.string()),
        ("shard", pa.int32()),
        ("snippets", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("duration_s", pa.float64()),
        ("fps", pa.float64()),
    ]
    kinds = (pa.int64(), pa.int64(), pa.uint64())
    fields += [(f"{stream}_{part}", kind) for stream in streams for part, kind in zip(MEMBER_PARTS, kinds, strict=True)]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def write_manifest(file: Path, table: pa.Table, before: bytes | None = None) -> None:
    """Write one row a video, in the order that readers will count in; equal rows make equal bytes.

    Rows `before`, of a manifest's bytes, are sorted among these, as if all had been packed at once.
    """
    table = table.combine_chunks()  # in whatever pieces it was gathered
    if before is not None:
        table = pa.concat_tables([open_table(before, table.schema).read(table.column_names).cast(table.schema), table])
        table = table.sort_by([("subset", "ascending"), ("id", "ascending")])
    pq.write_table(table, file, compression="zstd")


def _numpy(values: pa.Array) -> np.ndarray:
    """As `to_numpy`, which would import pandas."""
    return np.from_dlpack(values)
