"""Where published arrays lie: .npy files in folders, members of .npz and HDF5 archives, items of one pickled array.

Nothing in them can run code or lead to another file.
"""

from __future__ import annotations

import math
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aumn.data.sources import arrays
from aumn.data.sources.arrays import Header, read_array, read_values, table_of
from aumn.data.sources.unpickling import plain
from aumn.records import InputError

if TYPE_CHECKING:
    import h5py

ARCHIVE_SUFFIXES = (".npz", ".h5", ".hdf5", ".hdf")
MOST_OPEN = 32  # 1,024 is a usual limit of open files
DEFLATE_RATIO = 1032  # no byte of zip's and gzip's compression becomes more


class Place(NamedTuple):
    """A file, and the array's name in it if the file is an archive, or its number if it is a pickled list of arrays."""

    file: str
    member: str | None = None

    def __str__(self) -> str:
        return self.file if self.member is None else f"{self.file}[{self.member}]"


class Archive(ABC):
    """An open file of many arrays."""

    @abstractmethod
    def names(self) -> list[str]:
        """Its arrays, in any order."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """An array."""

    def header(self, name: str) -> Header:
        """What an array is."""
        values = self.read(name)
        return Header(values.shape, values.dtype)

    def fact(self, name: str) -> float | None:
        """A number told about the whole archive, such as its frame rate: an array of that name."""
        return _as_number(self.read(name)) if name in self.names() else None


class Containers:
    """Reads arrays wherever they lie, for several threads; the archives used last stay open until this is let go of."""

    def __init__(self, *, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self.archive: Callable[[str], Archive] = lru_cache(MOST_OPEN)(partial(_open, allow_pickle=allow_pickle))

    def header(self, place: Place) -> Header:
        """Shape and dtype of an array."""
        if place.member is None:
            return arrays.read_header(Path(place.file), allow_pickle=self._allow_pickle)
        return self.archive(place.file).header(place.member)

    def read(self, place: Place) -> np.ndarray:
        """An array."""
        if place.member is None:
            return read_array(Path(place.file), allow_pickle=self._allow_pickle)
        return self.archive(place.file).read(place.member)


def _open(file: str, *, allow_pickle: bool) -> Archive:
    suffix = Path(file).suffix.lower()
    if suffix == ".npy":
        return _PickledArrays(Path(file), allow_pickle=allow_pickle)
    return _Npz(file) if suffix == ".npz" else _Hdf5(file)


def _as_number(fact: Any) -> float:
    """The one number that something holds, as MATLAB's are in a (1, 1) array; NaN where it holds something else."""
    try:
        return float(np.asarray(fact).item())
    except (TypeError, ValueError):
        return math.nan


@contextmanager
def _telling_damage(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"{what} ({error}): fetch or make it again.") from None


class _Npz(Archive):
    def __init__(self, file: str) -> None:
        self._file = file
        with _telling_damage(f"{file} is not a whole .npz archive"):
            self._zip = zipfile.ZipFile(file)

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        with self._open(name) as (header, _):
            return header

    def read(self, name: str) -> np.ndarray:
        with self._open(name) as (_, member):
            return read_values(member)

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[Header, Any]]:
        what = f"{self._file}[{name}]"
        with _telling_damage(f"{what} cannot be read"), self._zip.open(f"{name}.npy") as member:
            held_bytes = _most_bytes(self._zip.getinfo(f"{name}.npy"), Path(self._file).stat().st_size)
            header = arrays.parse_header(what, member, held_bytes)  # type: ignore[arg-type]
            if header.dtype.hasobject:
                raise InputError(f"{what} holds pickled Python objects: save it as an array of numbers.")
            yield header, member


def _most_bytes(member: zipfile.ZipInfo, archive_bytes: int) -> int:
    """What a member can hold at most, whatever the archive says of its size."""
    ratio = 1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
    return min(member.file_size, ratio * min(member.compress_size, archive_bytes))


class _Hdf5(Archive):
    def __init__(self, file: str) -> None:
        import h5py

        self._path = file
        with _telling_damage(f"{file} is not a whole HDF5 file"):
            self._file = h5py.File(file, "r")

    def names(self) -> list[str]:
        import h5py

        found: list[str] = []  # links, which could lead into other files, are not followed
        self._file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return found

    def header(self, name: str) -> Header:
        dataset = self._dataset(name)
        return Header(dataset.shape or (), dataset.dtype)

    def read(self, name: str) -> np.ndarray:
        with _telling_damage(f"{self._path}[{name}] cannot be read"):
            values: np.ndarray = self._dataset(name)[()]
        return values

    def fact(self, name: str) -> float | None:
        with _telling_damage(f"{self._path}: the attribute {name} cannot be read"):
            return _as_number(self._file.attrs[name]) if name in self._file.attrs else super().fact(name)

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._file[name]
        if dataset.external is not None or dataset.is_virtual:
            raise InputError(f"{self._path}[{name}] has its values in another file: copy them into this one.")
        held_bytes = dataset.id.get_storage_size()
        if dataset.nbytes > DEFLATE_RATIO * held_bytes:  # memory for all of it would be taken before any is read
            raise InputError(
                f"{self._path}[{name}] is truncated: {held_bytes:,} bytes where its shape {dataset.shape} "
                f"says {dataset.nbytes:,}; fetch or make it again."
            )
        return dataset


class _PickledArrays(Archive):
    """W-TALC's file of features: one pickle, which has to be read whole; its arrays are named by their numbers."""

    def __init__(self, path: Path, *, allow_pickle: bool) -> None:
        self._path = path
        objects: Any = plain(arrays.read_objects(path, allow_pickle=allow_pickle))
        self._objects = objects if isinstance(objects, list) else list(objects) if np.ndim(objects) == 3 else []
        if not self._objects:
            raise InputError(f"{path} is not a list of arrays, one a video, as W-TALC's features are: give the folder.")

    def names(self) -> list[str]:
        return [str(number) for number in range(len(self._objects))]

    def read(self, name: str) -> np.ndarray:
        return table_of(self._path, self._objects[int(name)])


def list_arrays(path: Path, containers: Containers) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Every array in a folder, at any depth, or in an archive: the parts of its name, suffixes left out, and its place.

    A folder's archives count as folders: the array VIDEO in `rgb_val.h5` has the parts ("rgb_val", "VIDEO").
    """
    below = (Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    for file in [path] if path.is_file() else below:
        parts = () if file == path else file.relative_to(path).with_suffix("").parts
        if file.suffix == ".npy":
            yield parts, Place(str(file))
        elif file.suffix.lower() in ARCHIVE_SUFFIXES:
            for name in containers.archive(str(file)).names():
                yield (*parts, *name.split("/")), Place(str(file), name)
