"""Published feature files: what is wrong with them is said in one sentence each, before anything is written."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.data.problems import OR_SKIP
from aumn.data.shards.layout import read_description
from aumn.data.shards.shard_set import ShardSet
from aumn.data.shards.stores import Folder
from aumn.data.sources.arrays import parse_header, read_array
from aumn.data.sources.values import converted, largest_magnitude
from aumn.data.truth.annotations import read_annotations
from aumn.inspect.inspection import inspect_shards
from aumn.records import InputError
from tests.data.conftest import ONE_VIDEO

FLOAT32 = {"dtype": "float32"}


def refusal(published: Any, **options: Any) -> str:
    """The message, after checking that nothing was left behind."""
    with pytest.raises(InputError) as raised:
        published.open(**FLOAT32 | options)
    assert not published.root.with_name("opened").exists()
    return str(raised.value)


def read_video(shards: ShardSet, video: str) -> dict[str, np.ndarray]:
    return shards.read([v.id for v in shards.videos].index(video))


def test_a_missing_folder(published: Any) -> None:
    (published.root / "flow").rename(published.root / "optical")
    assert "5 of 10 arrays are named as layout 'folders' has it, such as " in refusal(published)
    assert refusal(published, streams="rgb,flow,audio").endswith(
        "no flow and no audio features (layout 'folders': rgb/VIDEO, flow/VIDEO and audio/VIDEO): where they have "
        "other names, give --streams rgb=NAME,flow=NAME,audio=NAME; where one array holds all, --layout joint."
    )


def test_a_missing_stream(published: Any) -> None:
    published.path("flow", "b").unlink()
    message = refusal(published)
    assert "published has rgb of video 'b' (" in message
    assert message.endswith(f"rgb/b.npy) but no flow: extract it. {OR_SKIP}")


def test_streams_of_different_lengths_are_refused_or_trimmed(published: Any) -> None:
    published.save("flow", "a", published.features["a"]["flow"][:3])
    message = refusal(published)
    assert "the streams of video 'a' differ in length (4 of rgb, 3 of flow snippets)" in message
    assert "give --trim-streams to cut to the shortest" in message
    trimmed = read_video(published.open(**FLOAT32, trim_streams=True), "a")
    for stream, original_TD in published.features["a"].items():
        np.testing.assert_array_equal(trimmed[stream], original_TD[:3])


def test_another_width(published: Any) -> None:
    published.save("rgb", "c", np.zeros((7, 6), "float32"))
    message = refusal(published)
    assert message.endswith(
        "rgb/c.npy has width 6 where the other videos' rgb features have 5: extract it with the same network. "
        "Or leave bad videos out: --on-bad skip."
    )


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            np.zeros((0, 5), "float32"),
            f"is empty, of shape (0, 5): extract it again. {OR_SKIP}",
        ),
        (np.zeros((4, 0), "float32"), r"is empty, of shape (4, 0)"),
        (np.zeros(0, "float32"), f"is empty, of shape (0,): extract it again. {OR_SKIP}"),
        (np.zeros((2, 4, 5), "float32"), "has shape (2, 4, 5); features must be two-dimensional, snippets x width."),
        (np.zeros((4, 5), "int64"), "has dtype int64; features must be floating-point numbers."),
        (np.zeros((4, 5), "complex64"), "has dtype complex64; features must be floating-point numbers."),
    ],
)
def test_arrays_that_are_no_features(published: Any, features: np.ndarray, message: str) -> None:
    published.save("rgb", "a", features)
    assert f"rgb/a.npy {message}" in refusal(published)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(published: Any, value: float) -> None:
    features = published.features["c"]["flow"].copy()
    features[3, 1] = features[5, :2] = value
    published.save("flow", "c", features)
    message = refusal(published)
    assert message.endswith(
        "flow/c.npy has 3 NaN or infinite values, the first in snippet 3: extract it again. Or leave bad videos "
        "out: --on-bad skip."
    )


@pytest.mark.parametrize("value", [65505.0, -1e30])
def test_values_beyond_float16(published: Any, value: float) -> None:
    features = published.features["c"]["flow"].copy()
    features[6, 2] = value
    published.save("flow", "c", features)
    message = refusal(published, dtype="float16")
    assert message.endswith(f"{abs(value):g}, beyond float16's 65504: give --dtype float32. {OR_SKIP}")
    assert "flow/c.npy has a value of magnitude" in message
    assert read_video(published.open(**FLOAT32), "c")["flow"][6, 2] == np.float32(value)


def test_values_beyond_float32_and_the_largest_float16(published: Any) -> None:
    published.save("flow", "c", np.full((7, 3), 1e39))
    assert "has a value of magnitude 1e+39, beyond float32's 3.40282e+38: scale the features." in refusal(published)
    published.save("flow", "c", np.full((7, 3), -65504.0))
    assert (read_video(published.open(), "c")["flow"] == -65504).all()


@pytest.mark.parametrize("layout", ["float16", ">f4", "float64", "fortran"])
def test_any_floating_point_layout_reads(published: Any, layout: str) -> None:
    original = published.features["c"]["rgb"]
    stored = np.asfortranarray(original) if layout == "fortran" else original.astype(layout)
    published.save("rgb", "c", stored)
    packed = read_video(published.open(**FLOAT32), "c")["rgb"]
    np.testing.assert_array_equal(packed, stored.astype("float32"))


@pytest.mark.parametrize("cut", [3, 60, -1])
def test_a_truncated_file_and_one_of_another_kind(published: Any, cut: int) -> None:
    path = published.path("rgb", "b")
    path.write_bytes(path.read_bytes()[:cut])
    message = refusal(published)
    assert "rgb/b.npy is truncated: 39 bytes of data where its header" in message if cut < 0 else "is not a" in message
    with path.open("wb") as file:
        np.savez(file, features=np.zeros((2, 5)))
    assert "rgb/b.npy is not a .npy file" in refusal(published)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "video.npy"
    np.save(file, np.ones((100, 8), np.float32))

    def parse_and_cut(name: str, *rest: Any) -> Any:
        header = parse_header(name, *rest)
        os.truncate(name, 1000)
        return header

    monkeypatch.setattr("aumn.data.sources.arrays.parse_header", parse_and_cut)
    with pytest.raises(InputError, match=r"video\.npy became shorter while it was read: start again once it is left"):
        read_array(file, allow_pickle=False)


def test_bad_videos_are_left_out_counted_and_named_where_that_is_asked_for(published: Any, tmp_path: Path) -> None:
    published.path("flow", "a").unlink()
    published.save("rgb", "b", np.zeros((0, 5), "float32"))
    published.save("rgb", "c", np.full((7, 5), np.nan, "float32"))  # which is found when it is read
    published.path("rgb", "d").write_bytes(published.path("rgb", "d").read_bytes()[:-1])
    report = published.pack(tmp_path / "out", on_bad="skip", workers=2, shard_mb=ONE_VIDEO)
    shards = ShardSet.open(tmp_path / "out")
    assert [video.id for video in shards.videos] == ["e"]
    assert (report.packed, sorted(report.bad)) == ({"testing": 1}, ["a", "b", "c", "d"])
    assert [report.bad[video].partition(" ")[2][:14] for video in "bcd"] == [
        "is empty, of s",
        "has 35 NaN or ",
        "is truncated: ",
    ]
    assert read_description(Folder(tmp_path / "out")).left_out == ("a", "b", "c", "d")
    assert read_annotations(tmp_path / "out").videos.keys() == {"e"}
    assert inspect_shards(tmp_path / "out").left_out == ("a", "b", "c", "d")
    published.path("rgb", "e").unlink()
    with pytest.raises(InputError, match=r"c.npy has 35 NaN or infinite values"):  # none is left
        published.pack(tmp_path / "none", on_bad="skip")


def test_a_shape_that_no_array_has(published: Any) -> None:
    with published.path("rgb", "a").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (-1, 5)})
        file.write(bytes(80))
    assert "rgb/a.npy says in its header that its shape is (-1, 5): save the" in refusal(published)


def test_all_bad_videos_are_reported_together(publish: Callable[..., Any]) -> None:
    published = publish({"training": [f"v{number:02}" for number in range(15)]})
    for number in range(1, 12):
        published.path("rgb", f"v{number:02}").unlink()
    published.save("flow", "v13", np.zeros((3, 4), "float32"))
    published.save("rgb", "v13", np.zeros((3, 5), "float32"))
    lines = refusal(published).splitlines()
    assert lines[0] == f"12 videos in {published.root} cannot be packed:"
    assert [f"has flow of video 'v{number:02}' (" in lines[number] for number in range(1, 11)] == [True] * 10
    assert lines[11:] == ["  and 2 more.", f"  {OR_SKIP}"]


def as_objects(features_TD: np.ndarray, shape: str) -> np.ndarray:
    objects: np.ndarray
    if shape == "table":
        return features_TD.astype(object)
    if shape == "rows":
        objects = np.empty(len(features_TD), dtype=object)
        objects[:] = list(features_TD)
        return objects
    objects = np.empty((), dtype=object)
    objects[()] = features_TD
    return objects


@pytest.mark.parametrize("shape", ["table", "rows", "one array"])
def test_pickled_arrays_are_refused_unless_asked_for(published: Any, shape: str) -> None:
    original = published.features["c"]["rgb"]
    published.save("rgb", "c", as_objects(original, shape), allow_pickle=True)
    message = refusal(published)
    assert "rgb/c.npy holds pickled Python objects, which can run code when read" in message
    assert "or give --allow-pickle" in message
    np.testing.assert_array_equal(read_video(published.open(**FLOAT32, allow_pickle=True), "c")["rgb"], original)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_RunsCode()), f"asks for {os.system.__module__}.system to be run, which is no array of numbers"),
        (b"\x80\x04garbage", "is a damaged pickle"),
        (pickle.dumps(np.array(["x", "y"], dtype=object)), "holds pickled objects that are no table of numbers"),
    ],
)
def test_pickles_of_anything_else_are_refused_and_not_run(
    published: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with published.path("rgb", "c").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        file.write(content)
    assert f"rgb/c.npy {message}" in refusal(published, allow_pickle=True)
    assert not (tmp_path / "pwned").exists()


def test_halves_are_those_of_numpy_at_every_edge() -> None:
    """Every half, what lies between two, and the singles beside both, of either sign; and their largest magnitude."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    exact = np.r_[halves, (halves[:-1] + halves[1:]) / 2].view(np.uint32)
    values = np.r_[exact, exact + 1, np.maximum(exact, 1) - 1].view(np.float32)
    values = np.r_[values, -values][np.abs(np.r_[values, values]) <= 65504].reshape(-1, 2)
    expected = values.astype(np.float16)
    np.testing.assert_array_equal(converted(values, np.dtype("float16")).view(np.uint16), expected.view(np.uint16))
    for dtype in (np.float16, np.float32, np.float64):
        for some in ([1, -2, 0.5], [-3, 1, 0], [-0.0, 0, -0.0], [-1, -2, -3], [np.nan, 1, -9], [1, -np.inf, np.nan]):
            given = np.array(some, dtype)
            np.testing.assert_equal(largest_magnitude(given), float(np.abs(given).max()))
