"""One Parquet part of the detections: written whole, read batch by batch, and checked.

A part is a table with a row a detection: `video` and `label` (strings, dictionary-encoded), `score`, `start_s`, `end_s`
(numbers). Its key-value metadata says what was localized, and is the same in all parts of one folder. Rows come in any
order, and a video's rows may be spread over the parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aumn.files import whole_file
from aumn.records import MOST_S, Detections, InputError

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("video", "label")
NUMBERS = ("score", "start_s", "end_s")
PREFIX = "aumn."  # sets our metadata apart from what Arrow and pandas keep in the same place
BATCH_ROWS = 262_144  # 10 MB


def part_of(folder: Path, rank: int) -> Path:
    """The part that a rank writes."""
    return folder / f"part-{rank:05d}.parquet"


def write_part(detections: Detections, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one Parquet part, which appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encoded(index_N: np.ndarray, names: Sequence[str]) -> pa.Array:
        used, index_N = np.unique(index_N, return_inverse=True)  # else the part would hold every name there is
        return pa.DictionaryArray.from_arrays(
            pa.array(index_N, pa.int32()), pa.array([names[i] for i in used], pa.string())
        )

    names = [encoded(detections.video_N, detections.videos), encoded(detections.label_N, detections.labels)]
    numbers = [pa.array(column_N, pa.float64()) for column_N in detections.columns[2:]]
    table = pa.table([*names, *numbers], names=[*NAMES, *NUMBERS])
    table = table.replace_schema_metadata({PREFIX + key: value for key, value in (metadata or {}).items()})
    with whole_file(path) as partial:
        # Numbers that hardly repeat neither shrink nor read fast as a dictionary or compressed.
        layout = {"use_dictionary": list(NAMES), "compression": "none"}
        pq.write_table(table, partial, row_group_size=BATCH_ROWS, write_page_checksum=True, **layout)


def checked(chunk: Detections, file: Path, first_row: int) -> Detections:
    """The same chunk, if all of its numbers can be ranked and matched."""

    def refuse(row: int, found: str, rule: str) -> InputError:
        place = f"{file}, row {first_row + row} (from 0), video {chunk.videos[chunk.video_N[row]]!r}"
        return InputError(f"{place}: {found}; every detection needs {rule}.")

    for name, number_N in zip(NUMBERS, chunk.columns[2:], strict=True):
        if not np.isfinite(number_N).all():
            row = int(np.argmin(np.isfinite(number_N)))
            raise refuse(row, f"{name}={number_N[row]}", "finite numbers")
        if name != "score" and (np.abs(number_N) > MOST_S).any():
            row = int(np.argmax(np.abs(number_N) > MOST_S))
            raise refuse(row, f"{name}={number_N[row]}", f"times below {MOST_S:g}")
    if (chunk.end_s_N < chunk.start_s_N).any():
        row = int(np.argmax(chunk.end_s_N < chunk.start_s_N))
        times = f"end_s={chunk.end_s_N[row]} is before start_s={chunk.start_s_N[row]}"
        raise refuse(row, times, "an end that is not before its start")
    return chunk


def common_metadata(parts: Sequence[Path]) -> tuple[int, dict[str, str]]:
    """How many rows the parts have, and what they say of themselves.

    Where they disagree, they are of different runs and have no mAP in common.
    """
    rows, (first, *others) = zip(*map(_metadata, parts), strict=True)
    for part, metadata in zip(parts[1:], others, strict=True):
        for key in sorted(first.keys() | metadata.keys()):
            if first.get(key) != metadata.get(key):
                raise InputError(
                    f"{part} is not of the run that wrote {parts[0].name}: {key} is {metadata.get(key)!r}, there "
                    f"{first.get(key)!r}; keep the parts of one run only in a folder."
                )
    return sum(rows), first


def _metadata(part: Path) -> tuple[int, dict[str, str]]:
    with _open_part(part) as file:
        rows = file.metadata.num_rows
        texts = {key.decode(): text.decode() for key, text in (file.schema_arrow.metadata or {}).items()}
    return rows, {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}


def read_part(part: Path, groups: Collection[int] | None = None) -> Iterator[Detections]:
    """A part's detections, or those of some of its row groups, a batch of rows at a time."""
    decode = {name: _Decoder() for name in NAMES}
    for _, first_row, batch in _read_batches(part, [*NAMES, *NUMBERS], groups):
        (videos, video_N), (labels, label_N) = (decode[name](batch[name]) for name in NAMES)
        numbers_N = [np.from_dlpack(batch[name]).astype(np.float64, copy=False) for name in NUMBERS]
        yield checked(Detections(videos, labels, video_N, label_N, *numbers_N), part, first_row)


def count_videos(part: Path) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """Of each batch of rows its row group, the videos it names and how many of the rows each has: none, perhaps."""
    decode = _Decoder()
    for group, _, batch in _read_batches(part, ["video"]):
        videos, video_N = decode(batch["video"])
        yield group, videos, np.bincount(video_N, minlength=len(videos))


def _read_batches(
    part: Path, columns: Sequence[str], groups: Collection[int] | None = None
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Batches of rows without an empty cell, each with its row group and the number of its first row in the part."""
    with _open_part(part) as file:
        row = 0
        for group in range(file.num_row_groups):
            if groups is not None and group not in groups:
                row += file.metadata.row_group(group).num_rows
                continue
            left = file.metadata.row_group(group).num_rows
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                batch.validate(full=True)  # a name's number behind the last name, say
                for name in columns:
                    if batch[name].null_count:
                        raise InputError(
                            f"{part}: the column {name!r} has empty cells; every detection needs every column."
                        )
                yield group, row, batch
                row += len(batch)
                left -= len(batch)
            if left:
                raise InputError(f"{part} has other rows than it says, so it is damaged: write it again.")


class _Decoder:
    """A column of strings batch by batch: its values, and each row's as an index among them.

    Batches that Arrow gives the same dictionary have the same list of values, which is made once.
    """

    def __init__(self) -> None:
        self.dictionary: Any = None
        self.values: list[str] = []

    def __call__(self, column: Any) -> tuple[list[str], np.ndarray]:
        if not hasattr(column, "dictionary"):
            column = column.dictionary_encode()
        if self.dictionary is None or not self.dictionary.equals(column.dictionary):
            self.dictionary, self.values = column.dictionary, column.dictionary.to_pylist()
        return self.values, np.from_dlpack(column.indices)  # to_numpy would first import pandas, for half a second


@contextmanager
def _open_part(part: Path) -> Iterator[Any]:
    """A part as a `pyarrow.parquet.ParquetFile` with the columns it needs; InputError names one that Arrow refuses."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(part, read_dictionary=NAMES, page_checksum_verification=True) as file:
            _check_schema(part, file.schema_arrow)
            facts = file.metadata
            if sum(facts.row_group(group).num_rows for group in range(facts.num_row_groups)) != facts.num_rows:
                raise InputError(f"{part} has other rows than it says, so it is damaged: write it again.")
            yield file
    except InputError:
        raise
    except Exception as error:  # a damaged footer can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{part} cannot be read as Parquet ({reason}): write it again with `aumn localize`.") from None


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
