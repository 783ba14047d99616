"""Detections on disk: Parquet parts, one written by each rank, and the ActivityNet results JSON.

A part is a table with a row a detection: `video` and `label` (strings, dictionary-encoded), `score`, `start_s`, `end_s`
(numbers). Its key-value metadata says what was localized, and is the same in all parts of one folder. Rows come in any
order, and a video's rows may be spread over the parts.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aumn.durable import whole_file
from aumn.records import Detections, InputError

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("video", "label")
NUMBERS = ("score", "start_s", "end_s")
PREFIX = "aumn."  # sets our metadata apart from what Arrow and pandas keep in the same place
BATCH_ROWS = 262_144  # 10 MB
RESULTS_LAYOUT = '{"results": {"<video>": [{"label": "...", "score": 0.5, "segment": [0.0, 1.5]}]}}'


def read_detections(path: Path, rank: int = 0, size: int = 1) -> tuple[Detections, dict[str, str]]:
    """The detections of this rank's own videos, and the metadata of the parts.

    `path` is a folder of Parquet parts, one part, or an ActivityNet results JSON. A video belongs to one rank, by a
    hash of its name. Parts are read batch by batch, so what a rank holds falls with the number of ranks; a JSON has to
    be read whole. Every rank checks every row, so bad input is the same error on all of them.
    """
    metadata: dict[str, str] = {}
    if path.is_dir() or path.suffix == ".parquet":
        parts = _parts(path)
        metadata = _common_metadata(parts)
        chunks = chain.from_iterable(_read_part(part) for part in parts)
    elif path.is_file():
        chunks = chain([_read_json(path)])
    else:
        raise InputError(f"{path} does not exist: give a folder of Parquet parts or an ActivityNet results JSON.")
    found = _merge(_own(chunk, rank, size) for chunk in chunks)
    _release_unused()
    return found, metadata


def write_part(detections: Detections, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one Parquet part, which appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encoded(index_N: np.ndarray, names: Sequence[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(index_N, pa.int32()), pa.array(names, pa.string()))

    names = [encoded(detections.video_N, detections.videos), encoded(detections.label_N, detections.labels)]
    numbers = [pa.array(column_N, pa.float64()) for column_N in _columns(detections)[2:]]
    table = pa.table([*names, *numbers], names=[*NAMES, *NUMBERS])
    table = table.replace_schema_metadata({PREFIX + key: value for key, value in (metadata or {}).items()})
    with whole_file(path) as partial:
        pq.write_table(table, partial, row_group_size=BATCH_ROWS, write_page_checksum=True)


def export_json(detections: Detections, path: Path) -> None:
    """Write the results JSON that ActivityNet's server and devkit read; a video's detections come best first."""
    results: dict[str, list[dict[str, Any]]] = {}
    order = np.lexsort((detections.end_s_N, detections.start_s_N, -detections.score_N, detections.video_N))
    columns = [column_N[order].tolist() for column_N in _columns(detections)]
    for video, label, score, *segment in zip(*columns, strict=True):
        detection = {"label": detections.labels[label], "score": score, "segment": segment}
        results.setdefault(detections.videos[video], []).append(detection)
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"version": "1.0", "results": results, "external_data": {}}), encoding="utf-8")


def _merge(chunks: Iterator[Detections]) -> Detections:
    """One table of all chunks, with videos and labels numbered as they come."""
    videos: dict[str, int] = {}
    labels: dict[str, int] = {}
    merged: list[tuple[np.ndarray, ...]] = [_columns(_from_rows([]))]
    for chunk in chunks:
        video_N, label_N, *numbers_N = _columns(chunk)
        merged.append((_number(chunk.videos, videos)[video_N], _number(chunk.labels, labels)[label_N], *numbers_N))
    columns = [np.concatenate(column) for column in zip(*merged, strict=True)]
    return Detections(list(videos), list(labels), *columns)


def _release_unused() -> None:
    """Give back what Arrow keeps for the next time; of millions of detections that is half of what is held."""
    if "pyarrow" in sys.modules:  # a JSON was read without
        import pyarrow as pa

        pa.default_memory_pool().release_unused()


def _number(names: Sequence[str], number_of: dict[str, int]) -> np.ndarray:
    """The number of each name; a new name gets the next one."""
    return np.array([number_of.setdefault(name, len(number_of)) for name in names], dtype=np.int32)


def _own(chunk: Detections, rank: int, size: int) -> Detections:
    """The rows of the videos that this rank owns."""
    if size == 1:
        return chunk
    owned = np.array([zlib.crc32(video.encode()) % size == rank for video in chunk.videos], dtype=bool)
    rows = np.flatnonzero(owned[chunk.video_N])
    video_N, *columns = (column_N[rows] for column_N in _columns(chunk))
    videos = [video for video, is_owned in zip(chunk.videos, owned, strict=True) if is_owned]
    return Detections(videos, chunk.labels, (np.cumsum(owned) - 1)[video_N], *columns)


def _columns(table: Detections) -> tuple[np.ndarray, ...]:
    return table.video_N, table.label_N, table.score_N, table.start_s_N, table.end_s_N


def _check(chunk: Detections, file: Path, first_row: int) -> Detections:
    """The same chunk, if all of its numbers can be ranked and matched."""

    def refuse(row: int, found: str, rule: str) -> InputError:
        place = f"{file}, row {first_row + row} (from 0), video {chunk.videos[chunk.video_N[row]]!r}"
        return InputError(f"{place}: {found}; every detection needs {rule}.")

    for name, number_N in zip(NUMBERS, _columns(chunk)[2:], strict=True):
        if not np.isfinite(number_N).all():
            row = int(np.argmin(np.isfinite(number_N)))
            raise refuse(row, f"{name}={number_N[row]}", "finite numbers")
    if (chunk.end_s_N < chunk.start_s_N).any():
        row = int(np.argmax(chunk.end_s_N < chunk.start_s_N))
        times = f"end_s={chunk.end_s_N[row]} is before start_s={chunk.start_s_N[row]}"
        raise refuse(row, times, "an end that is not before its start")
    return chunk


def _parts(path: Path) -> list[Path]:
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise InputError(f"{path} holds no Parquet parts (*.parquet): give the folder that `aumn localize` wrote.")
    return parts


def _common_metadata(parts: Sequence[Path]) -> dict[str, str]:
    """What the parts say of themselves; where they disagree, they are of different runs and have no mAP in common."""
    first, *others = [_metadata(part) for part in parts]
    for part, metadata in zip(parts[1:], others, strict=True):
        for key in sorted(first.keys() | metadata.keys()):
            if first.get(key) != metadata.get(key):
                raise InputError(
                    f"{part} is not of the run that wrote {parts[0].name}: {key} is {metadata.get(key)!r}, there "
                    f"{first.get(key)!r}; keep the parts of one run only in a folder."
                )
    return first


def _metadata(part: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    with _readable(part):
        metadata = pq.read_schema(part).metadata or {}
        texts = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(PREFIX.encode())}
    return {key.removeprefix(PREFIX): text for key, text in texts.items()}


def _read_part(part: Path) -> Iterator[Detections]:
    """A part's detections, a batch of rows at a time."""
    import pyarrow.parquet as pq

    first_row = 0
    with _readable(part), pq.ParquetFile(part, read_dictionary=NAMES, page_checksum_verification=True) as file:
        _check_schema(part, file.schema_arrow)
        for batch in file.iter_batches(BATCH_ROWS, columns=[*NAMES, *NUMBERS]):
            yield _check(_from_batch(batch, part), part, first_row)
            first_row += len(batch)


def _check_schema(part: Path, schema: pa.Schema) -> None:
    import pyarrow.types as kinds

    for name in (*NAMES, *NUMBERS):
        if name not in schema.names:
            raise InputError(f"{part} has no column {name!r}: a part needs {', '.join((*NAMES, *NUMBERS))}.")
        kind = schema.field(name).type
        value = kind.value_type if kinds.is_dictionary(kind) else kind
        if name in NAMES and not (kinds.is_string(value) or kinds.is_large_string(value)):
            raise InputError(f"{part}: the column {name!r} is of type {kind}; it must hold strings.")
        if name in NUMBERS and not (kinds.is_floating(kind) or kinds.is_integer(kind)):
            raise InputError(f"{part}: the column {name!r} is of type {kind}; it must hold numbers.")


def _from_batch(batch: pa.RecordBatch, part: Path) -> Detections:
    for name in (*NAMES, *NUMBERS):
        if batch[name].null_count:
            raise InputError(f"{part}: the column {name!r} has empty cells; every detection needs every column.")
    video, label = (
        column if hasattr(column, "dictionary") else column.dictionary_encode() for column in (batch[n] for n in NAMES)
    )
    # from_dlpack: to_numpy would first import pandas, for half a second.
    indices_N = [np.from_dlpack(column.indices) for column in (video, label)]
    numbers_N = [np.from_dlpack(batch[name]).astype(np.float64, copy=False) for name in NUMBERS]
    return Detections(video.dictionary.to_pylist(), label.dictionary.to_pylist(), *indices_N, *numbers_N)


def _read_json(path: Path) -> Detections:
    """The detections of an ActivityNet results JSON."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): its layout must be {RESULTS_LAYOUT}.") from None
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict) or not all(isinstance(found, list) for found in results.values()):
        raise InputError(f"{path} holds no ActivityNet results: its layout must be {RESULTS_LAYOUT}.")
    rows = [_json_row(path, video, detection) for video, found in results.items() for detection in found]
    return _check(_from_rows(rows), path, 0)


def _json_row(path: Path, video: str, detection: Any) -> tuple[str, str, float, float, float]:
    try:
        label, score, (start_s, end_s) = detection["label"], detection["score"], detection["segment"]
        if isinstance(label, str) and not {type(score), type(start_s), type(end_s)} - {int, float}:
            return video, label, float(score), float(start_s), float(end_s)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    shown = json.dumps(detection)[:100]
    raise InputError(f"{path}, video {video!r}: {shown} is not a detection; its layout must be {RESULTS_LAYOUT}.")


def _from_rows(rows: Sequence[tuple[str, str, float, float, float]]) -> Detections:
    videos: dict[str, int] = {}
    labels: dict[str, int] = {}
    video_N, label_N = _number([row[0] for row in rows], videos), _number([row[1] for row in rows], labels)
    numbers_N = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, len(NUMBERS)).T
    return Detections(list(videos), list(labels), video_N, label_N, *numbers_N)


@contextmanager
def _readable(part: Path) -> Iterator[None]:
    """Say which file it is that Arrow cannot read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{part} cannot be read as Parquet ({reason}): write it again with `aumn localize`.") from None
