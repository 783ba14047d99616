"""Reading .npy files that strangers made, never by ordinary unpickling.

Pickled object arrays are refused unless asked for, and then pass through an unpickler that knows numpy's arrays, bytes
and numbers, and nothing that could run code.
"""

from __future__ import annotations

import math
import pickle
import threading
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aumn.records import InputError

# CPython 3.11 parses literals, which numpy's headers are, with one counter for all threads, and now and then raises
# "SystemError: AST constructor recursion depth mismatch" when two threads are at it.
_parsing = threading.Lock()


class Header(NamedTuple):
    """What an array file holds."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


def read_header(path: Path, *, allow_pickle: bool) -> Header:
    """Shape and dtype from a file's first bytes; what is pickled has to be read whole to know them."""
    with path.open("rb") as file:
        header = _parse_header(path, file)
    if header.dtype.hasobject:
        values = read_array(path, allow_pickle=allow_pickle)
        return Header(values.shape, False, values.dtype)
    return header


def read_array(path: Path, *, allow_pickle: bool) -> np.ndarray:
    """The array; a pickled one, or a pickled list of rows of one length, as float64."""
    with path.open("rb") as file:
        shape, fortran_order, dtype = _parse_header(path, file)
        if dtype.hasobject:
            return _unpickle(path, file, allow_pickle)
        values = np.fromfile(file, dtype, math.prod(shape))
    return values.reshape(shape, order="F" if fortran_order else "C")


def _parse_header(path: Path, file: BufferedReader) -> Header:
    file.peek()  # waits for the file system before the lock is taken
    try:
        with _parsing:
            version = np.lib.format.read_magic(file)
            parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            header = Header(*parse(file))
    except ValueError as error:
        raise InputError(f"{path} is not a .npy file ({error}): save the features with numpy.save.") from None
    data_bytes = path.stat().st_size - file.tell()
    expected_bytes = math.prod(header.shape) * header.dtype.itemsize
    if data_bytes < expected_bytes and not header.dtype.hasobject:
        raise InputError(
            f"{path} is truncated: {data_bytes:,} bytes of data where its header {header.shape} {header.dtype} "
            f"says {expected_bytes:,}; fetch or extract it again."
        )
    return header


def _unpickle(path: Path, file: BufferedReader, allow_pickle: bool) -> np.ndarray:
    if not allow_pickle:
        raise InputError(
            f"{path} holds pickled Python objects, which can run code when read: save it as an array of numbers, "
            "or give --allow-pickle, which reads arrays and numbers and refuses all else."
        )
    try:
        values = _ArrayUnpickler(file, encoding="latin1").load()  # latin1: numpy's advice for pickles of Python 2
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} is a damaged pickle ({error!r}): fetch or extract it again.") from None
    try:
        return np.array(values.tolist(), dtype=np.float64)
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{path} holds pickled objects that are no table of numbers: save it as an array.") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Knows what numpy itself writes for arrays and scalars of numbers, under its old and new module names."""

    _KNOWN = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Every function or class that a pickle names comes through here before it is called."""
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in self._KNOWN:
            raise InputError(
                f"asks for {module}.{name} to be run, which is no array of numbers: do not trust this file."
            )
        return super().find_class(module, name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Make bytes of text, as pickles of protocol 2 and below spell their bytes."""
    if encoding != "latin1":
        raise InputError(f"asks for the codec {encoding!r}, which is no array of numbers: do not trust this file.")
    return text.encode("latin1")
