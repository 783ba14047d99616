"""Reading .npy files that strangers made, from a folder or from inside an archive, never by ordinary unpickling.

Pickled object arrays are refused unless asked for, and then pass through `unpickling`, which can only make arrays.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from aumn.data.problems import about
from aumn.data.sources.unpickling import as_numbers, unpickle
from aumn.records import InputError

# CPython 3.11 parses literals, which numpy's headers are, with one counter for all threads, and now and then raises
# "SystemError: AST constructor recursion depth mismatch" when two threads are at it.
_parsing = threading.Lock()


class Header(NamedTuple):
    """What an array file holds."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"


def read_header(path: Path, *, allow_pickle: bool) -> Header:
    """Shape and dtype from a file's first bytes; what is pickled has to be read whole to know them."""
    with path.open("rb") as file:
        file.peek()  # waits for the file system before the lock is taken
        header = parse_header(str(path), file, path.stat().st_size)
    if not header.dtype.hasobject:
        return header
    values = read_array(path, allow_pickle=allow_pickle)
    return Header(values.shape, values.dtype)


def read_array(path: Path, *, allow_pickle: bool) -> np.ndarray:
    """The array; a pickled one, or a pickled list of rows of one length, as float64."""
    with path.open("rb") as file:
        if not parse_header(str(path), file, path.stat().st_size).dtype.hasobject:
            return read_values(file)
    return table_of(path, read_objects(path, allow_pickle=allow_pickle)).astype(np.float64)


def read_objects(path: Path, *, allow_pickle: bool) -> Any:
    """What an array of pickled objects holds, or a plain array; see `unpickling.plain` for what its items are."""
    with path.open("rb") as file:
        if not parse_header(str(path), file, path.stat().st_size).dtype.hasobject:
            return read_values(file)
        if not allow_pickle:
            raise pickle_refusal(path)
        with about(path):
            return unpickle(file)


def pickle_refusal(path: Path) -> InputError:
    """What is said of a pickle where nobody asked for pickles to be read."""
    return InputError(
        f"{path} holds pickled Python objects, which can run code when read: save it as an array of numbers, "
        "or give --allow-pickle, which reads arrays and numbers and refuses all else."
    )


def table_of(path: Path, objects: Any) -> np.ndarray:
    """Objects of a pickle as the array of numbers that they have to be."""
    with about(path):
        return as_numbers(objects, limit=path.stat().st_size)  # a pickled number takes a byte at least


def parse_header(name: str, file: BinaryIO, size_bytes: int) -> Header:
    """The header of an open .npy file of so many bytes, which is left at the first byte of its data."""
    try:
        with _parsing:
            version = np.lib.format.read_magic(file)
            parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = parse(file)
    except ValueError as error:
        raise InputError(f"{name} is not a .npy file ({error}): save the features with numpy.save.") from None
    if any(length < 0 for length in shape):
        raise InputError(f"{name} says in its header that its shape is {shape}: save the features with numpy.save.")
    data_bytes = size_bytes - file.tell()
    expected_bytes = math.prod(shape) * dtype.itemsize
    if data_bytes < expected_bytes and not dtype.hasobject:
        raise InputError(
            f"{name} is truncated: {data_bytes:,} bytes of data where its header {shape} {dtype} "
            f"says {expected_bytes:,}; fetch or extract it again."
        )
    return Header(shape, dtype, "F" if is_fortran else "C")


def read_values(file: BinaryIO) -> np.ndarray:
    """The array of an open .npy file whose header was good."""
    file.seek(0)
    values: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return values
