"""`aumn extract` as a user runs it: a folder of videos, good and bad, on one rank and on two, killed and resumed."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from aumn.cli import _run
from aumn.runtime.ranks import Ranks
from aumn.video.extraction import extract as extract_folder
from aumn.video.options import ExtractOptions
from tests.launching import aumn, succeed
from tests.running import start

from .clips import moving, write_video

SMALL = ("--side", "36", "--crop", "32", "--streams", "rgb", "--batch", "1")
QUICK, SLOW = ("--extractor", "tests.video.clips:corners"), ("--extractor", "tests.video.clips:slow_corners")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in (("long", 100), ("middle", 60), ("short", 20)):
        (folder / name).mkdir()
        write_video(folder / name / f"{name}.mp4", [k / 25 for k in range(frames)], picture=moving, rate=25)
    (folder / "notes.txt").write_text("no video")
    return folder


def extract(videos, out, *options):
    return _run(["extract", str(videos), str(out), *SMALL, *options])


def files(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix in {".npy", ".json"} and path.name != "extraction.json"
    }


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "features"
    assert extract(videos, out, *QUICK) == 0
    return out


def test_the_folder_is_as_pack_reads_it(whole):
    assert sorted(files(whole)) == [
        f"{folder}/{name}" for folder, ending in (("facts", "json"), ("rgb", "npy"))
        for name in (f"{video}.{ending}" for video in ("long", "middle", "short"))
    ]  # fmt: skip
    told = json.loads((whole / "extraction.json").read_text())
    same = {"fps": 25.0, "stride_frames": 16, "window_frames": 16, "dtype": "float16"}
    assert told == {"format": 1, **same, "extractor": {
        "name": "tests.video.clips:corners", "streams": {"rgb": {"width": 48, "weights": None}}, "side": 36, "crop": 32,
        **same,
    }}  # fmt: skip
    assert json.loads((whole / "facts" / "middle.json").read_text()) == {
        "video": "middle", "file": "middle.mp4", "frames": 60, "fps": 25.0, "snippets": 3, "duration_s": 2.4,
    }  # fmt: skip
    values = np.load(whole / "rgb" / "middle.npy")
    assert values.shape == (3, 48)
    assert values.dtype == np.float16


def test_ranks_that_have_extracted_one_folder_extract_the_next_one_too(videos, whole, tmp_path):
    ranks = Ranks()
    for out in (tmp_path / "one", tmp_path / "two"):
        options = ExtractOptions(videos, out, streams="rgb", extractor=QUICK[1], side=36, crop=32, batch=1)
        extract_folder(options, ranks, lambda _done, _total: None)
        assert files(out) == files(whole)


def test_two_ranks_killed_and_gone_on_with_leave_the_same_bytes(videos, whole, tmp_path):
    """`jobs/extract.yaml` goes on with what a kill has left, by its own command line."""
    out = tmp_path / "features"
    argv = ("-m", "aumn", "extract", videos, out, *SMALL, *SLOW)
    with start(*argv, ranks=2) as running:
        running.wait_until(lambda: list(out.glob("facts/*.json")), what="a video that is done")
        running.kill_all()
    done = {path.stem for path in out.glob("facts/*.json")}
    assert 0 < len(done) < 3
    before = {name: (out / "rgb" / f"{name}.npy").stat().st_mtime_ns for name in done}
    job = "jobs/extract.yaml"
    run = " ".join(("extract", "{videos}", "{features}", *SMALL, *SLOW))
    changes = (f"settings.videos={videos}", f"settings.features={out}", f"steps.extract.run={run}",
               "steps.extract.resources.ranks_per_node=2", "tracking.enabled=false")  # fmt: skip
    options = [word for change in changes for word in ("--set", change)]
    succeed(aumn("submit", job, "--local", "--folder", tmp_path / "job", *options))
    assert files(out) == files(whole)
    assert before == {name: (out / "rgb" / f"{name}.npy").stat().st_mtime_ns for name in done}
    assert not list(out.rglob("*.partial"))


def test_bad_videos_are_told_behind_the_good_ones(videos, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(videos / "long", mixed)
    (mixed / "empty.mp4").write_bytes(b"")
    write_video(mixed / "tiny.mp4", [0, 0.04], rate=25)
    out = tmp_path / "features"
    assert extract(mixed, out, *QUICK) == 2
    told = capsys.readouterr()
    assert "features: 1 videos; rgb 48 wide" in told.out
    assert "2 of 3 videos could not be extracted" in told.err
    assert f"{mixed}/empty.mp4 is no video, or was cut short" in told.err
    assert f"{mixed}/tiny.mp4 lasts 0.08 s, less than one window" in told.err
    assert sorted(files(out)) == ["facts/long.json", "rgb/long.npy"]
    assert extract(mixed, out, *QUICK, "--on-bad", "skip") == 0
    told = capsys.readouterr()
    assert "1 videos, 1 of them by an earlier run" in told.out
    assert "2 of 3 videos could not be extracted" in told.out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((*QUICK, "--fps", "30"), "extracted otherwise .*fps is 25.0 there, 30.0 here"),
        ((*QUICK, "--window-frames", "8"), "window_frames is 16 there, 8 here"),
        (SLOW, "extractor.name is"),
        ((*QUICK, "--fps", "fast"), "--fps is 'fast'; give a rate"),
        ((*QUICK, "--fps", "-1"), "the options: fps"),
        ((*QUICK, "--on-bad", "stay"), "choose stop or skip"),
        ((*QUICK, "--batch", "0"), "--batch is 0"),
        ((*QUICK, "--weights", "rgb"), "must read rgb=FILE"),
        ((*QUICK, "--weights", "rgb=/no/file"), "there is no file /no/file"),
        (("--streams", "rgb,flow"), "Stream flow needs weights of yours"),
    ],
)
def test_what_is_asked_otherwise_is_refused(videos, whole, capsys, options, problem):
    before = files(whole)
    assert extract(videos, whole, *options) == 2
    assert re.search(problem, capsys.readouterr().err)
    assert files(whole) == before


def test_names_of_videos_must_differ_and_there_must_be_some(videos, tmp_path, capsys):
    for folder in ("a", "b"):
        shutil.copytree(videos / "short", tmp_path / "twice" / folder)
    assert extract(tmp_path / "twice", tmp_path / "out", *QUICK) == 2
    assert "1 names" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert extract(tmp_path / "none", tmp_path / "out", *QUICK) == 2
    assert "holds no video" in capsys.readouterr().err
    assert extract(tmp_path / "nowhere", tmp_path / "out", *QUICK) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "needs"), [("av", "Decoding videos needs PyAV"), ("cv2", "Stream flow needs OpenCV")]
)
def test_what_to_install_is_said_without_the_libraries(videos, tmp_path, capsys, monkeypatch, library, needs):
    monkeypatch.setitem(sys.modules, library, None)
    assert extract(videos, tmp_path / "out", "--streams", "rgb,flow") == 2
    told = capsys.readouterr().err
    assert needs in told
    assert "pip install 'aumn[video]'" in told
