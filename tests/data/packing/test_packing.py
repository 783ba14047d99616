"""Packing: what goes in comes out, what cannot is said, and real features pass through whole."""

import gc
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.data.packing.options import PackOptions
from aumn.data.packing.planning import PackingReport, _say_lonely_classes, plan_packing
from aumn.data.packing.shard_writer import PlannedVideo
from aumn.data.shards.shard_set import ShardSet
from aumn.data.sources.features import FeatureArray, VideoFeatures
from aumn.data.truth.annotated import AnnotatedVideo, Instance
from aumn.data.truth.annotations import read_annotations
from aumn.records import InputError
from tests.data.conftest import ONE_VIDEO, contents


def test_what_goes_in_comes_out(published: Any, tmp_path: Path) -> None:
    report = published.pack(tmp_path / "out", dtype="float32", shard_mb=200e-6, stride_frames=8)
    shards = ShardSet.open(tmp_path / "out")
    assert (shards.name, shards.classes, shards.streams) == ("small", ("Jump", "Run"), {"rgb": 5, "flow": 3})
    assert (shards.stride_frames, shards.dtype) == (8, np.float32)
    assert [(video.subset, video.id) for video in shards.videos] == [
        ("testing", "d"), ("testing", "e"), ("training", "a"), ("training", "b"), ("training", "c")
    ]  # fmt: skip
    for index, video in enumerate(shards.videos):
        annotated = published.database[video.id]
        assert [shards.classes[label] for label in video.labels] == [annotated["annotations"][0]["label"]]
        assert (video.duration_s, video.fps) == (annotated["duration"], annotated["fps"])
        for stream, features_TD in shards.read(index).items():
            np.testing.assert_array_equal(features_TD, published.features[video.id][stream])
            assert video.snippets == len(features_TD)
    assert report == PackingReport(
        path=tmp_path / "out",
        packed={"testing": 2, "training": 3},
        classes=("Jump", "Run"),
        streams={"rgb": 5, "flow": 3},
        shards=3,
        kept_shards=0,
        bytes=sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar")),
        without_features=[],
        without_annotations=[],
        bad={},
        source="layout folders (rgb/VIDEO and flow/VIDEO), found by looking; a snippet every 8 frames at 25 fps",
        coverage=report.coverage,
        notes=[
            "Behind what their video's features cover: 0 of 5 instances start there, and 5 more end there.",
            "Of another length than the ground truth says: 5 videos, such as d (1.3 s of 13.0 s), e (0.6 s of 14.0 s), "
            "a (1.3 s of 10.0 s).",
        ],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published"]


def test_classes_that_one_subset_alone_has_are_named() -> None:
    def videos(subset: str, *labels: str) -> list[AnnotatedVideo]:
        return [AnnotatedVideo(f"{subset}{label}", subset, 9.0, 25.0, (Instance(label, 0.0, 1.0),)) for label in labels]

    background = AnnotatedVideo("empty", "more", 9.0, 25.0, ())
    found = list(_say_lonely_classes([*videos("train", "a", "b"), *videos("test", "b", "d", "c"), background]))
    assert found == [
        "In subset train alone: 1 of 2 classes (a); training on another one cannot learn them, and measuring there "
        "misses them.",
        "In subset test alone: 2 of 3 classes (c, d); training on another one cannot learn them, and measuring there "
        "misses them.",
    ]
    assert not list(_say_lonely_classes([*videos("train", "a"), background]))


def test_temporal_ground_truth_lies_in_its_own_file_alone(published: Any, tmp_path: Path) -> None:
    published.pack(tmp_path / "out")
    assert read_annotations(tmp_path / "out").videos == read_annotations(published.annotations).videos
    for name, content in contents(tmp_path / "out").items():
        assert name == "annotations.parquet" or (b"segment" not in content and b"start_s" not in content)


def test_the_unmatched_are_reported(published: Any, tmp_path: Path) -> None:
    for stream in ("rgb", "flow"):
        published.path(stream, "b").rename(published.path(stream, "stranger"))
        published.path(stream, "d").rename(published.path(stream, "alien"))
    report = published.pack(tmp_path / "out")
    assert report.packed == {"testing": 1, "training": 2}
    assert report.without_features == ["b", "d"]
    assert report.without_annotations == ["alien", "stranger"]
    assert read_annotations(tmp_path / "out").videos.keys() == {"a", "c", "e"}


def write_classes(folder: Path, *names: str) -> Path:
    path = folder / "classes.txt"
    path.write_text("\n".join(names))
    return path


def test_classes_in_a_given_order(published: Any, tmp_path: Path) -> None:
    published.pack(tmp_path / "out", classes=write_classes(tmp_path, "Run", "Swim", "", " Jump "))
    shards = ShardSet.open(tmp_path / "out")
    assert shards.classes == ("Run", "Swim", "Jump")
    assert [video.labels for video in shards.videos] == [(2,), (0,), (0,), (2,), (0,)]  # d, e, a, b, c


def test_several_labels_a_video_are_a_set(published: Any, tmp_path: Path) -> None:
    again = [{"label": label, "segment": [0, 1]} for label in ("Run", "Jump", "Run")]
    published.database["a"]["annotations"] = again
    published.database["d"]["annotations"] = []
    published.write_annotations()
    published.pack(tmp_path / "out")
    labels = {video.id: video.labels for video in ShardSet.open(tmp_path / "out").videos}
    assert (labels["a"], labels["d"]) == ((0, 1), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' is not one that shards hold: choose float16 or float32"),
        ({"fps": float("nan")}, "fps is nan; it must be from 0.001 to 100,000"),
        ({"fps": float("inf")}, "fps is inf; it must be from 0.001 to 100,000"),
        ({"stride_frames": 0}, "stride_frames is 0; it must be from 1 to 100,000"),
        ({"stride_frames": 10**9}, "stride_frames is 1000000000; it must be from 1 to 100,000"),
        ({"window_frames": 0}, "window_frames is 0; it must be from 1 to 100,000"),
        (
            {"joint": "rgb,flow", "streams": "rgb"},
            "--joint names the streams that each array holds: leave --streams or",
        ),
        (
            {"joint": "rgb,flow", "layout": "folders"},
            "--joint names the streams that each array holds: leave --streams",
        ),
        ({"window_frames": 64, "rescaled": True}, "window_frames has no meaning for rescaled features: leave one of"),
        ({"shard_mb": 1e-300}, "shard_mb is 1e-300; it must be from 1e-06 to 1,000,000"),
        ({"shard_mb": float("inf")}, "shard_mb is inf; it must be from 1e-06 to 1,000,000"),
        ({"workers": 0}, "workers is 0; it must be from 1 to 1,024"),
        ({"workers": 10**6}, "workers is 1000000; it must be from 1 to 1,024"),
    ],
)
def test_bad_options_and_an_out_that_exists_are_refused(
    published: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        published.pack(tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    (tmp_path / "out").mkdir()
    with pytest.raises(
        InputError, match="out already exists: remove it, pack into another folder, or add videos to it with --app"
    ):
        published.pack(tmp_path / "out")


def test_lists_of_classes_that_do_not_fit(published: Any, tmp_path: Path) -> None:
    for names, message in (
        (("Run", "Swim"), r"gt.json has labels that are not in the list of 2 classes: 'Jump'; add them to"),
        (("Run", "Jump", "Run"), "The list of classes names 'Run' more than once"),
    ):
        with pytest.raises(InputError, match=message):
            published.pack(tmp_path / "out", classes=write_classes(tmp_path, *names))
    (tmp_path / "classes.txt").write_bytes(b"Rn\xfcben")
    with pytest.raises(InputError, match=r"classes.txt is not UTF-8 text: give a file with a class a line"):
        published.pack(tmp_path / "out", classes=tmp_path / "classes.txt")


def test_frame_rates_and_durations_that_the_ground_truth_lacks(published: Any, tmp_path: Path) -> None:
    for video in ("a", "b"):
        del published.database[video]["fps"], published.database[video]["duration"]
    published.write_annotations()
    with pytest.raises(InputError, match=r"gt.json tells no fps for 2 videos \('a', 'b'\): give --fps, the frame rate"):
        published.pack(tmp_path / "out")
    published.pack(tmp_path / "out", fps=20.0, stride_frames=10)
    videos = {video.id: video for video in ShardSet.open(tmp_path / "out").videos}
    assert {video.fps for video in videos.values()} == {20.0}
    assert videos["a"].duration_s == videos["a"].snippets * 10 / 20.0
    assert videos["c"].duration_s == published.database["c"]["duration"]


@pytest.mark.parametrize("shard_mb", [ONE_VIDEO, 100e-6, 256])
def test_shards_are_cut_by_subset_and_size(published: Any, tmp_path: Path, shard_mb: float) -> None:
    published.pack(tmp_path / "out", shard_mb=shard_mb)
    shards = ShardSet.open(tmp_path / "out")
    for tar in (tmp_path / "out").glob("*.tar"):
        held = [video for index, video in enumerate(shards.videos) if shards.tar_of(index) == tar]
        assert len({video.subset for video in held}) == 1
        assert len(held) == 1 or sum(video.snippets * 8 * 2 for video in held) <= shard_mb * 1e6


def test_how_it_is_cut_does_not_change_the_identity(published: Any, tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "whole": {}, "cut": {"shard_mb": ONE_VIDEO}, "float32": {"dtype": "float32"}, "stride": {"stride_frames": 8},
        "window": {"window_frames": 64}, "same window": {"window_frames": 16},
        "classes": {"classes": write_classes(tmp_path, "Run", "Jump")},
    }  # fmt: skip
    for name, options in variants.items():
        published.pack(tmp_path / name, **options)
    published.save("rgb", "a", published.features["a"]["rgb"] + 1)
    published.pack(tmp_path / "values")
    published.save("rgb", "a", published.features["a"]["rgb"])
    published.database["a"]["annotations"][0]["label"] = "Jump"
    published.write_annotations()
    published.pack(tmp_path / "labels")
    identity = {name: ShardSet.open(tmp_path / name).identity for name in [*variants, "values", "labels"]}
    assert identity["whole"] == identity["cut"] == identity["same window"]
    assert len(set(identity.values())) == len(identity) - 2
    assert ShardSet.open(tmp_path / "window").clock == (16, 64)
    assert "window_frames" not in (tmp_path / "whole" / "dataset.json").read_text()


def test_a_tar_is_that_of_the_standard_library(published: Any, tmp_path: Path) -> None:
    published.pack(tmp_path / "out", shard_mb=ONE_VIDEO)
    for path in (tmp_path / "out").glob("*.tar"):
        again = io.BytesIO()
        with tarfile.open(path) as tar, tarfile.open(fileobj=again, mode="w", format=tarfile.PAX_FORMAT) as copy:
            for member in tar:
                content = tar.extractfile(member)
                assert content
                held = content.read()
                copy.addfile(member, io.BytesIO(held))
                if member.name.endswith(".npy"):
                    saved = io.BytesIO()
                    np.save(saved, np.load(io.BytesIO(held)))
                    assert held == saved.getvalue()
        assert path.read_bytes() == again.getvalue()


def test_a_plan_holds_no_object_a_video(publish: Callable[..., Any], tmp_path: Path) -> None:
    published = publish({"training": [f"v{number}" for number in range(50)]})
    plan = plan_packing(PackOptions(published.root, str(tmp_path / "out"), published.annotations))
    gc.collect()
    kinds = (PlannedVideo, VideoFeatures, FeatureArray, AnnotatedVideo, Instance)
    assert not [each for each in gc.get_objects() if type(each) in kinds]
    assert [len(shard.videos) for shard in plan.shards] == [50]
    assert [video.id for video in plan.annotated] == [video.features.video for video in plan.shards[0].videos]
