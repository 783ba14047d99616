"""W-TALC's release: a folder of arrays with the annotations, one pickle with all features."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_annotations, read_ground_truth
from aumn.records import InputError


def objects(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Three videos as W-TALC saved THUMOS14: the last has labels, but no times."""
    folder = tmp_path / "Annotations"
    folder.mkdir()
    columns = {
        "videoname": np.array([b"video_b", b"video_a", b"video_c"]),
        "subset": np.array([b"validation", b"test", b"validation"]),
        "duration": np.array([[4.0], [3.0], [2.0]]),
        "labels": objects([["Run", "Jump"], ["Jump"], []]),
        "segments": objects([[[0.5, 1.5], [2, 3.25]], [[1.0, 2.0]], []]),
        "labels_all": objects([["Run"], ["Jump"], ["Jump", "Run"]]),
        "extracted_fps": np.array([10, 10, 10]),
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column, allow_pickle=True)
    rng = np.random.default_rng(3)
    features = objects([rng.normal(size=(length, 8)).astype("f4") for length in (6, 5, 3)])
    np.save(tmp_path / "Tiny-I3D-JOINTFeatures.npy", features, allow_pickle=True)
    return tmp_path / "Tiny-I3D-JOINTFeatures.npy"


def pack_release(release: Path, **options: Any) -> ShardSet:
    out = release.with_name("packed")
    options = {"name": "w", "fps": 25.0, "allow_pickle": True, "dtype": "float32", "shard_mb": 8e-6} | options
    report = pack(release, out, release.with_name("Annotations"), **options)
    assert "layout wtalc" in report.source
    assert "columns 0-3 rgb, 4-7 flow" in report.source
    return ShardSet.open(out)


def test_features_meet_their_names_by_order(release: Path) -> None:
    shards = pack_release(release)
    arrays = dict(zip(("video_b", "video_a", "video_c"), np.load(release, allow_pickle=True), strict=True))
    assert [(video.subset, video.id, video.duration_s, video.fps) for video in shards.videos] == [
        ("test", "video_a", 3.0, 25.0), ("validation", "video_b", 4.0, 25.0), ("validation", "video_c", 2.0, 25.0)
    ]  # fmt: skip
    for index, video in enumerate(shards.videos):
        streams = shards.read(index)
        np.testing.assert_array_equal(np.concatenate(list(streams.values()), axis=1), arrays[video.id])
    assert [video.labels for video in shards.videos] == [(0,), (0, 1), (0, 1)]
    assert len(read_ground_truth(release.with_name("packed"), "test")) == 1
    truth = read_ground_truth(release.with_name("Annotations"), "validation", allow_pickle=True)
    assert (truth.videos, len(truth), truth.untimed) == (["video_b"], 2, {"video_c"})


def test_pickles_of_python_2_read_alike(release: Path) -> None:
    """The published files are of protocol 2, with numpy's old module names."""
    expected = pack_release(release).identity
    for path in (release, *release.with_name("Annotations").glob("*.npy")):
        values = np.load(path, allow_pickle=True)
        if values.dtype == object:
            content = pickle.dumps(values, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|O", "fortran_order": False, "shape": values.shape}
                )
                file.write(content)
    release.with_name("packed").rename(release.with_name("before"))
    assert pack_release(release).identity == expected


def test_pickles_need_the_flag_and_the_frame_rate_has_to_be_given(release: Path) -> None:
    with pytest.raises(InputError, match="Annotations tells no fps for 3 videos"):
        pack_release(release, fps=None)
    with pytest.raises(InputError, match=r"\.npy holds pickled Python objects, .* or give --allow-pickle"):
        pack_release(release, allow_pickle=False)
    with pytest.raises(InputError, match=r"\.npy holds pickled Python objects, .* or give --allow-pickle"):
        read_annotations(release.with_name("Annotations"))


def test_features_without_their_names_or_that_are_no_list(release: Path, tmp_path: Path) -> None:
    (tmp_path / "gt.csv").write_text("video,label,start,end\nvideo_a,Run,1,2\n")
    with pytest.raises(InputError, match="does not name its videos: give --annotations W-TALC's annotation folder"):
        pack(release, tmp_path / "out", tmp_path / "gt.csv", name="w", allow_pickle=True, fps=25.0)
    np.save(release, np.zeros((3, 8)))
    with pytest.raises(InputError, match="is not a list of arrays, one a video, as W-TALC's features are"):
        pack_release(release)


def drop_a_name(folder: Path) -> None:
    for path in folder.glob("*.npy"):
        np.save(path, np.load(path, allow_pickle=True)[:2], allow_pickle=True)


def set_entry(name: str, index: int, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        column = np.load(folder / f"{name}.npy", allow_pickle=True)
        column[index] = value
        np.save(folder / f"{name}.npy", column, allow_pickle=True)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "segments.npy").unlink(),
            "segments.npy is missing: W-TALC's annotation folder has it",
        ),
        (drop_a_name, "holds 3 arrays, and the annotation folder names 2 videos: take the folder that was released"),
        (
            lambda folder: np.save(folder / "subset.npy", np.array([b"a"])),
            r"subset.npy has 1 entries where videoname.npy",
        ),
        (set_entry("videoname", 1, b"video_b"), "videoname.npy names 'video_b' more than once"),
        (set_entry("labels", 1, []), "video 'video_a' has 0 labels and 1 segments; give each segment its label"),
        (set_entry("labels", 1, [7]), "video 'video_a' has 7 where a text must be"),
        (set_entry("videoname", 1, b"\xff"), r"videoname.npy has b'\\xff' where a text must be: it is not UTF-8"),
        (set_entry("segments", 1, [[2.0]]), "video 'video_a' "),
        (set_entry("segments", 1, [["x", 1]]), "start and end must be finite numbers of seconds"),
        (set_entry("duration", 1, -1.0), "video 'video_a' has duration -1.0; it must be a number above 0"),
    ],
)
def test_a_folder_that_is_wrong(release: Path, change: Callable[[Path], Any], message: str) -> None:
    change(release.with_name("Annotations"))
    with pytest.raises(InputError, match=message):
        pack_release(release)


@pytest.mark.shared
def test_the_real_annotation_folder_says_what_the_json_says(shared_data: Path) -> None:
    """Counts as published; the same instances as FTCL's release of the same ground truth, but for rounding."""
    folder = shared_data / "thumos14/wtalc_annotations"
    found = read_annotations(folder, allow_pickle=True).videos
    expected = read_annotations(shared_data / "thumos14/gt_ftcl.json").videos
    assert found.keys() == expected.keys()
    counts = dict.fromkeys(("validation", "test"), (0, 0))
    for video in found.values():
        videos, instances = counts[video.subset]
        counts[video.subset] = videos + 1, instances + len(video.annotations)
        ours, theirs = sorted(video.annotations), sorted(expected[video.id].annotations)
        assert [instance.label for instance in ours] == [instance.label for instance in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine[1:] == pytest.approx(other[1:], abs=0.051)
    assert counts == {"validation": (200, 3007), "test": (212, 3358)}
