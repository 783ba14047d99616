"""One tar looked through, in a process of its own: each sample's arrays, checked and hashed, and what it tells.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash

from aumn.data.indexing.members import Sample, list_samples
from aumn.data.indexing.tars import Tar, open_tar
from aumn.data.problems import about
from aumn.data.sources.containers import DECODED_SUFFIXES, decode
from aumn.records import InputError

IN_PLACE = (np.dtype("<f2"), np.dtype("<f4"))


class Array(NamedTuple):
    """A stream's member, and the array in it; `is_plain` where the array's bytes are the member's last."""

    offset: int
    bytes: int
    xxh3: int
    snippets: int
    width: int
    dtype: str
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A sample that can be taken, as far as can be told from itself: its arrays by stream, and facts with sources."""

    key: str
    arrays: dict[str, Array]
    facts: dict[str, tuple[str, Any]]  # fact -> where it stands, and the value


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which members are streams, and where each fact may stand: SUFFIX or SUFFIX:FIELD, the first that is there."""

    streams: Mapping[str, str]  # stream -> member's suffix
    facts: Mapping[str, Collection[str]]
    is_transposed: bool = False  # arrays are D x T


@dataclass(frozen=True, slots=True)
class TarIndex:
    """What a tar holds; `bad` are its other samples, by their keys, and `arrays` the suffixes of all its arrays."""

    number: int
    bytes: int
    samples: list[Found]
    bad: dict[str, str]
    arrays: list[str]


def array_suffixes(suffixes: Iterable[str]) -> list[str]:
    """Those of members that may be arrays."""
    return [suffix for suffix in suffixes if f".{suffix.rpartition('.')[2]}" in DECODED_SUFFIXES]


def read_tar(number: int, tar: Tar, wanted: Wanted) -> TarIndex:
    """Look through every sample of a tar; InputError where it is not the tar that its index tells of."""
    samples, bad, suffixes, count = [], {}, dict[str, None](), 0
    with open_tar(tar.path) as file:
        for sample in list_samples(file, str(tar.path)):
            count += 1
            suffixes |= dict.fromkeys(sample.members)
            if sample.key in tar.excluded:
                continue
            try:
                with about(f"{tar.path}: sample {sample.key!r}"):
                    samples.append(_look(file, sample, wanted))
            except InputError as error:
                bad[sample.key] = str(error)
        size = file.seek(0, 2)
    if tar.samples not in {None, count}:
        raise InputError(
            f"{tar.path} has {count:,} samples where {tar.told_by} says {tar.samples:,}: one of the two is another's "
            "or cut short; fetch both again, make the index again, or give the tars by a pattern, without the index."
        )
    return TarIndex(number, size, samples, bad, array_suffixes(suffixes))


def _look(file: BinaryIO, sample: Sample, wanted: Wanted) -> Found:
    if sample.problem:
        raise InputError(f"{sample.problem}.")
    arrays = {
        stream: _array(file, sample, suffix, is_transposed=wanted.is_transposed)
        for stream, suffix in wanted.streams.items()
    }
    if len({array.snippets for array in arrays.values()}) > 1:
        counts = ", ".join(f"{array.snippets} of {stream}" for stream, array in arrays.items())
        raise InputError(f"has streams that differ in length ({counts} snippets): extract them alike.")
    return Found(sample.key, arrays, _facts(file, sample, wanted.facts))


def _read(file: BinaryIO, sample: Sample, suffix: str) -> bytes:
    place = sample.members[suffix]
    file.seek(place.offset)
    return file.read(place.bytes)


def _array(file: BinaryIO, sample: Sample, suffix: str, *, is_transposed: bool) -> Array:
    if suffix not in sample.members:
        raise InputError(f"has no member {suffix}, but {', '.join(sample.members)}.")
    content = _read(file, sample, suffix)
    try:
        values = decode(f"its .{suffix}", content)
    except InputError as error:
        raise InputError(f"cannot be taken: {error}") from None
    if values.ndim < 2 or set(values.shape[:-2]) - {1} or 0 in values.shape:
        raise InputError(f"has a {suffix} of shape {values.shape}; features must be snippets x width.")
    if values.dtype.kind not in "fiu":
        raise InputError(f"has a {suffix} of dtype {values.dtype}; features must be numbers.")
    features_TD = values.reshape(values.shape[-2:])
    if is_transposed:
        features_TD = features_TD.T
    with np.errstate(over="ignore"):
        numbers_TD = features_TD if features_TD.dtype in IN_PLACE else features_TD.astype(np.float32)
    bad_T = (~np.isfinite(numbers_TD)).sum(axis=1)
    if bad_T.any():
        raise InputError(
            f"has a {suffix} with {bad_T.sum():,} NaN or infinite values, the first in snippet "
            f"{np.flatnonzero(bad_T)[0]}: extract it again."
        )
    tail = content[len(content) - features_TD.nbytes :] if suffix.rpartition(".")[2] == "npy" else b""
    is_plain = features_TD.dtype in IN_PLACE and tail == features_TD.tobytes()
    offset, size = sample.members[suffix]
    checksum = xxhash.xxh3_64_intdigest(content)
    return Array(offset, size, checksum, len(features_TD), len(features_TD[0]), features_TD.dtype.str, is_plain)


def _facts(file: BinaryIO, sample: Sample, wanted: Mapping[str, Collection[str]]) -> dict[str, tuple[str, Any]]:
    told: dict[str, Any] = {}  # a JSON of many fields is read once
    found = {}
    for fact, sources in wanted.items():
        for source in sources:
            suffix, _, field = source.partition(":")
            if suffix not in told and suffix in sample.members:
                told[suffix] = _parse(_read(file, sample, suffix), suffix, is_json=bool(field))
            value = told.get(suffix)
            value = (value.get(field) if isinstance(value, dict) else None) if field else value
            if value is not None:
                found[fact] = (source, value)
                break
    return found


def _parse(content: bytes, suffix: str, *, is_json: bool) -> Any:
    """A JSON document; or of a text the whole numbers or the JSON list that it is, else the text itself."""
    try:
        text = content.decode("utf-8").strip()
        if is_json:
            return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"has a {suffix} that is no {'JSON' if is_json else 'text'} ({error}).") from None
    if re.fullmatch(r"-?\d+([\s,]+-?\d+)*", text):
        return [int(number) for number in re.findall(r"-?\d+", text)]
    with suppress(ValueError, RecursionError):
        return json.loads(text) if text.startswith("[") else text
    return text
