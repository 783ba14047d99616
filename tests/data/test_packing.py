"""Packing: what goes in comes out, in the same bytes however it was cut, stopped or started again."""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aumn.data.annotations import read_annotations
from aumn.data.packing import PackingReport, pack
from aumn.data.shards import ShardSet
from aumn.data.tars import sample_key
from aumn.records import InputError

ONE_VIDEO = 8  # shard_bytes by which every video gets a shard of its own
ODD_IDS = ["v.1.2", ".hidden", "a b", "ünï", "日本", "50%", "-x", "__meta__", "folder/clip.1", 'it\'s "so"', "x" * 120]


def run(published: Any, out: Path, **options: Any) -> PackingReport:
    return pack(published.root, out, published.annotations, **{"name": "small", "workers": 1} | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_goes_in_comes_out(published: Any, tmp_path: Path) -> None:
    report = run(published, tmp_path / "out", dtype="float32", shard_bytes=200, stride_frames=8)
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
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published"]


def test_temporal_ground_truth_lies_in_its_own_file_alone(published: Any, tmp_path: Path) -> None:
    run(published, tmp_path / "out")
    assert read_annotations(tmp_path / "out").videos == read_annotations(published.annotations).videos
    for name, content in contents(tmp_path / "out").items():
        assert name == "annotations.parquet" or (b"segment" not in content and b"start_s" not in content)


def test_the_unmatched_are_reported(published: Any, tmp_path: Path) -> None:
    for stream in ("rgb", "flow"):
        published.path(stream, "b").rename(published.path(stream, "stranger"))
        published.path(stream, "d").rename(published.path(stream, "alien"))
    report = run(published, tmp_path / "out")
    assert report.packed == {"testing": 1, "training": 2}
    assert report.without_features == ["b", "d"]
    assert report.without_annotations == ["alien", "stranger"]
    assert read_annotations(tmp_path / "out").videos.keys() == {"a", "c", "e"}


def test_no_match_at_all_shows_both_sides(published: Any, tmp_path: Path) -> None:
    published.database = {f"v_{video}": entry for video, entry in published.database.items()}
    published.write_annotations()
    with pytest.raises(
        InputError, match=r"holds 'a', 'b', 'c', ..., and the annotations 'v_a', 'v_b', 'v_c', ...; name"
    ):
        run(published, tmp_path / "out")


def test_classes_in_a_given_order(published: Any, tmp_path: Path) -> None:
    run(published, tmp_path / "out", classes=["Run", "Swim", "Jump"])
    shards = ShardSet.open(tmp_path / "out")
    assert shards.classes == ("Run", "Swim", "Jump")
    assert {video.id: video.labels for video in shards.videos} == {
        "a": (0,),
        "b": (2,),
        "c": (0,),
        "d": (2,),
        "e": (0,),
    }


def test_several_labels_a_video_are_a_set(published: Any, tmp_path: Path) -> None:
    again = [{"label": label, "segment": [0, 1]} for label in ("Run", "Jump", "Run")]
    published.database["a"]["annotations"] = again
    published.database["d"]["annotations"] = []
    published.write_annotations()
    run(published, tmp_path / "out")
    labels = {video.id: video.labels for video in ShardSet.open(tmp_path / "out").videos}
    assert (labels["a"], labels["d"]) == ((0, 1), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ["Run", "Swim"]},
            r"gt.json has labels that are not in the list of 2 classes: 'Jump'; add them to",
        ),
        ({"classes": ["Run", "Jump", "Run"]}, "The list of classes names 'Run' more than once"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' is not one that shards hold: choose float16 or float32"),
        ({"fps": 0.0}, "fps is 0.0; it must be above 0"),
        ({"fps": float("nan")}, "fps is nan; it must be above 0"),
        ({"stride_frames": 0}, "stride_frames is 0; it must be at least 1"),
        ({"shard_bytes": 0}, "shard_bytes is 0; it must be at least 1"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_bad_options(published: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(published, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_frame_rates_and_durations_that_the_ground_truth_lacks(published: Any, tmp_path: Path) -> None:
    for video in ("a", "b"):
        del published.database[video]["fps"], published.database[video]["duration"]
    published.write_annotations()
    with pytest.raises(InputError, match=r"gt.json tells no fps for 2 videos \('a', 'b'\): give --fps, the frame rate"):
        run(published, tmp_path / "out")
    run(published, tmp_path / "out", fps=20.0, stride_frames=10)
    videos = {video.id: video for video in ShardSet.open(tmp_path / "out").videos}
    assert {video.fps for video in videos.values()} == {20.0}
    assert videos["a"].duration_s == videos["a"].snippets * 10 / 20.0
    assert videos["c"].duration_s == published.database["c"]["duration"]


def test_nothing_is_overwritten(published: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out already exists: remove it, or pack into another folder"):
        run(published, tmp_path / "out")


@pytest.mark.parametrize("shard_bytes", [ONE_VIDEO, 100, 2**28])
def test_shards_are_cut_by_subset_and_size(published: Any, tmp_path: Path, shard_bytes: int) -> None:
    run(published, tmp_path / "out", shard_bytes=shard_bytes)
    shards = ShardSet.open(tmp_path / "out")
    for tar in (tmp_path / "out").glob("*.tar"):
        held = [video for index, video in enumerate(shards.videos) if shards.tar_of(index) == tar]
        assert len({video.subset for video in held}) == 1
        assert len(held) == 1 or sum(video.snippets * 8 * 2 for video in held) <= shard_bytes


def test_progress_counts_videos(published: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 5) for done in range(6)]


def test_same_bytes_for_any_number_of_workers(publish: Callable[..., Any], tmp_path: Path) -> None:
    published = publish({"training": [f"t{number}" for number in range(9)], "testing": ["x", "y"]})
    for workers in (1, 2, 3):
        run(published, tmp_path / f"out{workers}", workers=workers, shard_bytes=200)
    expected = contents(tmp_path / "out1")
    assert len(expected) > 5
    assert contents(tmp_path / "out2") == expected
    assert contents(tmp_path / "out3") == expected


def test_how_it_is_cut_does_not_change_the_identity(published: Any, tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "whole": {}, "cut": {"shard_bytes": ONE_VIDEO}, "float32": {"dtype": "float32"}, "stride": {"stride_frames": 8},
        "classes": {"classes": ["Run", "Jump"]},
    }  # fmt: skip
    for name, options in variants.items():
        run(published, tmp_path / name, **options)
    published.save("rgb", "a", published.features["a"]["rgb"] + 1)
    run(published, tmp_path / "values")
    published.save("rgb", "a", published.features["a"]["rgb"])
    published.database["a"]["annotations"][0]["label"] = "Jump"
    published.write_annotations()
    run(published, tmp_path / "labels")
    identity = {name: ShardSet.open(tmp_path / name).identity for name in [*variants, "values", "labels"]}
    assert identity["whole"] == identity["cut"]
    assert len(set(identity.values())) == len(identity) - 1


class StoppedError(Exception):
    """The run ends here, as by an error of the machine."""


def stop_at(videos: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done >= videos:
            raise StoppedError

    return on_progress


def test_finished_shards_are_kept(published: Any, tmp_path: Path) -> None:
    run(published, tmp_path / "whole", shard_bytes=ONE_VIDEO)
    with pytest.raises(StoppedError):
        run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, on_progress=stop_at(3))
    assert not (tmp_path / "out").exists()
    left_by_a_kill = tmp_path / "out.partial" / "progress" / "testing-000000.tar.7.writing"
    left_by_a_kill.write_bytes(b"half a shard")
    seen: list[int] = []

    def on_progress(done: int, total: int) -> None:
        seen.append(done)
        assert not left_by_a_kill.exists()

    report = run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, on_progress=on_progress)
    assert (report.kept_shards, report.shards, seen) == (3, 5, [3, 4, 5])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_other_options_start_afresh_and_say_so(
    published: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, on_progress=stop_at(4))
    report = run(published, tmp_path / "out", dtype="float32", shard_bytes=1000)
    run(published, tmp_path / "fresh", dtype="float32", shard_bytes=1000)
    assert report.kept_shards == 0
    assert "4 shards in" in caplog.text
    assert "were packed from other files or with other options: they are packed afresh" in caplog.text
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")  # no shard of the first plan among them


def test_only_shards_of_changed_files_are_redone(
    published: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, on_progress=stop_at(5))
    published.save("rgb", "a", published.features["a"]["rgb"] + 1)  # of the same size: its time tells
    report = run(published, tmp_path / "out", shard_bytes=ONE_VIDEO)
    run(published, tmp_path / "fresh", shard_bytes=ONE_VIDEO)
    assert report.kept_shards == 4
    assert "1 shards in" in caplog.text
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_damaged_finished_shard_is_redone(published: Any, tmp_path: Path) -> None:
    run(published, tmp_path / "whole", shard_bytes=ONE_VIDEO)
    with pytest.raises(StoppedError):
        run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, on_progress=stop_at(5))
    shards = tmp_path / "out.partial" / "shards"
    (shards / "testing-000000.tar").unlink()
    os.truncate(shards / "training-000002.tar", 512)
    assert run(published, tmp_path / "out", shard_bytes=ONE_VIDEO).kept_shards == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_good_shards_survive_bad_videos(published: Any, tmp_path: Path) -> None:
    for video in ("b", "e"):
        published.save("rgb", video, np.full_like(published.features[video]["rgb"], np.nan))
    with pytest.raises(InputError, match=r"2 videos cannot be packed \(3 finished shards of 5 stay in .*out.partial"):
        run(published, tmp_path / "out", shard_bytes=ONE_VIDEO)
    for video in ("b", "e"):
        published.save("rgb", video, published.features[video]["rgb"])
    assert run(published, tmp_path / "out", shard_bytes=ONE_VIDEO).kept_shards == 3


def test_one_run_at_a_time(published: Any, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with (tmp_path / "out.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"Another run is packing into .*out: let it finish, or stop it first"):
            run(published, tmp_path / "out")
    run(published, tmp_path / "out")


PACK_AND_DIE = """
import multiprocessing, os, signal, sys
from pathlib import Path
from aumn.data.packing import pack

def die(done, total):
    if done >= {videos}:
        print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    pack(root, out, root / "gt.json", name="small", workers={workers}, shard_bytes=8, on_progress=die)
"""


@pytest.mark.parametrize(("workers", "videos"), [(1, 7), (2, 0), (2, 5), (2, 13), (2, 24)])
def test_killed_and_resumed_is_never_killed(
    publish: Callable[..., Any], tmp_path: Path, workers: int, videos: int
) -> None:
    published = publish({"training": [f"t{number}" for number in range(15)], "testing": list("abcdefghi")})
    script = tmp_path / "pack_and_die.py"
    script.write_text(PACK_AND_DIE.format(videos=videos, workers=workers))
    command = [sys.executable, str(script), str(published.root), str(tmp_path / "out")]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    for worker in killed.stdout.split():
        wait_until_dead(int(worker))

    report = run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, workers=2)
    assert videos <= report.kept_shards < videos + 20
    run(published, tmp_path / "whole", shard_bytes=ONE_VIDEO)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def wait_until_dead(process: int, patience_s: float = 20.0) -> None:
    give_up = time.monotonic() + patience_s
    while Path(f"/proc/{process}/stat").exists():
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < give_up, f"worker {process} outlived its parent"
        time.sleep(0.05)


def test_killed_workers_are_said_and_the_run_can_go_on(publish: Callable[..., Any], tmp_path: Path) -> None:
    published = publish({"training": [f"t{number}" for number in range(15)]})

    def kill_the_workers(done: int, total: int) -> None:
        if done == 3:
            for worker in multiprocessing.active_children():
                worker.kill()

    with pytest.raises(
        InputError, match="A worker process was killed, perhaps for want of memory: run the same command"
    ):
        run(published, tmp_path / "out", shard_bytes=ONE_VIDEO, workers=2, on_progress=kill_the_workers)
    assert run(published, tmp_path / "out", shard_bytes=ONE_VIDEO).kept_shards >= 3
    run(published, tmp_path / "whole", shard_bytes=ONE_VIDEO)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_workers_import_nothing_heavy() -> None:
    code = "import sys, aumn.data.shard_writer as w; print({'torch', 'pyarrow', 'webdataset'} & set(sys.modules))"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert heavy.strip() == "set()"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_keys_are_cut_nowhere_and_lead_back(video: str) -> None:
    key = sample_key(video)
    assert key.isascii()
    assert not {".", "/", "\0"} & set(key)
    assert unquote(key) == video


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_webdataset_streams_the_members(publish: Callable[..., Any], tmp_path: Path) -> None:
    import webdataset

    published = publish({"training/1.5": ODD_IDS})
    run(published, tmp_path / "out", shard_bytes=300)
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(tars) > 2
    samples = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        assert set(sample) == {"__key__", "__url__", "__local_path__", "rgb.npy", "flow.npy", "json"}
        samples[unquote(sample["__key__"])] = sample
    assert samples.keys() == set(ODD_IDS)
    for number, video in enumerate(ODD_IDS):
        for stream, features_TD in published.features[video].items():
            np.testing.assert_array_equal(samples[video][f"{stream}.npy"], features_TD.astype("float16"))
        assert samples[video]["json"] == {
            "id": video,
            "subset": "training/1.5",
            "snippets": len(published.features[video]["rgb"]),
            "labels": [["Run", "Jump"][number % 2]],
            "duration_s": 10.0 + number,
            "fps": 25.0,
        }
    shards = ShardSet.open(tmp_path / "out")
    assert {video.id for video in shards.videos} == set(ODD_IDS)
    assert all(shards.read(index) for index in range(len(shards)))


@pytest.mark.shared
def test_real_i3d_features(shared_data: Path, tmp_path: Path) -> None:
    truth = json.loads((shared_data / "i3d_samples/untrimmed_gt.json").read_text())["GT"]
    features = tmp_path / "features"
    with np.load(shared_data / "i3d_samples/untrimmed_i3d.npz") as archive:
        originals = {
            video: {"rgb": archive[video][:, :1024], "flow": archive[video][:, 1024:]} for video in archive.files
        }
    for video, streams in originals.items():
        for stream, features_TD in streams.items():
            (features / stream).mkdir(parents=True, exist_ok=True)
            np.save(features / stream / f"{video}.npy", features_TD)
    annotations = tmp_path / "gt.json"
    annotations.write_text(json.dumps({"database": {video.removesuffix(".npy"): truth[video] for video in truth}}))

    for dtype, tolerance in (("float32", 0.0), ("float16", 2**-11)):
        pack(features, tmp_path / dtype, annotations, name="i3d", stride_frames=64, dtype=dtype, workers=1)
        shards = ShardSet.open(tmp_path / dtype)
        assert {video.id: video.snippets for video in shards.videos} == {"highjump": 164, "tennis26": 89}
        for index, video in enumerate(shards.videos):
            for stream, features_TD in shards.read(index).items():
                np.testing.assert_allclose(features_TD, originals[video.id][stream], rtol=tolerance, atol=1e-7)


@pytest.mark.shared
def test_shrec_packs_whole(shrec: Path, tmp_path: Path) -> None:
    report = pack(shrec, tmp_path / "out", shrec / "gt.json", name="shrec21", stride_frames=8, workers=2)
    assert report.packed == {"testing": 72, "training": 108}
    assert (len(report.classes), report.streams) == (17, {"rgb": 480, "flow": 480})
    assert (report.without_features, report.without_annotations) == ([], [])
