"""Malicious pickles against the reader of object arrays: it makes arrays, runs nothing, and is not talked into more."""

import builtins
import os
import pickle
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.data.sources.arrays import read_array
from aumn.data.sources.unpickling import as_numbers, plain, unpickle
from aumn.records import InputError

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
DTYPE = b"cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR"


def read(content: bytes) -> Any:
    return unpickle(BytesIO(content))


def refused(content: bytes) -> str:
    with pytest.raises(InputError) as raised:
        as_numbers(read(content), limit=len(content))
    return str(raised.value)


class Call:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch pwned",), "system"),
        (exec, ("open('pwned', 'w')",), "exec"),
        (eval, ("1",), "eval"),
        (getattr, (b"", "join"), "getattr"),
        (builtins.open, ("pwned", "w"), "open"),
        (np.load, ("pwned",), "load"),
        (np.fromfile, ("pwned",), "fromfile"),
        (np.memmap, ("pwned", "f8", "w+", 0, (9,)), "memmap"),
        (np.vectorize, (len,), "vectorize"),
    ],
)
def test_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: Any, arguments: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(pickle.dumps([1.0, [Call(function, *arguments)]], protocol))
    assert f".{name} to be run, which is no array of numbers: do not trust this file" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        b"cnumpy\ncore\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"cnumpy._core._multiarray_umath\nfromfile\n.",
        b"caumn.data.sources.unpickling\n_ArrayUnpickler\n.",
        b"cbuiltins\nobject\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    ],
)
def test_no_other_name_is_known(name: bytes) -> None:
    assert "to be run, which is no array of numbers" in refused(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cnumpy\nndarray\n(I9\ntR.", "is a damaged pickle"),
        (b"cbuiltins\nbytes\n(I9999999999\ntR.", "asks for bytes to be made"),
        (b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.", "asks for the codec 'zip'"),
        (b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR.", "asks for the dtype 'V8'"),
        (b"cnumpy\ndtype\n((lp0\ntR.", "asks for the dtype []"),
        (b"cnumpy\ndtype\n(S'f8,O'\ntR.", "asks for the dtype 'f8,O'"),
        (DTYPE + b"(I3\nS'<'\nNS'x'\n(dI-1\nI-1\nI0\ntb.", "asks for a dtype of the state"),
        (b"cnumpy\ndtype\n(dp0\nS'__class__'\nI1\nsb.", "sets the state of a function"),
        (b"cnumpy\ndtype\n(dp0\nS'x'\nI1\nsb.", "sets the state of a function"),
        (b"cnumpy\ndtype\n(N(dp0\nS'_call'\nI1\nstb.", "sets the state of a function"),
        (b"c_codecs\nencode\n(N(dp0\nS'x'\nI1\nstb.", "sets the state of a function"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)\x81.", "leaves an array unfinished"),
        (b"cnumpy\ndtype\n)\x81(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb.", "no table of numbers"),
        (RECONSTRUCT + b"(I1\n(I9\nt" + DTYPE + b"I00\nS'12345678'\ntb.", "bytes do not fit its shape"),
        (RECONSTRUCT + b"(I1\n(I-1\nt" + DTYPE + b"I00\nS'12345678'\ntb.", "asks for the shape (-1,)"),
        (RECONSTRUCT + b"(I1\n(I1\nt" + DTYPE.replace(b"f8", b"S0") + b"I00\nS''\ntb.", "numbers of the dtype 'S0'"),
        (RECONSTRUCT + b"(I1\n(I1\nt" + DTYPE.replace(b"f8", b"O8") + b"I00\nS'12345678'\ntb.", "that are no list"),
        (RECONSTRUCT + b"(I1\n(I2\nt" + DTYPE.replace(b"f8", b"O8") + b"I00\n(lI1\natb.", "that are no list"),
        (RECONSTRUCT + b".", "leaves an array unfinished"),
        (b"cnumpy.core.multiarray\nscalar\n(" + DTYPE.replace(b"f8", b"O8") + b"S'12345678'\ntR.", "dtype 'O'"),
        (b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"S'1234'\ntR.", "bytes do not fit its shape"),
        (b"\x80\x02\x82\x01.", "is a damaged pickle"),  # an extension code
        (b"Pabc\n.", "is a damaged pickle"),  # a persistent id
        (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "is a damaged pickle"),  # bytes of 4 EiB
        (b"N" + b"r" + struct.pack("<I", 2**32 - 1) + b".", "no table of numbers"),  # a memo of 64 GiB
        (b"\x80\x09.", "is a damaged pickle"),
        (b"", "is a damaged pickle"),
        (b"I1\n.", "holds pickled objects that are no table of numbers"),
        (pickle.dumps({"a": 1}), "holds pickled objects that are no table of numbers"),
        (pickle.dumps([["1.5"], ["x"]]), "holds pickled objects that are no table of numbers"),
        (pickle.dumps([[1.0], [1.0, 2.0]]), "holds pickled objects that are no table of numbers"),
        (pickle.dumps([[[1.0]]]), "holds pickled objects that are no table of numbers"),
    ],
)
def test_numpys_own_names_are_not_turned_against_it(content: bytes, message: str) -> None:
    assert message in refused(content)


def test_a_row_repeated_by_reference_is_no_way_to_fill_the_memory() -> None:
    row = [1.0] * 1000
    assert "repeats its rows beyond measure" in refused(pickle.dumps([row] * 200_000))


def test_nested_references_are_not_unfolded() -> None:
    laugh: list[Any] = [1.0]
    for _ in range(100):
        laugh = [laugh] * 10
    assert "no table of numbers" in refused(pickle.dumps(laugh))


def test_an_array_inside_itself() -> None:
    selves = np.empty((), dtype=object)
    selves[()] = selves
    assert "wraps arrays in arrays without end" in refused(pickle.dumps(selves))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4)),
        np.array([b"short", b"a longer one"]),
        np.array(["ä", "日本"]),
        np.zeros((0, 4)),
        np.float32(3),
    ],
)
def test_honest_arrays_come_out_as_they_went_in(protocol: int, array: Any) -> None:
    held = np.empty(1, dtype=object)
    held[0] = array
    (found,) = plain(read(pickle.dumps(held, protocol)))
    np.testing.assert_array_equal(plain(found), array)


def test_garbage_never_ends_in_anything_but_a_sentence(tmp_path: Path) -> None:
    """Honest pickles with bytes changed at random."""
    rng = np.random.default_rng(0)
    rows = np.empty(3, dtype=object)
    rows[:] = [np.arange(4.0), [np.float32(1), 2, 3.0, 4], np.arange(4, dtype="f4")]
    path = tmp_path / "rows.npy"
    np.save(path, rows, allow_pickle=True)
    honest = path.read_bytes()
    outcomes = set()
    for _ in range(1000):
        content = bytearray(honest)
        for at in rng.integers(128, len(honest), rng.integers(1, 6)):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_array(path, allow_pickle=True)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
