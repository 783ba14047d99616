"""The files of a shard set, and dataset.json, which describes the whole; data_shards/README.md documents them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import xxhash

from aumn.addresses import public
from aumn.data.shards.stores import Store, open_store
from aumn.records import InputError, check_streams, place_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT_VERSION = 1
DESCRIPTION = "dataset.json"
MANIFEST = "manifest.parquet"
ANNOTATIONS = "annotations.parquet"
LONGEST_NAME = 100  # of a tar's member: its plain header has no room for more


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar and its size, by which a truncated copy is found on opening."""

    file: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """What dataset.json says of the whole set; `streams` maps each stream to its width D, in reading order."""

    format_version: int
    name: str
    identity: str
    classes: tuple[str, ...]
    streams: dict[str, int]
    dtype: str
    stride_frames: int
    shards: tuple[Shard, ...]
    checksums: dict[str, str]  # of the two tables' bytes
    window_frames: int | None = None  # that a snippet was read from; None: the stride
    left_out: tuple[str, ...] = ()  # videos that packing was told to leave out where they are bad
    extractor: dict[str, Any] | None = None  # what made the features, where `aumn extract` did
    tars: str | None = None  # the folder where the tars lie, seen from the set's; None: they lie in the set
    decoded: dict[str, str] = field(default_factory=dict)  # streams whose members are no plain arrays: their suffix
    transposed: bool = False  # the arrays of those are D x T

    def __post_init__(self) -> None:
        """ValueError where a value cannot be."""
        if self.dtype not in {"float16", "float32"}:
            raise ValueError(f"dtype is {self.dtype!r}, which must be float16 or float32")
        check_streams(self.streams)
        least = min(self.stride_frames, self.window_frames or 1, *self.streams.values())
        parts = [PurePosixPath(shard.file).parts for shard in self.shards]
        if least < 1 or any({"/", ".."} & set(each) or (len(each) > 1 and self.tars is None) for each in parts):
            raise ValueError("widths and stride_frames must be above 0, and shards lie in the set's own folder")
        if not self.decoded.keys() <= self.streams.keys():
            raise ValueError("decoded names streams that the set does not have")

    @property
    def growths(self) -> int:
        """How often videos were appended."""
        found = (re.fullmatch(r"manifest-(\d+)\.parquet", file) for file in self.checksums)
        return next((int(match[1]) for match in found if match), 0)

    def table(self, name: str) -> str:
        """The file of MANIFEST or ANNOTATIONS in this version of the set."""
        return numbered(name, self.growths)

    def to_json(self) -> str:
        """The text of dataset.json: these fields, and their checksum."""
        defaults = {each.name: each.default for each in dataclass_fields(self)} | {"decoded": {}}
        fields = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return json.dumps(fields | {"checksum": _own_checksum(fields)}, indent=1, ensure_ascii=False) + "\n"


def numbered(table: str, growths: int) -> str:
    """A table's file once the set was appended to so many times: manifest.parquet, then manifest-0001.parquet."""
    return table.replace(".", f"-{growths:04d}.") if growths else table


def kept_as(identity: str) -> str:
    """Where the description of a version stays when the set has grown."""
    return DESCRIPTION.replace(".", f"-{identity}.")


def read_description(store: Store, identity: str | None = None) -> Description:
    """Read dataset.json, which must be of this format version and as it was written.

    With an identity, that of the earlier version which has it, if the set has grown since and holds it still.
    """
    from pydantic import TypeAdapter, ValidationError

    name = DESCRIPTION
    if identity is not None and store.size(kept_as(identity)) is not None:
        name = kept_as(identity)
    file = file_of(store, name)
    try:
        content = store.read(name)
    except (FileNotFoundError, NotADirectoryError):
        place = public(str(store.place))
        raise InputError(f"{place} is not a shard set: it holds no {DESCRIPTION}; make one with `aumn pack`.") from None
    try:
        fields = dict(json.loads(content))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} is not a JSON object ({error}): fetch the shard set again.") from None
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"{file} has format version {version!r}; this aumn reads {FORMAT_VERSION}: pack again.")
    if fields.pop("checksum", None) != _own_checksum(fields):
        raise InputError(f"{file} does not match its own checksum, so it was edited or damaged: fetch it again.")
    try:
        return TypeAdapter(Description).validate_python(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the object"
        raise InputError(f"{file} describes no shard set ({where}: {problem['msg']}): fetch it again.") from None


def read_table_bytes(store: Store, name: str, description: Description) -> bytes:
    """A table's bytes, verified: pyarrow is never handed a damaged file, which it does not always survive."""
    try:
        content = store.read(name)
    except FileNotFoundError:
        raise InputError(f"{file_of(store, name)} is missing: fetch the shard set again.") from None
    if checksum(content) != description.checksums.get(name):
        raise InputError(
            f"{file_of(store, name)} does not match its checksum in {DESCRIPTION}, so it is damaged or of another "
            "packing: fetch the shard set again."
        )
    return content


def file_of(store: Store, name: str) -> str:
    """A file of a set, as errors name it."""
    return f"{public(str(store.place))}/{name}"


def store_of_tars(store: Store, description: Description, away_s: float) -> Store:
    """Where the tars lie of a set that lies in `store`."""
    if description.tars is None:
        return store
    place = place_of(description.tars)
    if isinstance(place, Path) and not place.is_absolute():
        place = store.place / place if isinstance(store.place, Path) else f"{store.place}/{place}"
    return open_store(place, away_s)


def open_table(content: bytes, wanted: pa.Schema, optional: Collection[str] = ()) -> pq.ParquetFile:
    """A table that has these columns and no others; InputError, without a subject, for what it is instead."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet ({error}): fetch the shard set again.") from None
    kinds = {field.name: field.type for field in file.schema_arrow}
    if kinds != {field.name: field.type for field in wanted if field.name in kinds or field.name not in optional}:
        raise InputError(f"has other columns than {', '.join(wanted.names)}, or of other types: fetch the set again.")
    return file


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as columns, by way of JSON: to take Python's objects, pyarrow imports pandas, which lasts half a second."""
    import pyarrow.json as pa_json

    lines = "\n".join(map(json.dumps, rows)).encode()
    if not lines:
        return schema.empty_table()
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    at_once = pa_json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    return pa_json.read_json(io.BytesIO(lines), at_once, options).select(schema.names).cast(schema)


def checksum(content: bytes) -> str:
    """XXH3-64 in hexadecimal, as dataset.json states it."""
    return xxhash.xxh3_64_hexdigest(content)


def sample_key(video: str, streams: Collection[str] = ()) -> str:
    """A video's id as WebDataset's sample key: percent-encoded, dots and slashes too.

    WebDataset cuts a member's name at its first dot and takes a slash for a folder. A longer key than a tar's plain
    header takes, which is all that some readers know, ends in a hash of the id instead. The id is in the sample's JSON.
    """
    key = quote(video, safe="").replace(".", "%2E")
    longest = LONGEST_NAME - len("..npy") - max(map(len, ("flow", *streams)))
    return key if len(key) <= longest else f"{key[: longest - 17]}~{checksum(video.encode())}"


def _own_checksum(fields: dict[str, Any]) -> str:
    return checksum(json.dumps(fields, sort_keys=True).encode())
