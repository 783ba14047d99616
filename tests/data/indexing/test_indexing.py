"""Shard sets of tars that somebody else packed: what goes in comes out, and what cannot be taken is named."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from aumn.data.indexing import indexing
from aumn.data.indexing.indexing import index
from aumn.data.packing.planning import PackingReport
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_annotations
from aumn.inspect.inspection import inspect_shards
from aumn.records import InputError
from tests.data.conftest import contents, write_published
from tests.stores import faulty

Samples = Mapping[str, Mapping[str, Any]]  # key -> suffix -> content
FPS = {"fps": 25.0, "stride_frames": 16}


def encode(suffix: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    out, kind = io.BytesIO(), suffix.rpartition(".")[2]
    if kind == "npy":
        np.save(out, value)
    elif kind == "npz":
        np.savez_compressed(out, **value)
    elif kind in {"pt", "pth"}:
        torch.save(value, out)
    elif kind == "pyd":
        pickle.dump(value, out)
    else:
        out.write((json.dumps(value) if kind == "json" else str(value)).encode())
    return out.getvalue()


def write_tar(path: Path, samples: Samples, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
        for key, members in samples.items():
            for suffix, value in members.items():
                content = encode(suffix, value)
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def features(seed: int, snippets: int = 4, width: int = 3, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(snippets, width)).astype(dtype)


def make(first: int = 0, count: int = 3) -> Samples:
    """Samples of one stream and a label."""
    return {f"v{number}": {"npy": features(number), "cls": "Run"} for number in range(first, first + count)}


def index_here(place: Path, *tars: Any, **options: Any) -> tuple[PackingReport, ShardSet]:
    report = index([str(tar) for tar in tars or [place / "in"]], place / "out", **{"workers": 1} | FPS | options)
    return report, ShardSet.open(place / "out")


def read(shards: ShardSet) -> dict[str, dict[str, np.ndarray]]:
    return {video.id: shards.read(place) for place, video in enumerate(shards.videos)}


def labels(shards: ShardSet) -> dict[str, list[str]]:
    return {video.id: [shards.classes[label] for label in video.labels] for video in shards.videos}


@pytest.mark.parametrize("ids", [["a", "b", "c"], ["v.1.5", "x" * 120, "f/g"]])
def test_our_own_tars_indexed_anew_are_the_same_set(tmp_path: Path, ids: list[str]) -> None:
    published = write_published(tmp_path / "published", {"training": ids, "te/st.1": ["d", "e"]})
    published.pack(tmp_path / "packed", shard_mb=1e-5)
    report, shards = index_here(tmp_path, tmp_path / "packed", stride_frames=16, fps=None)
    packed = ShardSet.open(tmp_path / "packed")
    assert shards.identity == packed.identity
    assert list(shards.videos) == list(packed.videos)
    assert report.packed == {"te/st.1": 2, "training": 3}
    for place in range(len(packed)):
        for stream, expected_TD in packed.read(place).items():
            np.testing.assert_array_equal(shards.read(place)[stream], expected_TD)
    assert inspect_shards(tmp_path / "out").findings == inspect_shards(tmp_path / "packed").findings


ARRAY_TD = features(5, dtype="float32")


@pytest.mark.parametrize(
    ("suffix", "value", "expected_TD", "decoded"),
    [
        ("feat.npy", ARRAY_TD, ARRAY_TD, False),
        ("feat.npy", ARRAY_TD.astype("float16"), ARRAY_TD.astype("float16"), False),
        ("feat.npy", ARRAY_TD[None], ARRAY_TD, False),
        ("feat.npy", ARRAY_TD.astype("float64"), ARRAY_TD, True),
        ("feat.npy", ARRAY_TD.astype(">f4"), ARRAY_TD, True),
        ("feat.npy", np.asfortranarray(ARRAY_TD), ARRAY_TD, True),
        ("feat.npy", np.arange(6, dtype="uint8").reshape(2, 3), np.arange(6, dtype="float32").reshape(2, 3), True),
        ("feat.npy", encode("npy", ARRAY_TD) + b"more", ARRAY_TD, True),
        ("feat.npz", {"features": ARRAY_TD, "fps": np.float64(25)}, ARRAY_TD, True),
        ("feat.pth", torch.tensor(ARRAY_TD), ARRAY_TD, True),
        ("feat.pt", {"x": torch.tensor(ARRAY_TD).bfloat16()}, torch.tensor(ARRAY_TD).bfloat16().float().numpy(), True),
        ("feat.pyd", ARRAY_TD, ARRAY_TD, True),
    ],
)
def test_arrays_come_out_as_they_are(
    tmp_path: Path, suffix: str, value: Any, expected_TD: np.ndarray, decoded: bool
) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", {"a": {suffix: value, "cls": "Run"}})
    _, shards = index_here(tmp_path)
    fields = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert fields.get("decoded", {}) == ({"feat": suffix} if decoded else {})
    found_TD = shards.read(0)["feat"]
    np.testing.assert_array_equal(found_TD, expected_TD)
    assert (found_TD.dtype, found_TD.flags.writeable) == (expected_TD.dtype, False)


def test_damage_of_a_decoded_member_is_told_when_it_is_read(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "in" / "train-0.tar", {"a": {"feat.pth": torch.tensor(ARRAY_TD), "cls": "Run"}})
    _, shards = index_here(tmp_path)
    content = tar.read_bytes()
    tar.write_bytes(content.replace(ARRAY_TD.tobytes(), (ARRAY_TD + 1).tobytes()))
    with pytest.raises(InputError, match=r"train-0.tar: what it holds of stream feat of video 'a' does not match its"):
        shards.read(0)


def test_streams_of_several_dtypes_have_the_widest(tmp_path: Path) -> None:
    samples = {
        "a": {"rgb.npy": features(1, dtype="float16"), "flow.npy": features(2), "cls": "Run"},
        "b": {"rgb.npy": features(3, dtype="float16"), "flow.npy": features(4), "cls": "Run"},
    }
    write_tar(tmp_path / "in" / "a.tar", samples)
    report, shards = index_here(tmp_path)
    assert list(shards.streams) == ["rgb", "flow"]
    assert "rgb from members rgb.npy, decoded at every read; flow from members flow.npy, read in place" in report.source
    for video, arrays in read(shards).items():
        for stream, features_TD in arrays.items():
            np.testing.assert_array_equal(features_TD, samples[video][f"{stream}.npy"].astype("float32"))
            assert features_TD.dtype == np.float32


def test_arrays_that_are_width_by_snippets(tmp_path: Path) -> None:
    samples = {f"v{snippets}": {"npy": features(snippets, 200, snippets), "cls": "Run"} for snippets in (1, 2, 5)}
    write_tar(tmp_path / "in" / "train-0.tar", samples)
    with pytest.raises(
        InputError, match=r"npy: every array has 200 rows and 1 to 5 columns, .* give --transposed if it"
    ):
        index_here(tmp_path)
    _, shards = index_here(tmp_path, transposed=True)
    for video, arrays in read(shards).items():
        np.testing.assert_array_equal(arrays["features"], samples[video]["npy"].T)
    assert [video.snippets for video in shards.videos] == [1, 2, 5]


CLASSES = "Run\nJump\nSwim\n"


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        ({"cls": "1"}, {"classes": CLASSES}, ["Jump"]),
        ({"cls": "2 0"}, {"classes": CLASSES}, ["Run", "Swim"]),
        ({"cls": "[0, 2]"}, {"classes": CLASSES}, ["Run", "Swim"]),
        ({"cls": " High jump\n"}, {}, ["High jump"]),
        ({"txt": "Jump"}, {"labels": "txt"}, ["Jump"]),
        ({"json": {"labels": ["Jump", "Run", "Jump"]}}, {}, ["Jump", "Run"]),
        ({"json": {"label": 1}}, {"classes": CLASSES}, ["Jump"]),
        ({"json": {"what": "Jump", "label": "Run"}}, {"labels": "json:what"}, ["Jump"]),
        ({"json": {"labels": []}}, {}, []),
    ],
)
def test_labels(tmp_path: Path, members: dict[str, Any], options: dict[str, Any], expected: list[str]) -> None:
    if "classes" in options:
        (tmp_path / "classes.txt").write_text(options["classes"])
        options = options | {"classes": tmp_path / "classes.txt"}
    write_tar(tmp_path / "in" / "a.tar", {"a": {"npy": features(1), **members}})
    _, shards = index_here(tmp_path, **options)
    assert labels(shards) == {"a": expected}
    video = read_annotations(tmp_path / "out").videos["a"]
    assert (video.annotations, list(video.untimed)) == ((), expected)


@pytest.mark.parametrize(
    ("keys", "facts", "options", "expected"),
    [
        (["f/a", "g/b"], {}, {}, ["a", "b"]),
        (["f/a", "g/a"], {}, {}, ["f/a", "g/a"]),
        (["f/a", "g/b"], {}, {"id": "key"}, ["f/a", "g/b"]),
        (["f/a", "g/b"], {"id": 7}, {}, ["7", "8"]),
        (["f/a", "g/b"], {"youTube": "x"}, {"id": "JSON:youTube"}, ["x", "y"]),
        (["f/v_a_i3d", "g/v_b_i3d"], {}, {"prefix": "v_", "suffix": "_i3d"}, ["a", "b"]),
    ],
)
def test_names(tmp_path: Path, keys: list[str], facts: dict[str, Any], options: Any, expected: list[str]) -> None:
    later = {name: value + 1 if isinstance(value, int) else "y" for name, value in facts.items()}
    write_tar(
        tmp_path / "in" / "a.tar",
        {key: {"npy": features(1), "cls": "Run", "json": told} for key, told in zip(keys, [facts, later], strict=True)},
    )
    _, shards = index_here(tmp_path, **options)
    assert [video.id for video in shards.videos] == expected


def test_subsets_and_times_without_ground_truth(tmp_path: Path) -> None:
    told = {"subset": "mine", "duration": 3.5, "fps": 30}
    write_tar(tmp_path / "in" / "val-000.tar", {"a": {"npy": features(1, 4), "cls": "Run"}})
    write_tar(tmp_path / "in" / "000001.tar", {"b": {"npy": features(2, 6), "cls": "Run"}})
    write_tar(tmp_path / "in" / "x_12-of-20.tar", {"c": {"npy": features(3), "cls": "Run"}})
    write_tar(tmp_path / "in" / "y.tar", {"d": {"npy": features(4), "cls": "Run", "json": told}})
    _, shards = index_here(tmp_path)
    assert {video.id: video.subset for video in shards.videos} == {"a": "val", "b": "training", "c": "x", "d": "mine"}
    assert {video.id: (video.duration_s, video.fps) for video in shards.videos} == {
        "a": (4 * 16 / 25, 25), "b": (6 * 16 / 25, 25), "c": (4 * 16 / 25, 25), "d": (3.5, 25),
    }  # fmt: skip


def test_ground_truth_tells_what_it_tells_to_pack(tmp_path: Path) -> None:
    """A CSV's subsets, labels and times, and of the samples what it leaves open."""
    write_tar(
        tmp_path / "in" / "train-0.tar",
        {
            "b": {"npy": features(1, 4), "cls": "9"},
            "a": {"npy": features(2, 6), "json": {"duration": 4.0}},
            "not_annotated": {"npy": features(3)},
        },
    )
    table = (
        "video,label,start,end,subset,duration,fps\na,Run,1,2,testing,,\nb,Jump,,,training,2.5,\nc,Run,,,training,,\n"
    )
    (tmp_path / "gt.csv").write_text(table)
    report, shards = index_here(tmp_path, annotations=tmp_path / "gt.csv", streams="rgb=npy")
    assert [(video.id, video.subset, video.duration_s) for video in shards.videos] == [
        ("a", "testing", 4.0),
        ("b", "training", 2.5),
    ]
    assert labels(shards) == {"a": ["Run"], "b": ["Jump"]}
    assert (report.without_features, report.without_annotations) == (["c"], ["not_annotated"])
    truth = read_annotations(tmp_path / "out").videos
    assert (truth["a"].annotations, truth["b"].untimed) == ((("Run", 1.0, 2.0),), ("Jump",))


BAD = features(1)
BAD_NAN = BAD.copy()
BAD_NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cls": "Run"}, "train-0.tar: sample 'bad' has no member npy, but cls"),
        ({"npy": BAD}, "train-0.tar: sample 'bad' tells no label where --labels says, or, without"),
        ({"npy": BAD, "cls": ""}, "sample 'bad' has cls '', which must be class names, or their numbers"),
        (
            {"npy": BAD_NAN, "cls": "Run"},
            "sample 'bad' has a npy with 1 NaN or infinite values, the first in snippet 2",
        ),
        ({"npy": BAD.astype("float64") * 1e200, "cls": "Run"}, "has a npy with 12 NaN or infinite values"),
        ({"npy": BAD[:, :2], "cls": "Run"}, "'bad' has features features of width 2 where the others' have 3"),
        ({"npy": BAD[0], "cls": "Run"}, r"has a npy of shape \(3,\); features must be snippets x width"),
        ({"npy": BAD[:0], "cls": "Run"}, r"has a npy of shape \(0, 3\)"),
        ({"npy": BAD > 0, "cls": "Run"}, "has a npy of dtype bool; features must be numbers"),
        ({"npy": b"text", "cls": "Run"}, "cannot be taken: its .npy is not a .npy file"),
        ({"npy": encode("npy", BAD)[:-4], "cls": "Run"}, "cannot be taken: its .npy is truncated: 44 bytes of data"),
        ({"npy": BAD, "json": b"{", "cls": "Run"}, "has a json that is no JSON"),
        ({"npy": BAD, "cls": "Run", "json": {"fps": "x"}}, "sample 'bad' has fps 'x'; it must be a number above 0"),
    ],
)
def test_what_cannot_be_taken_is_named_or_left_out(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", {**make(), "bad": members})
    with pytest.raises(InputError, match=f"{message}.*--on-bad skip"):
        index_here(tmp_path)
    assert not (tmp_path / "out").exists()
    report, shards = index_here(tmp_path, on_bad="skip")
    assert [name.removeprefix("train-0.tar/") for name in report.bad] == ["bad"]
    assert list(report.bad) == list(shards.left_out)
    assert [video.id for video in shards.videos] == ["v0", "v1", "v2"]


def test_names_that_nothing_could_store_are_bad(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", {**make(), "\xe9": {"npy": BAD, "cls": "Run"}}, encoding="latin-1")
    with pytest.raises(InputError, match=r"sample '\\\\udce9' has a name that is no UTF-8: rename it"):
        index_here(tmp_path)
    _, shards = index_here(tmp_path, on_bad="skip")
    assert shards.left_out == ("train-0.tar/\\udce9",)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ({"a": {"cls": "1", "txt": "x"}}, {}, r"train-0.tar have cls \(1\), txt \(1\): none is an array \(.npy, .npz"),
        (
            {"a": {"x.npy": BAD, "y.pth": BAD, "cls": "1"}},
            {},
            r"have x.npy \(1\), y.pth \(1\), cls \(1\): say which are streams, such as --streams x=x.npy,y=y.pth",
        ),
        (
            {"a": {"x.npy": BAD}},
            {"streams": "rgb=rgb.npy"},
            r"--streams rgb=rgb.npy: no member rgb.npy. The samples of",
        ),
        (
            make(),
            {"labels": "cls", "annotations": Path("gt.csv")},
            "--annotations tell labels and subsets: leave --lab",
        ),
        (make(), {"id": "name"}, "--id name: give key, or json:FIELD"),
        (make(), {"id": "json:name"}, "--id json:name: 3 samples have no such field, such as 'v0'"),
        (make(), {"fps": None}, r"tells no fps for 3 videos \('v0', 'v1', 'v2'\): give --fps"),
        (
            {"a": {"npy": BAD, "cls": "1"}},
            {},
            r"1 samples tell their labels by numbers, such as cls \[1\]: give --classes",
        ),
        (
            {"a": {"npy": BAD, "cls": "3"}},
            {"classes": CLASSES},
            r"has cls \[3\], where the list of classes has 3, counted",
        ),
        ({"a": {"npy": BAD, "cls": "1 0 1"}}, {"classes": CLASSES}, "a row of zeros and ones: give the numbers of its"),
        (
            {"a": {"npy": BAD, "cls": "Fly"}},
            {"classes": CLASSES},
            "has labels that are not in the list of 3 classes: 'Fly'",
        ),
        (
            {
                "f/a": {"npy": BAD, "cls": "Run", "json": {"id": 1}},
                "g/a": {"npy": BAD, "cls": "Run", "json": {"id": 1}},
            },
            {},
            r"2 samples are called '1' by json:id \('f/a', 'g/a'\): give --id, or name them apart",
        ),
        (
            {"a": {"pyd": b"cos\nsystem\n(S'true'\ntR.", "cls": "Run"}},
            {},
            "asks for os.system to be run, which is no arr",
        ),
        (
            {"a": {"npy": np.array([BAD, None], object), "cls": "Run"}},
            {},
            "its .npy holds pickled Python objects: save it",
        ),
        ({"a": {"npz": {"x": BAD, "y": BAD}, "cls": "1"}}, {}, r"holds x \(4, 3\), y \(4, 3\); it must hold one array"),
        (
            {"a": {"rgb.npy": BAD, "flow.npy": BAD[1:], "cls": "1"}},
            {},
            r"streams that differ in length \(4 of rgb, 3 of",
        ),
        ({}, {}, "The samples of .*train-0.tar have no members: none is an array"),
    ],
)
def test_what_stops_it(tmp_path: Path, samples: Samples, options: dict[str, Any], message: str) -> None:
    if "classes" in options:
        (tmp_path / "classes.txt").write_text(options["classes"])
        options = options | {"classes": tmp_path / "classes.txt"}
    write_tar(tmp_path / "in" / "train-0.tar", samples)
    with pytest.raises(InputError, match=message):
        index_here(tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_whatever_worker_is_done_first_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from processes, the last tar's first; test_help.py runs real ones."""
    for number in range(3):
        write_tar(tmp_path / "in" / f"train-{number}.tar", make(3 * number))
    index_here(tmp_path, name="set")
    (tmp_path / "out").rename(tmp_path / "expected")

    def reversed_calls(task: Any, calls: list[Any], workers: int) -> list[Any]:
        return [pickle.loads(pickle.dumps(task(*call))) for call in reversed(calls)]

    monkeypatch.setattr(indexing, "run_in_processes", reversed_calls)
    index_here(tmp_path, name="set")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_the_tars_are_found_where_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the set, where they were given so: then both can be moved together. Else the set can be moved alone."""
    write_tar(tmp_path / "here" / "in" / "sub" / "train-0.tar", make())
    write_tar(tmp_path / "here" / "in" / "test-0.tar", make(7))
    monkeypatch.chdir(tmp_path / "here")
    for given, out in (("in", "sets/near"), (str(tmp_path / "here" / "in"), "sets/far")):
        index([given], Path(out), workers=1, **FPS)
    places = {name: json.loads(Path(f"sets/{name}/dataset.json").read_text())["tars"] for name in ("near", "far")}
    assert places == {"near": "../../in", "far": str(tmp_path / "here" / "in")}
    (tmp_path / "here" / "sets" / "far").rename(tmp_path / "far")
    far = read(ShardSet.open(tmp_path / "far"))
    (tmp_path / "here").rename(tmp_path / "there")
    near = read(ShardSet.open(tmp_path / "there" / "sets" / "near"))
    assert list(near) == list(far) == ["v7", "v8", "v9", "v0", "v1", "v2"]
    with pytest.raises(
        InputError, match=r"here/in/sub/train-0.tar is missing: fetch this shard again, or index the tars where"
    ):
        ShardSet.open(tmp_path / "far")


def test_keys_that_come_again_in_another_tar_are_other_samples(tmp_path: Path) -> None:
    """The key of a bad sample is another's name, or that of a good sample of another tar."""
    bad = {"npy": np.full((4, 3), np.nan, "float32"), "json": {"id": "lost", "labels": ["Run"]}}
    good = {name: {"npy": features(1), "json": {"id": name, "labels": ["Run"]}} for name in ("0", "x", "y")}
    write_tar(tmp_path / "in" / "train-0.tar", {"0": bad, "1": good["x"]})
    write_tar(tmp_path / "in" / "train-1.tar", {"0": bad, "1": good["0"], "2": good["y"]})
    report, shards = index_here(tmp_path, on_bad="skip")
    assert shards.ids(range(len(shards))) == ["0", "x", "y"]
    assert list(report.bad) == ["train-0.tar/0", "train-1.tar/0"]


def test_members_that_only_a_later_tar_has_are_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", {"a": {"rgb.npy": features(1), "cls": "Run"}})
    write_tar(tmp_path / "in" / "train-1.tar", {"b": {"rgb.npy": features(1), "flow.npy": features(2), "cls": "Run"}})
    report, shards = index_here(tmp_path)
    assert shards.streams == {"rgb": 3}
    assert "Not taken: the members flow.npy. To take others: --streams." in report.notes


def test_a_bad_fact_of_one_sample_is_its_own(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", {
        name: {"npy": features(1), "json": {"fps": fps}} for name, fps in (("a", 25), ("b", -1))
    })  # fmt: skip
    gt = tmp_path / "gt.json"
    facts = {"subset": "train", "annotations": [{"label": "Run", "segment": [0, 1]}]}
    gt.write_text(json.dumps({"database": {"a": facts, "b": facts}}))
    report, shards = index_here(tmp_path, annotations=gt, on_bad="skip", fps=None)
    assert shards.ids(range(len(shards))) == ["a"]
    assert list(report.bad) == ["b"]


def test_nothing_is_put_beside_the_tars_of_others(tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", {"training": ["a", "b"]})
    published.pack(tmp_path / "in")
    index_here(tmp_path, fps=None)
    with pytest.raises(
        InputError, match=r"out was made by `aumn index` of tars in .*: pack the new videos into a set of"
    ):
        published.pack(tmp_path / "out", append=True, name=None)
    with pytest.raises(InputError, match=r"out already exists: remove it, or name another folder\."):
        index_here(tmp_path)
    with pytest.raises(InputError, match=r"--out s3:/b/x: the set is a folder here"):
        index([str(tmp_path / "in")], Path("s3://b/x"), **FPS)


def test_tars_behind_a_web_server_stay_there(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", make())
    write_tar(tmp_path / "in" / "train-1.tar", make(3))
    with faulty(tmp_path / "in") as server:
        report, shards = index_here(tmp_path, server.address + "/train-{0..1}.tar")
        assert report.packed == {"train": 6}
        assert json.loads((tmp_path / "out" / "dataset.json").read_text())["tars"] == server.address
        found = read(shards)
        for number in range(6):
            (array_TD,) = found[f"v{number}"].values()
            np.testing.assert_array_equal(array_TD, features(number))
        with pytest.raises(InputError, match=r"train-2\.tar is missing: correct the pattern"):
            index([server.address + "/train-{1..2}.tar"], tmp_path / "more", workers=1, **FPS)
        with pytest.raises(InputError, match=r"The tars lie in folders here, http://.*: make a set of each"):
            index(
                [server.address + "/train-1.tar", str(tmp_path / "in/train-0.tar")], tmp_path / "more", workers=1, **FPS
            )


WIDS = {
    "wids_version": 1,
    "name": "x",
    "shardlist": [{"url": "a-0.tar", "nsamples": 3}, {"url": "a-1.tar", "nsamples": 3}],
}
INFO = {"energon_version": "7.4.1", "shard_counts": {"a-0.tar": 3, "a-1.tar": 3, "b-0.tar": 3}}
SPLIT = {"split_parts": {"train": ["a-{0..1}.tar"], "val": ["b-0.tar"]}, "exclude": ["a-1.tar/v4"]}


@pytest.mark.parametrize(
    ("given", "files", "expected"),
    [
        (["."], {}, {"a": "v0 v1 v2 v3 v4 v5", "b": "v6 v7 v8"}),
        (["a-{0..1}.tar"], {}, {"a": "v0 v1 v2 v3 v4 v5"}),
        (["?-0.tar"], {}, {"a": "v0 v1 v2", "b": "v6 v7 v8"}),
        (["b-0.tar", "a-0.tar", "./b-0.tar"], {}, {"a": "v0 v1 v2", "b": "v6 v7 v8"}),
        (["index.json"], {"index.json": WIDS}, {"a": "v0 v1 v2 v3 v4 v5"}),
        (["."], {"index.json": WIDS, "gt.json": {"database": {}}}, {"a": "v0 v1 v2 v3 v4 v5"}),
        (
            ["index.json"],
            {"index.json": {"shardlist": [{"url": "https://host/x/b-0.tar", "nsamples": 3}]}},
            {"b": "v6 v7 v8"},
        ),
        (
            ["."],
            {".nv-meta/.info.json": INFO, ".nv-meta/split.yaml": SPLIT},
            {"train": "v0 v1 v2 v3 v5", "val": "v6 v7 v8"},
        ),
        (
            ["."],
            {".nv-meta/.info.yaml": INFO, ".nv-meta/split.yaml": SPLIT},
            {"train": "v0 v1 v2 v3 v5", "val": "v6 v7 v8"},
        ),
    ],
)
def test_ways_to_give_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], files: dict[str, Any], expected: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a-0", "a-1", "b-0"]):
        write_tar(tmp_path / f"{name}.tar", make(3 * number))
    for name, document in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(document) if name.endswith("yaml") else json.dumps(document))
    report, shards = index_here(tmp_path, *given)
    found = {subset: " ".join(shards.ids(shards.indices(subset))) for subset in report.packed}
    assert found == expected
    is_part = "index.json" in files and given == ["."]
    assert any("Not taken, since index.json does not list them: b-0.tar." in each for each in report.notes) == is_part


@pytest.mark.parametrize(
    ("given", "files", "message"),
    [
        (["x"], {}, "These tars are missing: x. Fetch them, or correct what names them."),
        (["a-{0..2}.tar"], {}, "These tars are missing: a-1.tar, a-2.tar. Fetch"),
        (["a-{0..2.tar"], {}, r"'a-\{0..2.tar' is no pattern of tars \(Unbalanced braces"),
        (["pipe:cat a.tar"], {}, "pipe:cat a.tar is a command: give the addresses of the tars"),
        (["e"], {"e/b.tar.gz": b"\x1f\x8b..."}, r"b.tar.gz is compressed, .* decompress the tars \(gunzip b.tar.gz\)"),
        (["c.tar"], {"c.tar": b"\x1f\x8b..."}, "c.tar is compressed, and what lies in it cannot be read by its place"),
        (["e"], {"e/b.txt": b""}, "e holds no .tar: give the folder of the WebDataset tars"),
        (["i.json"], {"i.json": b'{"shardlist": [{"url": "a-0.tar", "nsamples": 4}]}'}, "3 samples where i.json says"),
        (["i.json"], {"i.json": b'{"shardlist": []}'}, r"i.json lists no tars as wids does"),
        (["i.json"], {"i.json": b'{"classes": []}'}, r"i.json lists no tars as wids does"),
        (["i.json"], {"i.json": b'{"shardlist": [{"url": "a-0.tar", "nsamples": "3"}]}'}, "i.json lists no tars"),
        (["http://host/folder/"], {}, "is no tar's address: give those of the tars, such as http://host/folder/train-"),
        (
            ["."],
            {
                ".nv-meta/split.yaml": b"{split_parts: {train: [a-0.tar]}, exclude: [a-0.tar]}",
                ".nv-meta/.info.json": b'{"shard_counts": {"a-0.tar": 3}}',
            },
            "no shard that is not excluded",
        ),
        (["i.json"], {"i.json": b'{"shardlist": 3}'}, r"i.json lists no tars as wids does .*: a wids index is"),
        (["."], {".nv-meta/split.yaml": b"a: 1"}, ".nv-meta/.info.yaml cannot be read .*: run `energon prepare` again"),
        (["."], {".nv-meta/split.yaml": b"a: 1", ".nv-meta/.info.json": b"{}"}, "do not name the same shards, or no"),
    ],
)  # fmt: skip
def test_tars_that_are_not_there_or_not_as_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], files: dict[str, bytes], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "a-0.tar", make())
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        index_here(tmp_path, *given)
