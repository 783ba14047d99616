"""Where published arrays lie: .npy files in folders, members of .npz and HDF5 archives, items of one pickled array.

Nothing in them can run code or lead to another file.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aumn.data.sources.arrays import Header, parse_header, read_array, read_header, read_objects, reshape, table_of
from aumn.data.sources.unpickling import plain
from aumn.records import InputError

if TYPE_CHECKING:
    import h5py

NPZ_SUFFIXES = (".npz",)
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
MOST_OPEN = 32  # 1,024 is a usual limit of open files
ARCHIVE_SUFFIXES = (*NPZ_SUFFIXES, *HDF5_SUFFIXES)


class Place(NamedTuple):
    """A file, and the array's name in it if the file is an archive, or its number if it is a pickled list of arrays."""

    file: str
    member: str | None = None

    def __str__(self) -> str:
        return self.file if self.member is None else f"{self.file}[{self.member}]"


class Archive:
    """An open file of many arrays."""

    def names(self) -> list[str]:
        """Its arrays, in any order."""
        raise NotImplementedError

    def header(self, name: str) -> Header:
        """What an array is."""
        values = self.read(name)
        return Header(values.shape, False, values.dtype)

    def read(self, name: str) -> np.ndarray:
        """An array."""
        raise NotImplementedError

    def fact(self, name: str) -> float | None:
        """A number told about the whole archive, such as its frame rate: a scalar of that name."""
        return float(self.read(name)) if name in self.names() and not self.header(name).shape else None


class Containers:
    """Reads arrays wherever they lie, for several threads; the archives used last stay open until this is let go of."""

    def __init__(self, *, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._open: OrderedDict[str, Archive] = OrderedDict()
        self._opening = threading.Lock()

    def archive(self, file: str) -> Archive:
        """An archive, opened if it is not open yet."""
        with self._opening:
            if file not in self._open:
                self._open[file] = _open_archive(file, allow_pickle=self._allow_pickle)
            self._open.move_to_end(file)
            archive = self._open[file]
            if len(self._open) > MOST_OPEN:  # whoever is reading from it still holds it
                self._open.popitem(last=False)
        return archive

    def header(self, place: Place) -> Header:
        """Shape and dtype of an array."""
        if place.member is None:
            return read_header(Path(place.file), allow_pickle=self._allow_pickle)
        return self.archive(place.file).header(place.member)

    def read(self, place: Place) -> np.ndarray:
        """An array."""
        if place.member is None:
            return read_array(Path(place.file), allow_pickle=self._allow_pickle)
        return self.archive(place.file).read(place.member)


def _open_archive(file: str, *, allow_pickle: bool) -> Archive:
    suffix = Path(file).suffix.lower()
    if suffix in NPZ_SUFFIXES:
        return _Npz(file)
    return _Hdf5(file) if suffix in HDF5_SUFFIXES else _PickledArrays(Path(file), allow_pickle=allow_pickle)


class _Npz(Archive):
    def __init__(self, file: str) -> None:
        self._file = file
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise InputError(f"{file} is not a whole .npz archive ({error}): fetch or make it again.") from None

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        return self._read(name, header_only=True)[0]

    def read(self, name: str) -> np.ndarray:
        header, values = self._read(name, header_only=False)
        return reshape(values, header)

    def _read(self, name: str, *, header_only: bool) -> tuple[Header, np.ndarray]:
        try:
            with self._zip.open(f"{name}.npy") as member:
                size_bytes = self._zip.getinfo(f"{name}.npy").file_size
                header = parse_header(f"{self._file}[{name}]", member, size_bytes)  # type: ignore[arg-type]
                if header.dtype.hasobject:
                    raise InputError(
                        f"{self._file}[{name}] holds pickled Python objects: save it as an array of numbers."
                    )
                content = b"" if header_only else member.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self._file}[{name}] cannot be read ({error}): fetch or make it again.") from None
        return header, np.frombuffer(content, header.dtype)


class _Hdf5(Archive):
    def __init__(self, file: str) -> None:
        import h5py

        self._path = file
        try:
            self._file = h5py.File(file, "r")
        except OSError as error:
            raise InputError(f"{file} is not a whole HDF5 file ({error}): fetch or make it again.") from None

    def names(self) -> list[str]:
        import h5py

        found: list[str] = []  # links, which could lead into other files, are not followed
        self._file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return found

    def header(self, name: str) -> Header:
        dataset = self._dataset(name)
        return Header(dataset.shape or (), False, dataset.dtype)

    def read(self, name: str) -> np.ndarray:
        try:
            values: np.ndarray = self._dataset(name)[()]
        except OSError as error:
            raise InputError(f"{self._path}[{name}] cannot be read ({error}): fetch or make it again.") from None
        return values

    def fact(self, name: str) -> float | None:
        return float(self._file.attrs[name]) if name in self._file.attrs else super().fact(name)

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._file[name]
        if dataset.external is not None or dataset.is_virtual:
            raise InputError(f"{self._path}[{name}] has its values in another file: copy them into this one.")
        return dataset


class _PickledArrays(Archive):
    """W-TALC's file of features: one pickle, which has to be read whole; its arrays are named by their numbers."""

    def __init__(self, path: Path, *, allow_pickle: bool) -> None:
        self._path = path
        objects: Any = plain(read_objects(path, allow_pickle=allow_pickle))
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
    if path.is_file():
        yield from ((tuple(name.split("/")), place) for name, place in _members(path, containers))
        return
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            file = Path(folder, name)
            parts = file.relative_to(path).with_suffix("").parts
            if file.suffix == ".npy":
                yield parts, Place(str(file))
            elif file.suffix.lower() in ARCHIVE_SUFFIXES:
                yield from (((*parts, *name.split("/")), place) for name, place in _members(file, containers))


def _members(file: Path, containers: Containers) -> Iterator[tuple[str, Place]]:
    for name in containers.archive(str(file)).names():
        yield name, Place(str(file), name)
