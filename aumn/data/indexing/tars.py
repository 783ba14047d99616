"""Which tars: a folder, files, patterns, a wids index, or a folder that Energon prepared; in the order given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple

from aumn.data.indexing.members import expand
from aumn.data.json_files import read_json
from aumn.data.shards.stores import Remote, open_store
from aumn.records import InputError, Place, place_of

ENERGON = ".nv-meta"
WIDS_LAYOUT = 'a wids index is {"shardlist": [{"url": TAR, "nsamples": COUNT}, ...]}.'
INDEX_HEAD = 4096  # bytes in which an index names its list
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"}


class Tar(NamedTuple):
    """A tar, and what an index says of it."""

    path: Place
    split: str | None = None
    samples: int | None = None
    excluded: frozenset[str] = frozenset()  # keys of samples
    told_by: Path | None = None  # which says all that


def find_tars(given: Sequence[str]) -> tuple[list[Tar], list[str]]:
    """Every tar once, and sentences on what lies beside them and is not taken."""
    notes: list[str] = []
    found: dict[Place, Tar] = {}
    for text in given:
        for tar in _tars_of(text, notes):
            place = tar.path.resolve() if isinstance(tar.path, Path) else tar.path
            if found.setdefault(place, tar).split != tar.split:
                raise InputError(f"{tar.path} is in the splits {found[place].split} and {tar.split}: a video has one.")
    if missing := [str(tar.path) for tar in found.values() if isinstance(tar.path, Path) and not tar.path.is_file()]:
        raise InputError(f"These tars are missing: {_names(missing)}. Fetch them, or correct what names them.")
    return list(found.values()), notes


def common_place(tars: Sequence[Place]) -> Place:
    """The folder, or the address, under which all of them are."""
    folders = {tar.rpartition("/")[0] if isinstance(tar, str) else "" for tar in tars}
    if len(folders) > 1:
        raise InputError(
            f"The tars lie in {', '.join(sorted(folder or 'folders here' for folder in folders))}: make a set of each, "
            "and give a run several sets."
        )
    (folder,) = folders
    return folder or Path(os.path.commonpath([Path(tar).resolve().parent for tar in tars]))


def open_tar(path: Place) -> BinaryIO:
    """A tar, open to be read at any place; a remote one is fetched for as long as it is open."""
    try:
        file = path.open("rb") if isinstance(path, Path) else _fetch(path)
        head = file.read(6)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again.") from None
    for mark, remedy in COMPRESSED.items():
        if head.startswith(mark):
            file.close()
            raise InputError(
                f"{path} is compressed, and what lies in it cannot be read by its place: decompress the tars ({remedy} "
                f"{Path(path).name})."
            )
    file.seek(0)
    return file


def _fetch(address: str) -> BinaryIO:
    folder, _, name = address.rpartition("/")
    store = open_store(folder)
    assert isinstance(store, Remote)
    if (size := store.size(name)) is None:
        raise InputError(f"{address} is missing: correct the pattern.")
    file = TemporaryFile()  # noqa: SIM115  # the caller closes it
    store.copy(name, 0, size, size, lambda _, piece: file.write(piece))
    file.seek(0)
    return file


def _tars_of(text: str, notes: list[str]) -> Iterator[Tar]:
    path = Path(text)
    if path.is_dir():
        yield from _in_folder(path, notes)
    elif path.is_file() and path.suffix == ".json":
        yield from _in_wids_index(path)
    elif path.is_file():
        yield Tar(path)
    elif text.startswith("pipe:"):
        raise InputError(
            f"{text} is a command: give the addresses of the tars, https://... or s3://..., or fetch them."
        )
    elif "://" in text and "." not in text.rpartition("/")[2]:
        raise InputError(
            f"{text} is no tar's address: give those of the tars, such as {text.rstrip('/')}/train-{{000..007}}.tar."
        )
    elif "://" in text:
        yield from (Tar(place_of(name)) for name in expand(text))
    else:
        names = [name for each in expand(text) for name in (sorted(glob(each, recursive=True)) or [each])]
        yield from (Tar(Path(name)) for name in names)


def _in_folder(folder: Path, notes: list[str]) -> Iterator[Tar]:
    tars = sorted(tar for tar in folder.rglob("*.tar") if not any(part.endswith(".partial") for part in tar.parts))
    if (folder / ENERGON).is_dir():
        yield from _listed(tars, list(_in_energon_folder(folder)), notes)
        return
    if indexes := [index for index in sorted(folder.glob("*.json")) if _is_wids_index(index)]:
        yield from _listed(tars, [tar for index in indexes for tar in _in_wids_index(index)], notes)
        return
    if not tars:
        packed = sorted(path for path in folder.rglob("*") if ".tar." in path.name or path.suffix in {".tgz", ".tzst"})
        if packed:
            open_tar(packed[0]).close()  # says that it is compressed
        raise InputError(f"{folder} holds no .tar: give the folder of the WebDataset tars, or a pattern of them.")
    yield from map(Tar, tars)


def _listed(tars: Sequence[Path], listed: list[Tar], notes: list[str]) -> list[Tar]:
    """The tars of an index, and a note on others that lie there."""
    if beside := sorted(set(tars) - {tar.path for tar in listed}):
        notes.append(
            f"Not taken, since {listed[0].told_by} does not list them: {_names([tar.name for tar in beside])}. To take "
            "them too, give the tars by a pattern."
        )
    return listed


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _is_wids_index(file: Path) -> bool:
    with file.open("rb") as opened:
        return b'"shardlist"' in opened.read(INDEX_HEAD)


def _in_wids_index(index: Path) -> Iterator[Tar]:
    """The tars of an index, where its `base` says or beside it, also where its addresses are of another place."""
    document = read_json(index, WIDS_LAYOUT)
    try:
        parts = [
            part for part in (document, *document.get("datasets", [])) if part is not document or "shardlist" in part
        ]
        shards = [
            (part.get("base", ""), shard["url"], shard["nsamples"]) for part in parts for shard in part["shardlist"]
        ]
        places = [(Path(base, url.removeprefix("file:")), count) for base, url, count in shards]
        if not places or any(type(count) is not int for _, count in places):
            raise TypeError("no shards, or counts that are no numbers")
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{index} lists no tars as wids does ({error!r}): {WIDS_LAYOUT}") from None
    for place, count in places:
        there = index.parent / place
        yield Tar(there if there.is_file() else index.parent / place.name, samples=count, told_by=index)


def _in_energon_folder(folder: Path) -> Iterator[Tar]:
    """The shards of Energon's splits; what it excludes, shards or single samples, is left out as Energon leaves it."""
    index, info = _read_energon(folder, ".info")
    splits_file, splits = _read_energon(folder, "split")
    try:
        excluded = {name for pattern in splits.get("exclude") or () for name in expand(pattern)}
        shards = [
            (name, str(split), int(info["shard_counts"][name]))
            for split, patterns in splits["split_parts"].items()
            for pattern in patterns
            for name in expand(pattern)
            if name not in excluded
        ]
        if not shards:
            raise KeyError("no shard that is not excluded")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{splits_file} and {index} do not name the same shards, or not as Energon does ({error!r}): run `energon "
            "prepare` again, or give the tars by a pattern."
        ) from None
    for name, split, count in shards:
        keys = frozenset(each.removeprefix(f"{name}/") for each in excluded if each.startswith(f"{name}/"))
        yield Tar(folder / name, split, count, keys, index)


def _read_energon(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    import yaml

    files = [folder / ENERGON / f"{name}{ending}" for ending in (".json", ".yaml")]
    file = next((file for file in files if file.is_file()), files[-1])
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
        return file, dict(document)
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({error}): run `energon prepare` again.") from None
