"""The files of a shard set, and dataset.json, which describes the whole; data_shards/README.md documents them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from aumn.records import InputError

FORMAT_VERSION = 1
DESCRIPTION = "dataset.json"
MANIFEST = "manifest.parquet"
ANNOTATIONS = "annotations.parquet"


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

    def to_json(self) -> str:
        """The text of dataset.json."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_description(path: Path) -> Description:
    """Read dataset.json, which must be of this format version."""
    file = path / DESCRIPTION
    if not file.is_file():
        raise InputError(f"{path} is not a shard set: it holds no {DESCRIPTION}; make one with `aumn pack`.")
    try:
        fields = json.loads(file.read_bytes())
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"{file} has format version {version!r}; this aumn reads {FORMAT_VERSION}: pack the features again."
            )
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        return Description(**fields | {"classes": tuple(fields["classes"])}, shards=shards)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is damaged ({error!r}): fetch the shard set again.") from None
