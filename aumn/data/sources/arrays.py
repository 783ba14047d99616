"""Reading .npy files that strangers made, from a folder or from inside an archive, never by ordinary unpickling.

Pickled object arrays are refused unless asked for, and then pass through `unpickling`, which can only make arrays.
"""

from __future__ import annotations

import io
import math
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from aumn.data.problems import about
from aumn.data.sources.unpickling import as_numbers, unpickle
from aumn.records import InputError

# CPython 3.11 parses literals, which numpy's headers are, with one counter for all threads, and now and then raises
# "SystemError: AST constructor recursion depth mismatch" when two threads are at it.
_parsing = threading.Lock()
USUAL_BYTES, USUAL = 128, b"\x93NUMPY\x01\x00\x76\x00"
"""The headers that numpy writes: of one length, and alike where shapes are, so that they are parsed once."""
LONGEST_HEADER = 2**17  # more than any array of numbers needs
LARGEST_READ = 2**24  # a zip's members are unpacked in pieces


class Header(NamedTuple):
    """What an array file holds."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"


def read_header(path: Path, *, allow_pickle: bool) -> Header:
    """Shape and dtype from a file's first bytes; what is pickled has to be read whole to know them."""
    with path.open("rb", buffering=0) as file:
        start = file.read(USUAL_BYTES)  # waits for the file system before the lock is taken
        start += b"" if start.startswith(USUAL) else file.read(LONGEST_HEADER)
        header = parse_header(str(path), io.BytesIO(start), os.fstat(file.fileno()).st_size)
    if not header.dtype.hasobject:
        return header
    values = read_array(path, allow_pickle=allow_pickle)
    return Header(values.shape, values.dtype)


def read_array(path: Path, *, allow_pickle: bool) -> np.ndarray:
    """The array; a pickled one, or a pickled list of rows of one length, as float64."""
    values = _read_plain(path)
    return (
        table_of(path, read_objects(path, allow_pickle=allow_pickle)).astype(np.float64) if values is None else values
    )


def read_objects(path: Path, *, allow_pickle: bool) -> Any:
    """What an array of pickled objects holds, or a plain array; see `unpickling.plain` for what its items are."""
    if (values := _read_plain(path)) is not None:
        return values
    if not allow_pickle:
        raise pickle_refusal(path)
    with path.open("rb") as file, about(path):
        parse_header(str(path), file, path.stat().st_size)
        return unpickle(file)


def _read_plain(path: Path) -> np.ndarray | None:
    """The array of a file, if it holds no objects."""
    with path.open("rb", buffering=0) as file:
        header = parse_header(str(path), file, os.fstat(file.fileno()).st_size)
        try:
            return None if header.dtype.hasobject else read_values(file, header)
        except EOFError:
            raise InputError(f"{path} became shorter while it was read: start again once it is left alone.") from None


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
            start = file.read(USUAL_BYTES)
            if start.startswith(USUAL):
                shape, is_fortran, dtype = _parse_usual(start)
            else:
                file.seek(0)
                shape, is_fortran, dtype = _parse(file)
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


def _parse(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = parse(file)
    return found


@lru_cache(4096)
def _parse_usual(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return _parse(io.BytesIO(start))


def read_values(file: BinaryIO, header: Header) -> np.ndarray:
    """The array of an open .npy file that stands at its data, read into the array's own memory; EOFError."""
    values = np.empty(header.shape, header.dtype, header.order)
    left = values.reshape(-1, order="A").view(np.uint8).data if values.nbytes else memoryview(b"")
    while left:
        count = file.readinto(left[:LARGEST_READ])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"it lacks {len(left):,} bytes at its end")
        left = left[count:]
    return values
