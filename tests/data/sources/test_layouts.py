"""The same features in every layout that releases have: found by looking, said, and packed to the same content."""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from aumn.data.packing.packing import pack
from aumn.data.packing.planning import PackingReport
from aumn.data.shards.shard_set import ShardSet
from aumn.data.sources.streams import parse_joint, parse_streams
from aumn.records import STREAM_NAME, InputError, check_streams

Arrays = dict[str, dict[str, np.ndarray]]  # video -> stream -> T x D


def joined(streams: dict[str, np.ndarray], order: tuple[str, ...] = ("rgb", "flow")) -> np.ndarray:
    return np.concatenate([streams[stream] for stream in order], axis=1)


def as_files(root: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, features_TD in arrays.items():
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, features_TD)
    return root


def as_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if "compressed" in path.name else np.savez)(path, **arrays)
    return path


def as_hdf5(path: Path, arrays: dict[str, np.ndarray], **facts: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, features_TD in arrays.items():
            file.create_dataset(name, data=features_TD, compression="gzip")
        file.attrs.update(facts)
    return path


def by_stream(features: Arrays, pattern: str) -> dict[str, np.ndarray]:
    return {
        pattern.format(video=video, stream=stream, Stream=stream.upper()): streams[stream]
        for video, streams in features.items()
        for stream in ("rgb", "flow")
    }


def halves(features: Arrays) -> dict[str, np.ndarray]:
    return {video: joined(streams) for video, streams in features.items()}


def per_stream_files(root: Path, features: Arrays, write: Callable[..., Path], suffix: str) -> Path:
    """G-TAD's way: a file a stream and subset."""
    parts = {"val": dict(list(features.items())[:3]), "test": dict(list(features.items())[3:])}
    for stream in ("rgb", "flow"):
        for name, part in parts.items():
            write(root / f"{stream}_{name}{suffix}", {video: streams[stream] for video, streams in part.items()})
    return root


def per_video_npz(root: Path, features: Arrays) -> Path:
    for video, streams in features.items():
        as_npz(root / f"{video}.npz", streams)
    return root


def split_above(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{'train' if name[-1] in 'abc' else 'test'}/{name}": array for name, array in arrays.items()}


def split_after(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name if name[-1] in "abc" else name.replace("/", "Test/"): array for name, array in arrays.items()}


def as_mat(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(exist_ok=True)
    savemat(path, arrays | {"fps": 25.0})


def as_mat73(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
    with path.open("r+b") as opened:
        opened.write(b"MATLAB 7.3 MAT-file")


def as_torch(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save(torch.utils._pytree.tree_map(torch.from_numpy, value), path)


def as_csv(path: Path, features_TD: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    names = [",".join(f"f{column}" for column in range(features_TD.shape[1]))] * path.stem.startswith("a")
    path.write_text("\n".join([*names, *(",".join(map(repr, row)) for row in features_TD.tolist())]))


def as_pickle(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(value))


LAYOUTS: dict[str, tuple[str, Callable[[Path, Arrays], object]]] = {
    "VIDEO_rgb.npy": ("suffixes", lambda root, f: as_files(root, by_stream(f, "{video}_{stream}"))),
    "RGB folders": ("folders", lambda root, f: as_files(root, by_stream(f, "{Stream}/{video}"))),
    "i3d-rgb folders": ("folders", lambda root, f: as_files(root, by_stream(f, "i3d-{stream}/{video}"))),
    "joint files": ("joint", lambda root, f: as_files(root, halves(f))),
    "joint npz": ("joint", lambda root, f: as_npz(root / "all.npz", halves(f))),
    "compressed npz": ("joint", lambda root, f: as_npz(root / "compressed.npz", halves(f))),
    "npz rgb/VIDEO": ("folders", lambda root, f: as_npz(root / "all.npz", by_stream(f, "{stream}/{video}"))),
    "npz a video": ("suffixes", per_video_npz),
    "joint HDF5": ("joint", lambda root, f: as_hdf5(root / "all.h5", halves(f))),
    "VIDEO/c3d_features": (
        "joint",
        lambda root, f: as_hdf5(root / "all.hdf5", {f"{v}/c3d_features": a for v, a in halves(f).items()}),
    ),
    "HDF5 VIDEO/rgb": ("suffixes", lambda root, f: as_hdf5(root / "all.h5", by_stream(f, "{video}/{stream}"))),
    "HDF5 rgb/VIDEO": ("folders", lambda root, f: as_hdf5(root / "all.h5", by_stream(f, "{stream}/{video}"))),
    "joint HDF5 a subset": (
        "joint",
        lambda root, f: (
            [as_hdf5(root / f"{v}{i}.h5", dict(list(halves(f).items())[i::2])) for i, v in enumerate("xy")] and root
        ),
    ),
    "rgb_val.h5": ("folders", lambda root, f: per_stream_files(root, f, as_hdf5, ".h5")),
    "train/rgb/VIDEO": ("folders", lambda root, f: as_files(root, split_above(by_stream(f, "{stream}/{video}")))),
    "train/VIDEO": ("joint", lambda root, f: as_files(root, split_above(halves(f)))),
    "RGBTest folders": ("folders", lambda root, f: as_files(root, split_after(by_stream(f, "{Stream}/{video}")))),
    "VIDEO.mp4.npy": ("folders", lambda root, f: as_npz(root / "all.npz", by_stream(f, "{stream}/{video}.mp4.npy"))),
    "VIDEO.mp4": ("folders", lambda root, f: as_files(root, by_stream(f, "{stream}/{video}.mp4"))),
    "mat a video": ("suffixes", lambda root, f: [as_mat(root / f"{v}.mat", streams) for v, streams in f.items()]),
    "MATLAB 7.3": ("suffixes", lambda root, f: [as_mat73(root / f"{v}.mat", streams) for v, streams in f.items()]),
    "pt a video": ("joint", lambda root, f: [as_torch(root / f"{v}.pt", joined(streams)) for v, streams in f.items()]),
    "pt of a dict": ("suffixes", lambda root, f: as_torch(root / "all.pt", f)),
    "csv a video": ("joint", lambda root, f: [as_csv(root / f"{v}.csv", joined(streams)) for v, streams in f.items()]),
    "rgb_val.npz": ("folders", lambda root, f: per_stream_files(root, f, as_npz, ".npz")),
}


@pytest.fixture
def even(published: Any) -> Any:
    """The small dataset with both streams equally wide, as joint arrays need."""
    for video, streams in published.features.items():
        streams["flow"] = np.concatenate([streams["flow"], streams["flow"][:, :2] + 1], axis=1)
        published.save("flow", video, streams["flow"])
    return published


def pack_from(published: Any, source: Path, name: str = "packed", **options: Any) -> tuple[PackingReport, ShardSet]:
    out = published.root.with_name(name)
    report = published.pack(out, source, **{"dtype": "float32"} | options)
    return report, ShardSet.open(out)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_found_said_and_packed_alike(even: Any, tmp_path: Path, name: str) -> None:
    expected = pack_from(even, even.root, "expected")[1].identity
    layout, write = LAYOUTS[name]
    source = tmp_path / "release"
    made = write(source, even.features)
    source = made if isinstance(made, Path) else source
    told = {"layout": "joint"} if layout == "joint" else {}  # never cut in two by guess
    report, shards = pack_from(even, source, **told)
    assert shards.identity == expected
    assert f"layout {layout} (" in report.source
    assert ("as told" if told else "found by looking") in report.source
    assert ("columns 0-4 rgb, 5-9 flow" in report.source) == (layout == "joint")


def crops_of(features_TD: np.ndarray, count: int, centre: int) -> list[np.ndarray]:
    """Crops whose centre, and no other, is the array itself; and nor is their mean."""
    return [features_TD if crop == centre else features_TD + 1 for crop in range(count)]


def each(features: Arrays, how: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return {name: how(array) for name, array in by_stream(features, "{stream}/{video}").items()}


def as_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("FLOW", "OF"): array for name, array in arrays.items()}


def around(array: np.ndarray) -> np.ndarray:
    return np.stack([array + offset for offset in (-2, -1, 0, 1, 2)], 1)


def one_dimension_where_short(array: np.ndarray) -> np.ndarray:
    return array[0] if len(array) == 2 else array


TOLD: dict[str, tuple[dict[str, Any], Callable[[Path, Arrays], object]]] = {
    "joint by its columns": ({"joint": "rgb,flow"}, lambda root, f: as_files(root, halves(f))),
    "streams by name": (
        {"streams": "rgb=RGB,flow=OF"},
        lambda root, f: as_files(root, as_of(by_stream(f, "{Stream}/{video}"))),
    ),
    "suffix": ({"suffix": "_i3d"}, lambda root, f: as_files(root, by_stream(f, "{stream}/{video}_i3d"))),
    "ones": ({}, lambda root, f: as_files(root, each(f, lambda a: a[:, None, :, None]))),
    "one in front": ({}, lambda root, f: as_files(root, each(f, lambda a: a[None]))),
    "ten crops, centre": (
        {"crops": "centre"}, lambda root, f: as_files(root, each(f, lambda a: np.stack(crops_of(a, 10, 4), 1)))
    ),
    "five crops first, by number": (
        {"crops": "2"}, lambda root, f: as_files(root, each(f, lambda a: np.stack(crops_of(a, 5, 2))))
    ),
    "five crops, mean": ({"crops": "mean"}, lambda root, f: as_files(root, each(f, around))),
    "VIDEO__0, centre": (
        {"crops": "centre"},
        lambda root, f: [
            as_files(root, {f"{name}__{number}": crop})
            for name, a in each(f, np.copy).items() for number, crop in enumerate(crops_of(a, 5, 0))
        ],
    ),
    "VIDEO__0, mean": (
        {"crops": "mean"},
        lambda root, f: [
            as_files(root, {f"{name}__{number}": around(a)[:, number]})
            for name, a in each(f, np.copy).items() for number in range(5)
        ],
    ),
    "D x T": ({"transposed": True}, lambda root, f: as_files(root, each(f, np.transpose))),
    "pickled dict": ({"allow_pickle": True, "layout": "joint"}, lambda root, f: as_pickle(root / "all.pkl", halves(f))),
    "pickled dicts": ({"allow_pickle": True}, lambda root, f: as_pickle(root / "all.pkl", f)),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_what_has_to_be_told_is_packed_alike(even: Any, tmp_path: Path, name: str) -> None:
    for streams in even.features.values():  # sums of a few of these are exact
        for stream in streams:
            streams[stream] = np.round(streams[stream] * 8) / 8 + 0.0
    for video, streams in even.features.items():
        for stream, features_TD in streams.items():
            even.save(stream, video, features_TD)
    options, write = TOLD[name]
    write(tmp_path / "release", even.features)
    expected = pack_from(even, even.root, "expected")[1].identity
    assert pack_from(even, tmp_path / "release", **options)[1].identity == expected


def test_an_array_of_one_dimension_is_one_snippet(even: Any, tmp_path: Path) -> None:
    source = as_files(tmp_path / "squeezed", each(even.features, one_dimension_where_short))
    shards = pack_from(even, source)[1]
    (index,) = [index for index, video in enumerate(shards.videos) if video.id == "b"]
    np.testing.assert_array_equal(shards.read(index)["rgb"], even.features["b"]["rgb"][:1])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda root, _: as_files(root, {name: np.ones((4, 16)) for name in "abcde"}),
            {},
            "one array a video, such as '.': give --streams rgb, or another name, if .*, or --layout joint if it holds",
        ),
        (
            lambda root, f: as_files(root, each(f, lambda a: np.stack([a] * 10, 1))),
            {},
            r"arrays have shapes such as \(., 10, 5\), 10 crops of each snippet: give --crops mean,",
        ),
        (
            lambda root, f: as_files(root, each(f, lambda a: np.stack([a] * 5, 1))),
            {"crops": "5"},
            "--crops 5 is none of the 5 crops, which are counted from 0: give one below 5",
        ),
        (
            lambda root, f: as_files(root, {f"{name}__0": a for name, a in each(f, np.copy).items()}),
            {},
            "has several crops of a video, such as .*__0.npy: give --crops mean, --crops centre, which is __0 as in XD",
        ),
        (
            lambda root, f: as_files(root, {name: np.ones((512, len(a))) for name, a in each(f, np.copy).items()}),
            {},
            "every array has 512 rows and 2 to 7 columns, which looks like width x snippets: give --transposed",
        ),
        (
            lambda root, f: as_files(root, each(f, lambda _: np.ones((9, 3)))),
            {},
            "all 5 videos have 9 snippets, and last from 10 to 14 s: give --rescaled",
        ),
        (
            lambda root, f: as_files(root, by_stream(f, "net_{stream}s/{video}")),
            {},
            "video in several folders, and none is named rgb or flow: give --streams rgb=net_rgbs,flow=net_flows[.]",
        ),
        (
            lambda root, f: as_files(root, as_of(by_stream(f, "{Stream}/{video}"))),
            {},
            "5 of 10 arrays are named as layout 'folders' has it.* or the streams with --streams rgb=RGB,flow=OF",
        ),
        (
            lambda root, f: as_files(root, by_stream(f, "{stream}/{video}_i3d")),
            {},
            "it holds 'a_i3d', 'b_i3d', 'c_i3d', ..., and the annotations 'a', .*; give --suffix _i3d, ",
        ),
        (
            lambda root, f: as_pickle(root / "all.pkl", halves(f)),
            {},
            "all.pkl holds pickled Python objects, which can run code when read: save it",
        ),
        (
            lambda root, _: as_pickle(root / "all.pkl", [1]),
            {"allow_pickle": True},
            "all.pkl is no dict of arrays by the videos' names",
        ),
        (
            lambda root, _: (root.mkdir(), torch.save(torch.ones(1, 1).expand(10**6, 10**6), root / "a.pt")),
            {"layout": "joint"},
            "a.pt says that it holds 4,000,000,000,000 bytes and is smaller: save it again",
        ),
        (
            lambda root, _: (root.mkdir(), torch.save(torch.nn.Linear(2, 2), root / "a.pt")),
            {"layout": "joint"},
            r"a.pt cannot be read \(Weights only load failed",
        ),
        (
            lambda root, _: (root.mkdir(), (root / "a.mat").write_bytes(b"MATLAB 5.0" + bytes(900))),
            {"layout": "joint"},
            "a.mat cannot be read",
        ),
        (
            lambda root, _: (root.mkdir(), (root / "a.csv").write_text("f0,f1\n1,x")),
            {"layout": "joint"},
            "a.csv is no table of numbers .*could not convert string 'x'",
        ),
        (lambda root, f: as_files(root, halves(f)), {"layout": "wtalc"}, "holds no features in one .npy file"),
        (lambda root, f: as_files(root, halves(f)), {"streams": "rgb=OF"}, "holds no rgb features"),
        (lambda root, f: as_files(root, halves(f)), {"crops": "left"}, "crops is 'left': choose mean, centre"),
        (lambda root, f: as_files(root, halves(f)), {"on_bad": "hide"}, "on_bad is 'hide': choose stop, skip or swap"),
    ],
)  # fmt: skip
def test_what_is_asked_rather_than_guessed(
    even: Any, tmp_path: Path, make: Callable[[Path, Arrays], object], options: dict[str, Any], message: str
) -> None:
    make(tmp_path / "release", even.features)
    with pytest.raises(InputError, match=message):
        pack_from(even, tmp_path / "release", **options)


def test_features_resized_to_one_length_last_as_long_as_their_videos(even: Any, tmp_path: Path) -> None:
    source = as_files(tmp_path / "resized", each(even.features, lambda _: np.ones((9, 3))))
    report, shards = pack_from(even, source, rescaled=True)
    lasts_s = {video.id: video.snippets * shards.stride_frames / video.fps for video in shards.videos}
    assert lasts_s == pytest.approx({video: facts["duration"] for video, facts in even.database.items()})
    assert report.source.endswith("resized: a video's snippets share its duration evenly")
    assert len({video.fps for video in pack_from(even, source, "not", rescaled=False)[1].videos}) == 1


def named(features: Arrays, pattern: str, *streams: str) -> dict[str, np.ndarray]:
    """The small dataset's arrays under other streams' names: those of even number are rgb's, the others flow's."""
    return {
        pattern.format(video=video, stream=stream): arrays[("rgb", "flow")[number % 2]]
        for video, arrays in features.items()
        for number, stream in enumerate(streams)
    }


@pytest.mark.parametrize(
    ("arrays", "options", "streams", "said"),
    [
        (lambda f: named(f, "{stream}/{video}", "rgb"), {}, "rgb 5", r"folders \(rgb/VIDEO\), found by .* one stream"),
        (lambda f: named(f, "{video}_{stream}", "flow"), {}, "flow 5", r"suffixes \(VIDEO_flow\), .* one stream"),
        (lambda f: named(f, "{video}", "_"), {"streams": "clip"}, "clip 5", r"single \(one array VIDEO, all of it cl"),
        (lambda f: named(f, "{stream}/{video}", "B16"), {"streams": "clip=."}, "clip 5", r"all of it clip\), as told"),
        (lambda f: named(f, "{stream}/{video}", "B16"), {"streams": "clip=B16/"}, "clip 5", r"folders \(clip/VIDEO"),
        (lambda f: named(f, "{video}", "_"), {"joint": "clip"}, "clip 5", "layout joint .* one stream, clip; "),
        (lambda f: named(f, "{video}", "_"), {"joint": "a=1,rgb=3,b=1"}, "rgb 3, a 1, b 1", "columns 0-0 a, 1-3 rgb,"),
        (
            lambda f: named(f, "{stream}/{video}", "rgb", "flow", "audio"),
            {"streams": "audio,rgb,flow"},
            "rgb 5, flow 3, audio 5",
            r"folders \(rgb/VIDEO, flow/VIDEO and audio/VIDEO\), ",
        ),
        (
            lambda f: named(f, "{video}/{stream}", "rgb", "flow", "audio", "rgb_b"),
            {"streams": "rgb_b,audio,rgb,flow"},
            "rgb 5, flow 3, rgb_b 3, audio 5",
            r"suffixes \(VIDEO_rgb, VIDEO_flow, VIDEO_rgb_b and VIDEO_audio\), ",
        ),
        (
            lambda f: named(f, "{stream}/{video}", "rgb", "flow", "audio", "old"),
            {},
            "rgb 5, flow 3",
            r"audio \(5 arrays\), old \(5 arrays\). To take all as streams: --streams rgb,flow,audio,old[.]",
        ),
        (
            lambda f: named(f, "{video}_{stream}", "rgb", "OF"),
            {"streams": "rgb"},
            "rgb 5",
            r"OF \(5 arrays\). To take all as streams: --streams rgb,OF[.]",
        ),
    ],
)  # fmt: skip
def test_sets_of_one_stream_or_of_several(
    published: Any, tmp_path: Path, arrays: Callable[[Arrays], Any], options: dict[str, Any], streams: str, said: str
) -> None:
    source = as_files(tmp_path / "release", arrays(published.features))
    report, shards = pack_from(published, source, **options)
    assert ", ".join(f"{stream} {width}" for stream, width in shards.streams.items()) == streams
    text = f"{report.source} {' '.join(report.notes)}"
    assert re.search(said, text), text
    (index,) = [index for index, video in enumerate(shards.videos) if video.id == "c"]
    assert sum(len(array.T) for array in shards.read(index).values()) == sum(shards.streams.values())
    np.testing.assert_array_equal(shards.read(index)[streams.partition(" ")[0]].T[0] != 0, True)


def test_a_folder_that_is_named_like_a_stream_is_that_stream(published: Any) -> None:
    report, shards = pack_from(published, published.root / "flow")
    assert (shards.streams, report.source[:46]) == ({"flow": 3}, "layout single (one array VIDEO, all of it flow")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_streams, "rgb=a,flow=A", "give each stream a folder or an ending of its own"),
        (parse_streams, "rgb=", "give each stream a folder or an ending of its own"),
        (parse_streams, "rgb=features/rgb", "give each stream a folder or an ending of its own"),
        (parse_streams, "rgb=.,flow=of", "'?. is all of the features, which leaves none for another stream"),
        (parse_streams, "rgb,RGB=b", "rgb, rgb cannot be the streams of a set: give one to 8, each once"),
        (parse_streams, "a,b,c,d,e,f,g,h,i", "cannot be the streams of a set: give one to 8, each once"),
        (parse_joint, "rgb,rgb", "rgb, rgb cannot be the streams of a set"),
        (parse_joint, "rgb,", "A stream cannot be named ''"),
        *((parse_streams, name, f"A stream cannot be named {name!r}: give a small letter and up to 15 more")
          for name in ("2d", "a.b", "a/b", "a b", "über", "json", "joint", "default", "keys", "a" * 17)),
    ],
)  # fmt: skip
def test_streams_that_cannot_be(parse: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_every_name_that_streams_may_have_is_one_that_torch_has_not() -> None:
    for name in dir(torch.nn.ModuleDict()):
        if STREAM_NAME.fullmatch(name):
            with pytest.raises(InputError, match=f"A stream cannot be named '{name}'"):
                check_streams([name])


def test_stream_folders_may_be_links(even: Any, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for stream in ("rgb", "flow"):
        (tmp_path / "links" / stream).symlink_to(even.root / stream)
    assert pack_from(even, tmp_path / "links")[1].identity == pack_from(even, even.root, "direct")[1].identity


def test_the_order_and_widths_of_joint_columns(published: Any, tmp_path: Path) -> None:
    arrays = {video: joined(streams, ("flow", "rgb")) for video, streams in published.features.items()}
    source = as_files(tmp_path / "joint", arrays)
    report, shards = pack_from(published, source, joint="flow=3,rgb=5")
    assert report.source.startswith("layout joint (one array VIDEO with the streams' columns side by side), as told")
    assert "columns 0-2 flow, 3-7 rgb" in report.source
    assert shards.identity == pack_from(published, published.root, "direct")[1].identity
    assert pack_from(published, source, "even", joint="flow,rgb")[1].streams == {"rgb": 4, "flow": 4}


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (
            "rgb=4,flow=3",
            r"a.npy has 8 columns, which 4 \+ 3 of rgb and flow do not fill: --joint rgb=WIDTH,flow=WIDTH",
        ),
        ("rgb=5,flow", "'rgb=5,flow' does not say how joint arrays hold the streams"),
        ("rgb,flow,audio", r"8 columns, which 2 \+ 2 \+ 2 of rgb and flow and audio do not fill: --joint rgb=WIDTH"),
        ("rgb=five,flow=3", "the width 'five' of rgb must be a whole number above 0"),
        ("rgb=0,flow=8", "the width '0' of rgb must be a whole number above 0"),
    ],
)
def test_joint_columns_that_do_not_fit(published: Any, tmp_path: Path, joint: str, message: str) -> None:
    first = dict(list(halves(published.features).items())[:1])
    with pytest.raises(InputError, match=message):
        pack_from(published, as_files(tmp_path / "joint", first), joint=joint)


def test_names_of_two_layouts_are_not_guessed_about(published: Any, tmp_path: Path) -> None:
    published.database = {"water_flow": published.database["a"], "sand": published.database["b"]}
    published.write_annotations()
    source = as_files(tmp_path / "joint", {"water_flow": np.ones((4, 6)), "sand": np.ones((3, 6))})
    with pytest.raises(InputError, match="1 of 2 arrays are named as layout 'suffixes' has it, such as 'water_flow', "):
        pack_from(published, source)
    report, shards = pack_from(published, source, layout="joint")
    assert "as told" in report.source
    assert [video.id for video in shards.videos] == ["sand", "water_flow"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _path: None, "There are no features at"),
        (lambda path: path.mkdir(), r"holds no features but nothing: give .npy, .npz, .h5, .* or .pickle files"),
        (lambda path: path.write_text("x"), "holds no features but 1 without a suffix: give .npy"),
        (lambda path: (path.mkdir(), (path / "a.tfrecord").touch()), "holds no features but 1 .tfrecord: give .npy"),
    ],
)
def test_sources_without_features(published: Any, tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        pack_from(published, tmp_path / "source")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("tarball", "There is no layout 'tarball': choose folders, suffixes, single, joint or wtalc"),
        ("suffixes", "holds no rgb and no flow features"),
    ],
)
def test_layouts_that_are_not_there(published: Any, layout: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_from(published, published.root, layout=layout)


def test_a_stream_twice(even: Any, tmp_path: Path) -> None:
    shutil.copytree(even.root / "rgb", even.root / "old_rgb")
    with pytest.raises(InputError, match=r"5 videos in .* have two arrays for one stream"):
        pack_from(even, even.root)


@pytest.mark.parametrize("ending", [".npy", ".mp4", ".mp4.npy"])
def test_annotated_names_that_end_as_files_do(published: Any, ending: str) -> None:
    """BBFormer's ground truth names its feature files."""
    published.database = {f"{video}{ending}": entry for video, entry in published.database.items()}
    published.write_annotations()
    shards = pack_from(published, published.root)[1]
    assert sorted(shards.ids(range(5))) == [f"{video}{ending}" for video in "abcde"]


def test_a_prefix_that_only_the_features_have(even: Any, tmp_path: Path) -> None:
    source = as_files(tmp_path / "named", by_stream(even.features, "{stream}/v_{video}"))
    with pytest.raises(
        InputError, match=r"'v_a', 'v_b', 'v_c', ..., and the annotations 'a', .*; give --prefix v_, which"
    ):
        pack_from(even, source)
    assert pack_from(even, source, prefix="v_")[1].identity == pack_from(even, even.root, "direct")[1].identity


def test_what_extractors_leave_beside_features_is_passed_over(even: Any, tmp_path: Path) -> None:
    arrays = by_stream(even.features, "{video}_{stream}")
    arrays |= {f"{video}_{fact}": np.array(25.0) for video in even.features for fact in ("fps", "timestamps_ms")}
    assert len(pack_from(even, as_files(tmp_path / "extracted", arrays))[1]) == 5


@pytest.mark.parametrize("kind", ["HDF5 attributes", "HDF5 datasets", "npz"])
def test_stride_and_frame_rate_told_by_the_archive(even: Any, tmp_path: Path, kind: str) -> None:
    facts, arrays = {"fps": 12.5, "stride_frames": 4}, halves(even.features)
    scalars = {name: np.array(value) for name, value in facts.items()}
    if kind == "npz":
        source = as_npz(tmp_path / "all.npz", arrays | scalars)
    elif kind == "HDF5 datasets":
        source = tmp_path / "all.h5"
        with h5py.File(source, "w") as file:
            for name, values in (arrays | scalars).items():
                file[name] = values
    else:
        source = as_hdf5(tmp_path / "all.h5", arrays, **facts)
    report, shards = pack_from(even, source, layout="joint")
    assert (shards.stride_frames, {video.fps for video in shards.videos}) == (4, {12.5})
    assert report.source.endswith("a snippet every 4 frames at 12.5 fps")
    told = pack_from(even, source, "told", fps=30.0, stride_frames=8, layout="joint")[1]
    assert (told.stride_frames, {video.fps for video in told.videos}) == (8, {30.0})


def test_archives_that_disagree_or_tell_a_stride_that_is_no_whole_number(even: Any, tmp_path: Path) -> None:
    for fps, (video, features_TD) in enumerate(halves(even.features).items(), start=24):
        as_hdf5(tmp_path / "several" / f"{video}.h5", {"features": features_TD}, fps=fps)
    with pytest.raises(InputError, match="its archives tell fps as 24, 25, 26, 27, 28; it must be one number above 0"):
        pack_from(even, tmp_path / "several", layout="joint")
    assert len(pack_from(even, tmp_path / "several", fps=25.0, layout="joint")[1]) == 5
    source = as_hdf5(tmp_path / "all.h5", halves(even.features), stride_frames=4.5)
    with pytest.raises(InputError, match=r"all.h5 tells a stride_frames of 4.5; give a whole number: --stride-frames"):
        pack_from(even, source, "strides", layout="joint")
    source = as_hdf5(tmp_path / "fast.h5", halves(even.features), fps=1e9)
    with pytest.raises(InputError, match=r"fast.h5: fps is 1000000000.0; it must be from 0.001"):
        pack_from(even, source, "fast", layout="joint")


@pytest.mark.parametrize(
    ("fact", "fps"),
    [
        (np.array([12.5]), 12.5),
        (np.array([[12.5]]), 12.5),  # as MATLAB writes every number
        ("12.5", 12.5),
        ("fast", None),
        (np.inf, None),
        (np.array([25.0, 30.0]), None),
        (h5py.Empty("f"), None),
    ],
    ids=str,
)
def test_numbers_as_archives_wrap_them(even: Any, tmp_path: Path, fact: Any, fps: float | None) -> None:
    source = as_hdf5(tmp_path / "all.h5", halves(even.features), fps=fact)
    if fps is None:
        with pytest.raises(
            InputError, match=r"its archives tell fps as (nan|inf); it must be one number above 0: give"
        ):
            pack_from(even, source, layout="joint")
    else:
        assert {video.fps for video in pack_from(even, source, layout="joint")[1].videos} == {fps}


def lie_about_size(path: Path) -> Path:
    """An .npz whose one member says, in its header and in the archive's, that it holds a terabyte."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 25)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(400))
        archive.filelist[0].file_size = 10**12 + 128
    return path


def test_archives_that_say_they_hold_more_than_they_do(even: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("a", (10**10, 25), "float32", chunks=(100, 25))
    for source in (lie_about_size(tmp_path / "all.npz"), tmp_path / "empty.h5"):
        with pytest.raises(InputError, match=r"\[a\] is truncated: \d+ bytes .* says 1,000,000,000,000; fetch"):
            pack_from(even, source, layout="joint")


def test_coverage_shows_a_wrong_stride(even: Any) -> None:
    right, wrong = (pack_from(even, even.root, f"stride{stride}", stride_frames=stride)[0] for stride in (60, 16))
    assert right.coverage is not None
    assert wrong.coverage == pytest.approx(right.coverage * 16 / 60)


def test_archives_that_lead_elsewhere_are_not_followed(even: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones((4, 10), "float32").tobytes())
    hidden = as_hdf5(tmp_path / "hidden.h5", {"a": np.ones((4, 10))})
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["a"] = h5py.ExternalLink(str(hidden), "a")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("a", (4, 10), "float32", external=[(str(secret), 0, 160)])
    virtual = h5py.VirtualLayout((4, 10), "float64")
    virtual[:] = h5py.VirtualSource(str(hidden), "a", (4, 10))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("a", virtual)
    with pytest.raises(InputError, match=r"links.h5 holds no features"):
        pack_from(even, tmp_path / "links.h5")
    for name in ("external", "virtual"):
        with pytest.raises(
            InputError, match=rf"{name}.h5\[a\] has its values in another file: copy them into this one"
        ):
            pack_from(even, tmp_path / f"{name}.h5", layout="joint")


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_damaged_archives(even: Any, tmp_path: Path, suffix: str) -> None:
    write = as_npz if suffix == ".npz" else as_hdf5
    source = write(tmp_path / f"all{suffix}", halves(even.features))
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is not a whole"):
        pack_from(even, source)
    damaged = bytearray(content)
    damaged[content.find(even.features["c"]["rgb"][0, :2].tobytes()) if suffix == ".npz" else 4000] ^= 1
    source.write_bytes(damaged)
    if suffix == ".npz":
        with pytest.raises(InputError, match=r"all.npz\[c\] cannot be read \(Bad CRC-32"):
            pack_from(even, source, layout="joint")


def test_pickles_inside_an_npz_are_refused_whatever_was_asked_for(even: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", a=np.array([{}, []], dtype=object))
    with pytest.raises(InputError, match=r"all.npz\[a\] holds pickled Python objects: save it as an array of numbers"):
        pack_from(even, tmp_path / "all.npz", allow_pickle=True, layout="joint")


def test_more_archives_than_may_be_open_at_once(publish: Callable[..., Any], tmp_path: Path) -> None:
    published = publish({"training": [f"v{number:02}" for number in range(80)]})
    source = per_video_npz(tmp_path / "many", published.features)
    assert pack_from(published, source)[1].identity == pack_from(published, published.root, "direct")[1].identity


@pytest.mark.shared
def test_real_i3d_archives_as_npz_and_hdf5(shared_data: Path, tmp_path: Path) -> None:
    """505 real joint arrays, 2,048 wide, with video-level labels alone; both kinds of archive and a folder agree."""
    archive = shared_data / "i3d_samples/gym_trimmed_i3d.npz"
    labels = json.loads((shared_data / "i3d_samples/gym_labels.json").read_text())["database"]
    table = [f"{video},{entry['label']},,,{entry['duration']},30" for video, entry in labels.items()]
    annotations = tmp_path / "gym.csv"
    annotations.write_text("\n".join(["video,label,start,end,duration,fps", *table]))
    with np.load(archive) as arrays:
        originals = {name: arrays[name] for name in arrays.files}
    sources = [archive, as_hdf5(tmp_path / "gym.h5", originals), as_files(tmp_path / "gym", originals)]
    packed = []
    for source in sources:
        out = tmp_path / f"packed_{source.suffix}"
        report = pack(
            source, out, annotations, name="gym", stride_frames=64, dtype="float32", layout="joint", workers=1
        )
        assert (report.packed, report.streams) == ({"training": 505}, {"rgb": 1024, "flow": 1024})
        assert (len(report.classes), report.without_features, report.without_annotations) == (21, [], [])
        assert "columns 0-1023 rgb, 1024-2047 flow; a snippet every 64 frames at 30 fps" in report.source
        assert 0.9 < (report.coverage or 0) <= 1
        packed.append(ShardSet.open(out))
    assert len({shards.identity for shards in packed}) == 1
    for index, video in enumerate(packed[0].videos):
        np.testing.assert_array_equal(joined(packed[0].read(index)), originals[video.id])
