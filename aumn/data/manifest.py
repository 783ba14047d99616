"""A shard set's manifest: one row a video, held as columns of equal length N, and the identity of what they describe.

Each video's features lie in one tar; the manifest says which, and where each stream's member starts in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from aumn.data.layout import Description


@dataclass(frozen=True, slots=True)
class Members:
    """Where one stream's tar members are: byte offset of the .npy file in its tar, its size, and its xxh3_64."""

    offset_N: list[int]
    bytes_N: list[int]
    checksum_N: list[int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest's columns. Labels are flat: video i has `labels[label_bounds[i] : label_bounds[i + 1]]`."""

    ids: list[str]
    subsets: list[str]  # the distinct ones; `subset_N` indexes them
    subset_N: np.ndarray
    shard_N: np.ndarray
    snippets_N: np.ndarray
    label_bounds: np.ndarray
    labels: np.ndarray
    duration_s_N: np.ndarray
    fps_N: np.ndarray
    members: dict[str, Members]  # stream -> its members

    def identity(self, description: Description) -> str:
        """A short hash of the content: features, labels and classes that are equal have it, however cut into tars."""
        facts = [description.classes, list(description.streams.items()), description.dtype, description.stride_frames]
        digest = xxhash.xxh3_64(json.dumps(facts).encode())
        digest.update(json.dumps([self.ids, self.subsets]).encode())
        numbers = [self.subset_N, self.snippets_N, self.label_bounds, self.labels, self.duration_s_N, self.fps_N]
        numbers += [np.array(self.members[stream].checksum_N, dtype="<u8") for stream in description.streams]
        for column in numbers:
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


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
    for stream in streams:
        fields += [(f"{stream}_offset", pa.int64()), (f"{stream}_bytes", pa.int64()), (f"{stream}_xxh3", pa.uint64())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def write_manifest(file: BinaryIO, rows: list[dict[str, Any]], streams: Sequence[str]) -> None:
    """Write one row a video, in the order that readers will count in; equal rows make equal bytes."""
    table = pa.Table.from_pylist(rows, schema=schema(streams))
    pq.write_table(table, file, compression="zstd")


def read_manifest(content: bytes, streams: Sequence[str]) -> Manifest:
    """Read the bytes of manifest.parquet."""
    return _from_table(pq.read_table(pa.BufferReader(content)), streams)


def _from_table(table: pa.Table, streams: Sequence[str]) -> Manifest:
    """The columns as arrays and lists, which read a thousand times faster than pyarrow's scalars."""
    column = {name: table[name].combine_chunks() for name in table.column_names}
    subset = column["subset"].dictionary_encode()
    labels = column["labels"]

    def members(stream: str) -> Members:
        return Members(*(column[f"{stream}_{part}"].to_numpy().tolist() for part in ("offset", "bytes", "xxh3")))

    return Manifest(
        ids=column["id"].to_pylist(),
        subsets=subset.dictionary.to_pylist(),
        subset_N=subset.indices.to_numpy(),
        shard_N=column["shard"].to_numpy(),
        snippets_N=column["snippets"].to_numpy(),
        label_bounds=labels.offsets.to_numpy(),
        labels=labels.values.to_numpy(),
        duration_s_N=column["duration_s"].to_numpy(),
        fps_N=column["fps"].to_numpy(),
        members={stream: members(stream) for stream in streams},
    )
