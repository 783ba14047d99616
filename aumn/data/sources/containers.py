"""Where published arrays lie: files in folders, members of archives, items of pickles.

Nothing in them can run code or lead to another file.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aumn.data.columns import Texts
from aumn.data.problems import about
from aumn.data.sources import arrays
from aumn.data.sources.arrays import Header, read_array, read_values, table_of
from aumn.data.sources.unpickling import as_numbers, plain, unpickle
from aumn.records import InputError

if TYPE_CHECKING:
    import h5py

KINDS = ((".npy", ".npz", ".h5", ".hdf5", ".hdf"), (".mat",), (".pt", ".pth"), (".csv",), (".pkl", ".pickle"))
"""Files that hold features, by their ends. Those of a later kind count where a folder has none of an earlier: a CSV
beside .npy files is something else."""
SINGLE_SUFFIXES = (".npy", ".csv")
PICKLE_SUFFIXES = KINDS[-1]
TORCH_SUFFIXES = KINDS[2]
DECODED_SUFFIXES = (".npy", ".npz", *TORCH_SUFFIXES, *PICKLE_SUFFIXES, ".pyd")
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
        if place.member is None and not place.file.lower().endswith(".csv"):
            return arrays.read_header(Path(place.file), allow_pickle=self._allow_pickle)
        if place.member is None:
            values = self.read(place)
            return Header(values.shape, values.dtype)
        return self.archive(place.file).header(place.member)

    def read(self, place: Place) -> np.ndarray:
        """An array."""
        if place.member is None and place.file.lower().endswith(".csv"):
            return _read_csv(place.file)
        if place.member is None:
            return read_array(Path(place.file), allow_pickle=self._allow_pickle)
        return self.archive(place.file).read(place.member)


def _open(file: str, *, allow_pickle: bool) -> Archive:
    suffix, path = Path(file).suffix.lower(), Path(file)
    if suffix == ".npy":
        return _Pickled(path, _objects_by_number(path, allow_pickle))
    if suffix in PICKLE_SUFFIXES:
        return _Pickled(path, _objects_by_name(path, allow_pickle))
    if suffix == ".mat":
        with path.open("rb") as opened:
            return _Mat73(file) if opened.read(10) == b"MATLAB 7.3" else _Loaded(file, _load_mat)
    if suffix in TORCH_SUFFIXES:
        return _Loaded(file, _load_torch)
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
    def __init__(self, file: str, content: bytes | None = None) -> None:
        self._file = file
        self._bytes = Path(file).stat().st_size if content is None else len(content)
        with _telling_damage(f"{file} is not a whole .npz archive"):
            self._zip = zipfile.ZipFile(file if content is None else io.BytesIO(content))

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        with self._open(name) as (header, _):
            return header

    def read(self, name: str) -> np.ndarray:
        with self._open(name) as (header, member):
            return read_values(member, header)

    def content(self, name: str) -> bytes:
        """An array's .npy file."""
        with self._open(name) as (header, member):
            size = member.tell() + math.prod(header.shape) * header.dtype.itemsize
            member.seek(0)
            held: bytes = member.read(size)
        return held

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[Header, Any]]:
        what = f"{self._file}[{name}]"
        with _telling_damage(f"{what} cannot be read"), self._zip.open(f"{name}.npy") as member:
            held_bytes = _most_bytes(self._zip.getinfo(f"{name}.npy"), self._bytes)
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


class _Mat73(_Hdf5):
    """MATLAB's newer files are HDF5, with every array's axes the other way round."""

    def header(self, name: str) -> Header:
        header = super().header(name)
        return header._replace(shape=header.shape[::-1])

    def read(self, name: str) -> np.ndarray:
        return super().read(name).T


class _Loaded(Archive):
    """A file that a library of its kind loads whole."""

    def __init__(self, file: str, load: Callable[[str], Any]) -> None:
        with _telling_damage(f"{file} cannot be read"):
            self._arrays: dict[str, np.ndarray] = load(file)

    def names(self) -> list[str]:
        return list(self._arrays)

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


def _by_name(value: Any, file: str, limit: int) -> dict[str, Any]:
    """A video's arrays, or those of its streams, out of dicts in dicts, with names like paths.

    Dicts may share parts, so what they hold as a tree is without bound: `limit`, the file's bytes, is one.
    """

    def flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict) or name.count("/") > 2:
            yield name, value
            return
        for key, item in value.items():
            yield from flatten(item, f"{name}/{key}".lstrip("/"))

    found = list(islice(flatten(value, ""), limit + 1))
    if len(found) > limit:
        raise InputError(f"{file} repeats its parts beyond measure, so it is no file of features: do not trust it.")
    return dict(found)


def _load_mat(file: str) -> dict[str, Any]:
    from scipy.io import loadmat

    return {name: value for name, value in loadmat(file).items() if not name.startswith("__")}


def _load_torch(file: str, content: bytes | None = None) -> dict[str, np.ndarray]:
    """Tensors alone: `weights_only` refuses everything that could run."""
    import torch

    size = Path(file).stat().st_size if content is None else len(content)

    def convert(value: Any) -> np.ndarray:
        if not isinstance(value, torch.Tensor):
            return np.asarray(value)
        if value.nbytes > size:  # a view that repeats what there is
            raise InputError(f"{file} says that it holds {value.nbytes:,} bytes and is smaller: save it again.")
        array: np.ndarray = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        return array

    loaded = torch.load(file if content is None else io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: convert(value) for name, value in _by_name(loaded, file, size).items()}


def _read_csv(file: str) -> np.ndarray:
    """A row a snippet, below a line of names or none, as mmaction2's and BSN's features are."""
    with _telling_damage(f"{file} is no table of numbers"):
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        if lines and not re.match(r"\s*[-+.\d]|\s*nan", lines[0], re.IGNORECASE):
            del lines[0]
        return np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, 0))


class _Pickled(Archive):
    """What a pickle held, which has to be read whole."""

    def __init__(self, path: Path, objects: dict[str, Any]) -> None:
        self._path, self._objects = path, objects

    def names(self) -> list[str]:
        return list(self._objects)

    def read(self, name: str) -> np.ndarray:
        return table_of(self._path, self._objects[name])


def _objects_by_number(path: Path, allow_pickle: bool) -> dict[str, Any]:
    """W-TALC's file of features: its arrays are named by their numbers."""
    objects: Any = plain(arrays.read_objects(path, allow_pickle=allow_pickle))
    if not isinstance(objects, list) and np.ndim(objects) != 3:
        objects = []
    if len(objects) == 0:
        raise InputError(f"{path} is not a list of arrays, one a video, as W-TALC's features are: give the folder.")
    return {str(number): array for number, array in enumerate(objects)}


def _objects_by_name(path: Path, allow_pickle: bool) -> dict[str, Any]:
    if not allow_pickle:
        raise arrays.pickle_refusal(path)
    with path.open("rb") as file, about(path):
        objects = unpickle(file)
    if not isinstance(objects, dict):
        raise InputError(f"{path} is no dict of arrays by the videos' names: save an array a video.")
    return _by_name(objects, str(path), path.stat().st_size)


def decode(name: str, content: bytes | memoryview) -> np.ndarray:
    """The one array in the bytes of a file that lies elsewhere, such as in a tar; its name tells the kind.

    Of several arrays the one of two dimensions or more. Pickles pass through `unpickling`, which makes arrays alone.
    """
    suffix = Path(name).suffix.lower()
    with _telling_damage(f"{name} cannot be read"):
        if suffix == ".npy":
            return _npy_of(name, content)
        if suffix == ".npz":
            archive = _Npz(name, bytes(content))
            found = {each: _npy_of(f"{name}[{each}]", archive.content(each)) for each in archive.names()}
        elif suffix in TORCH_SUFFIXES:
            found = _load_torch(name, bytes(content))
        elif suffix in DECODED_SUFFIXES:
            with about(name):
                objects = _by_name(unpickle(io.BytesIO(content)), name, len(content))
                found = {each: as_numbers(value, len(content)) for each, value in objects.items()}
        else:
            raise InputError(f"{name} is none of {', '.join(DECODED_SUFFIXES)}, which can hold an array.")
        tables = [values for values in found.values() if values.ndim > 1]
        if len(tables) != 1:
            held = ", ".join(f"{each or 'array'} {values.shape}" for each, values in found.items()) or "nothing"
            raise InputError(f"{name} holds {held[:200]}; it must hold one array, snippets x width.")
        return tables[0]


def _npy_of(name: str, content: bytes | memoryview) -> np.ndarray:
    file = io.BytesIO(content[: arrays.LONGEST_HEADER])
    header = arrays.parse_header(name, file, len(content))
    if header.dtype.hasobject:
        raise InputError(f"{name} holds pickled Python objects: save it as an array of numbers.")
    values = np.frombuffer(content, header.dtype, math.prod(header.shape), file.tell())
    return values.reshape(header.shape, order=header.order)


def list_arrays(path: Path, containers: Containers) -> Iterator[tuple[str, str | None]]:
    """Every array in a folder, at any depth, or in an archive: its file, seen from the path, and its name in there."""
    files = Texts([""] if path.is_file() else _files_below(path))

    def suffix_of(file: str) -> str:
        return os.path.splitext(file or path.name)[1].lower()

    seen = Counter(map(suffix_of, files))
    kind = next((kind for kind in KINDS if seen.keys() & set(kind)), None)
    if kind is None:
        shown = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in seen.most_common(5))
        *others, last = (suffix for kind in KINDS for suffix in kind)
        raise InputError(
            f"{path} holds no features but {shown or 'nothing'}: give {', '.join(others)} or {last} files."
        )
    for file in (file for file in files if suffix_of(file) in kind):
        if suffix_of(file) in SINGLE_SUFFIXES:
            yield file, None
        else:
            yield from ((file, name) for name in containers.archive(str(path / file)).names())


def _files_below(path: Path) -> Iterator[str]:
    """Seen from the path."""
    for folder, _, names in os.walk(path, followlinks=True):
        below = Path(folder).relative_to(path).as_posix()
        yield from (name if below == "." else f"{below}/{name}" for name in names)
