"""Videos added to a shard set: the grown set is that of one packing, and the old version stays as it was, whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from aumn.cli.printing import print_packing
from aumn.data.packing import packing
from aumn.data.packing.packing import pack
from aumn.data.packing.planning import PackingReport
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_annotations, read_ground_truth
from aumn.inspect.inspection import inspect_shards
from aumn.records import InputError
from tests.data.conftest import ONE_VIDEO, contents
from tests.data.packing.test_extraction import EXTRACTION, tell
from tests.data.packing.test_packing import write_classes
from tests.data.packing.test_packing_restarts import StoppedError, stop_at

FIRST = ("a", "c", "d")  # of a to e; c is the last of its subset, so that what is added lies between


def pack_some(published: Any, out: Path, videos: tuple[str, ...] = FIRST, **options: Any) -> PackingReport:
    some = published.root / "some.json"
    some.write_text(json.dumps({"database": {video: published.database[video] for video in videos}}))
    return pack(published.root, out, some, **{"name": "small", "workers": 1} | options)


def append(published: Any, out: Path, **options: Any) -> PackingReport:
    """With no option but those of the test."""
    return pack(published.root, out, published.annotations, append=True, **{"workers": 1} | options)


def read_all(shards: ShardSet) -> dict[str, Any]:
    return {video.id: (video, shards.read(row)) for row, video in enumerate(shards.videos)}


def assert_same_videos(ours: ShardSet, theirs: ShardSet) -> None:
    assert list(ours.videos) == list(theirs.videos)
    for (_, features), (_, expected) in zip(read_all(ours).values(), read_all(theirs).values(), strict=True):
        assert features.keys() == expected.keys()
        for stream in features:
            np.testing.assert_array_equal(features[stream], expected[stream])


def test_a_grown_set_is_that_of_one_packing_and_the_old_version_stays(
    published: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    pack_some(published, out)
    before, old = contents(out), ShardSet.open(out)
    report = append(published, out)
    assert (report.appended_to, report.held, report.packed) == (3, 3, {"testing": 1, "training": 1})
    after, grown = contents(out), ShardSet.open(out)
    kept = after.pop(f"dataset-{old.identity}.json")
    assert before == {name: after[name] for name in before if name != "dataset.json"} | {"dataset.json": kept}
    assert after.keys() - before == {
        "manifest-0001.parquet", "annotations-0001.parquet", "testing-000001.tar", "training-000001.tar"
    }  # fmt: skip

    published.pack(tmp_path / "once")
    once = ShardSet.open(tmp_path / "once")
    assert (grown.identity, grown.classes, grown.name) == (once.identity, once.classes, once.name)
    assert_same_videos(grown, once)
    assert after["annotations-0001.parquet"] == (tmp_path / "once" / "annotations.parquet").read_bytes()
    rows = pq.read_table(out / "manifest-0001.parquet").to_pylist()
    assert [(row["subset"], row["id"], row["shard"]) for row in rows] == [
        ("testing", "d", 0), ("testing", "e", 2), ("training", "a", 1), ("training", "b", 3), ("training", "c", 1)
    ]  # fmt: skip
    found = inspect_shards(out)  # which holds the tables against each other and the identity against both
    assert len(found.population) == 5

    again = ShardSet.open(out, identity=old.identity)
    assert again.identity == old.identity
    assert_same_videos(again, old)
    for path, identity in ((out, old.identity), (out / "annotations.parquet", None)):
        assert read_annotations(path, identity=identity).videos.keys() == {*FIRST}
        assert read_ground_truth(path, "testing", identity=identity).videos == ["d"]
    for path in (out, out / "annotations-0001.parquet"):
        assert read_ground_truth(path, "testing").videos == ["d", "e"]
    assert ShardSet.open(out, identity="0" * 16).identity == grown.identity  # who asked for another looks for himself

    print_packing(report)
    for name in ("rgb", "flow"):  # nor does anything need the features of videos that are there
        published.path(name, "a").unlink()
    grown_files = contents(out)
    print_packing(append(published, out))
    printed = capsys.readouterr().out
    assert "out: 1 testing, 1 training videos added to 3; 2 classes; rgb 5, flow 3 wide; 2 shards" in printed
    assert "Passed over: 3 videos that are in the set already, with equal features and annotations." in printed
    assert "out: nothing to add to its 5 videos; nothing was changed." in printed
    assert "Left out" not in printed
    assert contents(out) == grown_files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once", "out", "published"]


def test_new_classes_come_behind_and_a_set_may_grow_again(published: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    published.database["b"]["annotations"][0]["label"] = "Dive"
    published.database["e"]["annotations"][0]["label"] = "Bow"
    published.write_annotations()
    pack_some(published, out)
    versions = [ShardSet.open(out)]
    assert pack_some(published, out, ("b",), append=True).new_classes == ("Dive",)
    versions.append(ShardSet.open(out))
    listed = write_classes(tmp_path, "Jump", "Run", "Dive", "Swim", "Bow")
    assert append(published, out, classes=listed).new_classes == ("Swim", "Bow")
    versions.append(ShardSet.open(out))
    assert [version.classes for version in versions] == [
        ("Jump", "Run"), ("Jump", "Run", "Dive"), ("Jump", "Run", "Dive", "Swim", "Bow")
    ]  # fmt: skip
    assert {video.id: video.labels for video in versions[-1].videos} == {
        "a": (1,), "b": (2,), "c": (1,), "d": (0,), "e": (4,)
    }  # fmt: skip
    assert (out / "manifest-0002.parquet").is_file()
    for version in versions:
        assert_same_videos(ShardSet.open(out, identity=version.identity), version)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32", "stride_frames": 8, "window_frames": 32, "fps": 20.0, "on_bad": "swap"},
        {"streams": "flow"},
        {"rescaled": True},
    ],
)
def test_what_the_set_was_packed_with_need_not_be_said_again(
    published: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "rescaled" in options:
        for video in published.features:
            for stream, width in (("rgb", 5), ("flow", 3)):
                published.save(stream, video, np.full((4, width), ord(video), "float32"))
    pack_some(published, tmp_path / "out", **options)
    pack_some(published, tmp_path / "once", (*FIRST, "b", "e"), **options)
    append(published, tmp_path / "out")
    assert ShardSet.open(tmp_path / "out").identity == ShardSet.open(tmp_path / "once").identity
    assert read_annotations(tmp_path / "out").on_bad == options.get("on_bad", "stop")


def test_videos_that_were_left_out_are_added_once_they_are_well(published: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for video in ("a", "b"):
        published.save("rgb", video, np.full_like(published.features[video]["rgb"], np.nan))
    published.pack(out, on_bad="skip")
    before = contents(out)
    report = append(published, out)
    assert (report.packed, report.held, [*report.bad]) == ({}, 3, ["a", "b"])
    assert contents(out) == before
    published.save("rgb", "a", published.features["a"]["rgb"])
    assert append(published, out).packed == {"training": 1}
    assert ShardSet.open(out).left_out == ("b",)


def change(**fields: Any) -> Callable[[Any], None]:
    return lambda published: published.database["a"].update(fields)


def other_features(published: Any) -> None:
    for video in ("a", "c"):
        published.save("rgb", video, published.features[video]["rgb"] + 1)


def extracted_otherwise(published: Any) -> None:
    file = published.root / "extraction.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"extractor": told["extractor"] | {"side": 224}}))


ANOTHER = r"out holds other features than those to add \("
TELLS = "give them other ids, or pack all anew into another set"


@pytest.mark.parametrize(
    ("disturb", "options", "message"),
    [
        (other_features, {}, rf"out holds 2 of these videos otherwise: 'a' \(other features\), 'c' .*: {TELLS}"),
        (change(subset="testing"), {}, rf"out holds 1 of these videos otherwise: 'a' \(other subset\): {TELLS}"),
        (change(annotations=[{"label": "Jump", "segment": [1, 2.5]}]), {}, r"'a' \(other labels\): give them"),
        (change(annotations=[{"label": "Run", "segment": [1, 2]}]), {}, r"'a' \(other times\): give them"),
        (change(duration=9.0), {}, r"'a' \(other duration\): give them"),
        (None, {"fps": 20.0}, r"holds 3 of these videos otherwise: 'd' \(other fps\), 'a' \(other fps\), 'c'"),
        (None, {"dtype": "float32"}, rf"{ANOTHER}dtype float16, not float32\): what is added must be like what"),
        (None, {"name": "other"}, rf"{ANOTHER}name small, not other\)"),
        (None, {"streams": "flow"}, rf"{ANOTHER}streams {{'rgb': 5, 'flow': 3}}, not {{'flow': 3}}\)"),
        (None, {"stride_frames": 8}, rf"{ANOTHER}snippets every 16 frames, not every 8 frames"),
        (None, {"window_frames": 64}, rf"{ANOTHER}snippets every 16 frames, not every 16 frames, each of 64\)"),
        (None, {"classes": ("Run", "Jump")}, r"classes does not begin with the 2 classes of .*out in their order"),
        (extracted_otherwise, {}, rf"{ANOTHER}extractor's side 256, not 224\)"),
        (
            lambda published: (published.root / "extraction.json").unlink(),
            {"stride_frames": 8, "fps": 24.0},
            rf"{ANOTHER}extractor i3d, not none that is told\)",
        ),
    ],
)
def test_what_contradicts_the_set_is_refused_in_a_sentence(
    published: Any, tmp_path: Path, disturb: Callable[[Any], None] | None, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    if "extractor" in message:
        (published.root / "facts").mkdir()
        for video, streams in published.features.items():
            tell(published, video, snippets=len(streams["rgb"]))
        (published.root / "extraction.json").write_text(json.dumps(EXTRACTION))
    pack_some(published, out)
    before = contents(out)
    if disturb:
        disturb(published)
        published.write_annotations()
    if "classes" in options:
        options = {"classes": write_classes(tmp_path, *options["classes"])}
    with pytest.raises(InputError, match=message):
        append(published, out, **options)
    assert contents(out) == before
    assert not (tmp_path / "out.partial").exists()


def test_what_is_done_with_bad_videos_once_is_not_done_for_ever(published: Any, tmp_path: Path) -> None:
    pack_some(published, tmp_path / "out")
    append(published, tmp_path / "out", on_bad="skip")
    assert read_annotations(tmp_path / "out").on_bad == "stop"


def test_a_choice_on_bad_videos_is_kept_and_a_set_that_is_none_is_refused(published: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"out is not a shard set: it holds no dataset.json; make one with `aumn pack`"
    ):
        append(published, tmp_path / "out")
    pack_some(published, tmp_path / "out", on_bad="swap")
    with pytest.raises(InputError, match=r"--on-bad skip contradicts .*out, which was packed with --on-bad swap: leav"):
        append(published, tmp_path / "out", on_bad="skip")


def test_stopped_while_shards_are_written_it_goes_on_also_by_another_name(published: Any, tmp_path: Path) -> None:
    out, link = tmp_path / "disk" / "set", tmp_path / "link"
    pack_some(published, out)
    link.symlink_to(out)
    before = contents(out)
    with pytest.raises(StoppedError):
        append(published, link, shard_mb=ONE_VIDEO, on_progress=stop_at(4))  # three are there
    assert contents(out) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["set", "set.partial"]
    report = append(published, out, shard_mb=ONE_VIDEO)
    assert (report.kept_shards, report.shards) == (1, 2)
    assert len(ShardSet.open(out)) == 5


def test_killed_at_any_step_of_the_end_the_old_set_is_whole_and_the_same_command_finishes(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of a name in the set's folder is one step; the last one makes the new set."""
    start, whole = tmp_path / "start", tmp_path / "whole"
    pack_some(published, start)
    shutil.copytree(start, whole)
    append(published, whole)
    old, steps = ShardSet.open(start), 0

    def dies_at(method: Callable[[Path, Path], Path], last: int) -> Callable[[Path, Path], Path]:
        def rename(self: Path, target: Path) -> Path:
            nonlocal steps
            if target.parent == out:
                if steps == last:
                    raise StoppedError
                steps += 1
            return method(self, target)

        return rename

    for last in range(6):  # two tars, two tables, the old description, the new one
        out, steps = tmp_path / f"out{last}", 0
        shutil.copytree(start, out)
        with monkeypatch.context() as patched:
            for name in ("rename", "replace"):
                patched.setattr(Path, name, dies_at(getattr(Path, name), last))
            with pytest.raises(StoppedError):
                append(published, out)
        assert_same_videos(ShardSet.open(out), old)
        assert read_annotations(out).videos.keys() == {*FIRST}
        assert append(published, out).kept_shards == 2
        assert contents(out) == contents(whole)
    assert steps == 5

    shutil.copytree(start, out := tmp_path / "late")
    with monkeypatch.context() as patched:
        patched.setattr(packing.shutil, "rmtree", lambda _: stop_at(0)(0, 0))
        with pytest.raises(StoppedError):
            append(published, out)
    assert append(published, out).packed == {}
    assert contents(out) == contents(whole)
    assert not (tmp_path / "late.partial").exists()


def test_a_set_that_another_run_has_just_added_to_is_looked_at_again(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack_some(published, out)
    plan = packing.plan_packing

    def plan_and_be_overtaken(options: Any) -> Any:
        made = plan(options)
        monkeypatch.setattr(packing, "plan_packing", plan)
        append(published, out)
        return made

    monkeypatch.setattr(packing, "plan_packing", plan_and_be_overtaken)
    with pytest.raises(InputError, match=r"Another run has just added to .*out: run the same command again"):
        append(published, out)
    assert append(published, out).held == 5
