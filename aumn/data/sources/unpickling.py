"""Reading numpy's pickled object arrays from strangers: arrays, numbers and texts come out, and nothing is ever run.

A pickle is a program that calls what it names. Here every name leads to a stand-in of ours, which builds arrays from
bytes it has checked; neither a foreign function nor numpy's own way of restoring its state, which trusts its input, is
ever reached.
"""

from __future__ import annotations

import math
import pickle
import re
from typing import Any, BinaryIO

import numpy as np

from aumn.records import InputError

_PLAIN_DTYPE = re.compile(r"[<>|=]?[biufSU]\d+")
_LONGEST_ITEM_BYTES = 2**20
_DEEPEST_WRAPPING = 8


def unpickle(file: BinaryIO) -> Any:
    """The pickled array: lists for object arrays, numpy arrays for others; InputError, without a subject, for all else.

    Lists may share parts, so their size as a tree may exceed the file's without bound: count before you copy.
    """
    try:
        return plain(_ArrayUnpickler(file, encoding="latin1").load())  # latin1: numpy's advice for pickles of Python 2
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"is a damaged pickle ({error!r}): fetch or extract it again.") from None


def plain(value: Any) -> Any:
    """What a stand-in stands for; anything else as it is. An object array is the list of its items, not yet plain."""
    for _ in range(_DEEPEST_WRAPPING):
        if not isinstance(value, _Array):
            return value
        value = value.value()
    raise _refusal("wraps arrays in arrays without end")


def as_numbers(value: Any, limit: int) -> np.ndarray:
    """Unpickled rows of numbers as one array; lists as float64. `limit` bounds how many numbers lists may hold."""
    no_table = InputError("holds pickled objects that are no table of numbers: save it as an array.")
    rows = plain(value)
    if isinstance(rows, np.ndarray):
        return rows
    if not isinstance(rows, list | tuple):
        raise no_table
    rows = [plain(row) for row in rows]
    if not all(isinstance(row, list | tuple | np.ndarray) for row in rows) or len({len(row) for row in rows}) > 1:
        raise no_table
    if sum(len(row) for row in rows) > limit:
        raise _refusal("repeats its rows beyond measure")
    try:
        return np.array([np.fromiter(map(plain, row), np.float64, len(row)) for row in rows])
    except (TypeError, ValueError):
        raise no_table from None


class _ArrayUnpickler(pickle._Unpickler):
    """Knows the names that numpy itself writes for arrays and numbers, under its old and new module names.

    It is the one in Python: the one in C fills the memory if told to memoize as no. 2^32.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Every function or class that a pickle names comes through here before it is called."""
        known = _STAND_INS.get((module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins"), name))
        if known is None:
            raise _refusal(f"asks for {module}.{name} to be run")
        return known

    def load_build(self) -> None:
        """Nothing has a state that a pickle may set but what it has had made."""
        if not isinstance(self.stack[-2], _Dtype | _Array):  # type: ignore[attr-defined]
            raise _refusal("sets the state of a function")
        super().load_build()  # type: ignore[misc]

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}  # type: ignore[assignment]


class _Dtype:
    """A dtype of plain numbers or texts, or of objects; its state may change the byte order and nothing else."""

    code = "O"  # where a pickle has one made without its code

    def __init__(self, code: Any, _align: Any = False, _copy: Any = True) -> None:
        if not isinstance(code, str) or not (code in {"O", "O8"} or _PLAIN_DTYPE.fullmatch(code)):
            raise _refusal(f"asks for the dtype {code!r}")
        self.code = "O" if code.startswith("O") else code

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 8 or state[2:5] != (None, None, None):
            raise _refusal(f"asks for a dtype of the state {state!r}")
        if state[1] in {"<", ">"}:
            self.code = state[1] + self.code.lstrip("<>|=")

    def plain(self) -> np.dtype[Any]:
        """The dtype, which holds no objects."""
        dtype = np.dtype(self.code)
        if dtype.hasobject or not 0 < dtype.itemsize <= _LONGEST_ITEM_BYTES:
            raise _refusal(f"asks for numbers of the dtype {self.code!r}")
        return dtype


class _Array:
    """An array under construction: its state comes after it, and may, for objects, hold further arrays."""

    _items: Any = None

    def __init__(self, _type: Any, _shape: Any, _typecode: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, content = state
        if dtype.code != "O":
            self._items = _from_bytes(content, dtype, shape, "F" if is_fortran else "C")
        elif isinstance(content, list) and len(content) == _count(shape):
            self._items = _nest(content, shape)
        else:
            raise _refusal("asks for objects that are no list")

    def value(self) -> Any:
        """A list of objects, a numpy array, or the one object of an array without dimensions."""
        if self._items is None:
            raise _refusal("leaves an array unfinished")
        return self._items


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _refusal(f"asks for the shape {shape!r}")
    return math.prod(shape)


def _nest(items: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return items[0]
    for size in reversed(shape[1:]):
        items = [items[first : first + size] for first in range(0, len(items), max(size, 1))]
    return items


def _from_bytes(content: Any, dtype: _Dtype, shape: Any, order: Any) -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content  # Python 2's bytes
    kind = dtype.plain()
    if not isinstance(content, bytes | bytearray) or len(content) != _count(shape) * kind.itemsize:
        raise _refusal("asks for an array whose bytes do not fit its shape")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return _from_bytes(content, dtype, (1,), "C")[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """Make bytes of text, as pickles of protocol 2 and below spell their bytes."""
    if encoding != "latin1":
        raise _refusal(f"asks for the codec {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    """Spell empty bytes as protocol 2 and below do: bytes()."""
    if arguments:
        raise _refusal("asks for bytes to be made")
    return b""


def _refusal(what: str) -> InputError:
    return InputError(f"{what}, which is no array of numbers: do not trust this file.")


_STAND_INS = {
    ("numpy", "ndarray"): _Array,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_bytes,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
}
