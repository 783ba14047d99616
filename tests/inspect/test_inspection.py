"""`aumn inspect`: counts and values against numpy over everything, and every kind of wrong video found and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.ends import measure_ends
from aumn.inspect.inspection import Inspection, inspect_shards
from aumn.inspect.picture import draw
from aumn.records import InputError
from aumn.synth import synthesize
from tests.launching import aumn, succeed


class Place:
    """Twelve synthetic videos to spoil and pack."""

    def __init__(self, root: Path) -> None:
        self.root, self.features = root, root / "features"
        synthesize(self.features, videos=12, classes=3, units=4, width=6, mean_snippets=30, testing_share=0.25)
        self.truth = json.loads((self.features / "gt.json").read_text())

    def path(self, stream: str, number: int) -> Path:
        return self.features / stream / f"synth_{number:06d}.npy"

    def change(self, stream: str, number: int, how: Callable[[np.ndarray], np.ndarray]) -> None:
        np.save(self.path(stream, number), how(np.load(self.path(stream, number))))

    def pack(self) -> Path:
        (self.features / "gt.json").write_text(json.dumps(self.truth))
        pack(self.features, self.root / "shards", self.features / "gt.json", name="twelve", workers=1)
        return self.root / "shards"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def findings(found: Inspection) -> set[tuple[str, str, str]]:
    return {(finding.kind, finding.video[-2:], finding.text) for finding in found.findings}


def test_counts_and_values_are_those_of_everything_together(place: Place) -> None:
    found = inspect_shards(place.pack())
    shards = ShardSet.open(place.root / "shards")
    for stream, facts in found.streams.items():
        everything = np.concatenate([shards.read(index)[stream] for index in range(len(shards))]).astype("float64")
        assert (facts.width, facts.lowest, facts.highest) == (6, everything.min(), everything.max())
        measured = (facts.mean, facts.deviation, facts.zeros)
        assert measured == pytest.approx((everything.mean(), everything.std(), (everything == 0).mean()), rel=1e-6)
        assert facts.norm == pytest.approx(np.sqrt((everything**2).sum(1).mean()), rel=1e-6)
    for subset, facts in found.subsets.items():
        videos = [video for video in shards.videos if video.subset == subset]
        lengths = sorted(video.snippets for video in videos)
        assert (facts.videos, facts.snippets) == (len(videos), sum(lengths))
        assert (facts.shortest, facts.median, facts.longest) == (lengths[0], np.median(lengths), lengths[-1])
        assert facts.hours == pytest.approx(sum(video.duration_s for video in videos) / 3600)
    assert {label: sum(counts.values()) for label, counts in found.classes.items()} == {
        label: sum(label in [a["label"] for a in entry["annotations"]] for entry in place.truth["database"].values())
        for label in shards.classes
    }
    assert found.findings == []


def test_every_kind_of_wrong_video_is_named(place: Place) -> None:
    place.change("rgb", 0, np.zeros_like)
    place.change("flow", 1, lambda features: np.repeat(features[:1], len(features), axis=0))
    place.change("rgb", 2, lambda features: np.repeat(features, 3, axis=0)[: len(features)])
    place.change("rgb", 3, lambda features: features * 40)
    place.truth["database"]["synth_000004"]["duration"] *= 2
    for stream in ("rgb", "flow"):
        np.save(place.path(stream, 6), np.load(place.path(stream, 5)))
    place.truth["database"]["synth_000006"] = place.truth["database"]["synth_000005"] | {"subset": "other"}
    place.truth["database"]["synth_000007"]["annotations"] = []
    found = inspect_shards(place.pack())
    texts = {(kind, video): text for kind, video, text in findings(found)}
    snippets = {video.id[-2:]: video.snippets for video in found.population}
    subset = place.truth["database"]["synth_000005"]["subset"]
    assert texts.keys() == {
        ("constant", "00"), ("constant", "01"), ("repeated", "02"), ("scale", "03"), ("duration", "04"),
        ("duplicated", "06") if subset < "other" else ("duplicated", "05"),
    }  # fmt: skip
    assert texts["constant", "00"] == "rgb is all zeros"
    assert texts["constant", "01"] == f"flow is the same in all {snippets['01']} snippets"
    assert "rgb repeats the snippet before in" in texts["repeated", "02"]
    assert texts["scale", "03"].startswith("rgb deviates by ")
    assert texts["duration", "04"].startswith(f"{snippets['04']} snippets cover ")
    assert "is that of synth_00000" in next(text for (kind, _), text in texts.items() if kind == "duplicated")
    assert " of subset " in next(text for (kind, _), text in texts.items() if kind == "duplicated")
    assert sum(facts.unlabelled for facts in found.subsets.values()) == 1


FIELD = [  # folder, ground truth, options, how many start behind the end, what would fit
    ("frm", "ssad_frames.csv", {}, "57 of 59 instances start there, and 1 more",
     "Are these times frames? Divided by 30 a second, all lie inside."),
    ("beyond", "basictad_test.json", {"fps": 25.0}, "26 of 111 instances start there, and 0 more",
     "At 6.2 frames a second instead of 25 all lie inside: is that the rate of these 3 videos?"),
]  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize(("folder", "truth", "options", "count", "unit"), FIELD)
def test_instances_behind_the_end_are_told_with_the_unit_that_fits(
    shared_data: Path, tmp_path: Path, folder: str, truth: str, options: dict[str, Any], count: str, unit: str
) -> None:
    features = shared_data / "field/behind_the_end"
    report = pack(features / folder, tmp_path / "set", features / truth, workers=1, **options)
    found = inspect_shards(tmp_path / "set")
    assert report.notes == found.notes == found.to_json()["notes"]
    (note,) = report.notes
    assert note.startswith(f"Behind what their video's features cover: {count}")
    assert note.endswith(unit)


@pytest.mark.parametrize("streams", [["clip"], ["rgb", "flow", "audio"], list("abcdefgh")])
def test_sets_of_any_streams(tmp_path: Path, streams: list[str]) -> None:
    synthesize(tmp_path / "in", videos=4, classes=1, units=3, width=3, mean_snippets=16, streams=streams)
    for number in range(4):
        path = tmp_path / "in" / streams[-1] / f"synth_{number:06d}.npy"
        np.save(path, np.load(path) if number else np.zeros((len(np.load(path)), 3), "float16"))
    pack(tmp_path / "in", tmp_path / "set", tmp_path / "in/gt.json", streams=",".join(streams), workers=1)
    found = inspect_shards(tmp_path / "set")
    assert [(name, facts.width) for name, facts in found.streams.items()] == [(stream, 3) for stream in streams]
    assert findings(found) == {("constant", "00", f"{streams[-1]} is all zeros")}
    draw(found, tmp_path / "set.svg")
    assert all(f"<!--  {stream} -->" in (tmp_path / "set.svg").read_text() for stream in streams)


def test_ground_truth_that_is_damaged_is_told_and_the_rest_is_inspected(place: Place) -> None:
    (place.pack() / "annotations.parquet").unlink()
    found = inspect_shards(place.root / "shards")
    assert found.notes == [f"{place.root}/shards/annotations.parquet is missing: fetch the shard set again."]
    assert len(found.videos) == 12


def test_nan_in_a_set_of_another_packer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_unchecked(features: Any, dtype: np.dtype, containers: Any) -> dict[str, np.ndarray]:
        return {stream: containers.read(array.places[0]) for stream, array in features.streams.items()}

    place.change(
        "flow", 3, lambda features: np.where(np.arange(features.size).reshape(features.shape) % 50, features, np.nan)
    )
    monkeypatch.setattr("aumn.data.packing.shard_writer.read_features", read_unchecked)
    found = inspect_shards(place.pack())
    bad = np.isnan(np.load(place.path("flow", 3))).sum()
    assert findings(found) == {("not finite", "03", f"flow has {bad} NaN or infinite values")}
    assert np.isfinite([found.streams["flow"].mean, found.streams["flow"].highest]).all()


def test_damage_is_found_and_the_rest_is_inspected(place: Place) -> None:
    tar = next(place.pack().glob("training-*.tar"))
    content = bytearray(tar.read_bytes())
    content[content.rfind(b"NUMPY") + 500] ^= 1
    tar.write_bytes(content)
    found = inspect_shards(tar.parent)
    (finding,) = found.findings
    assert finding.kind == "damaged"
    assert "does not match its checksum" in finding.text
    assert len(found.videos) == 11


def test_threads_change_nothing_and_a_sample_is_said_to_be_one(place: Place) -> None:
    path = place.pack()
    alone = inspect_shards(path).to_json()
    assert inspect_shards(path, workers=3).to_json() == alone
    seen: list[tuple[int, int]] = []
    sample = inspect_shards(path, sample=5, advance=lambda *counts: seen.append(counts))
    assert (len(sample.videos), sample.read, sample.is_sample) == (5, 5, True)
    assert sample.subsets == inspect_shards(path).subsets
    assert seen == [(done, 5) for done in range(1, 6)]
    assert not inspect_shards(path, sample=500).is_sample


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture_is_drawn(place: Place, tmp_path: Path, suffix: str) -> None:
    draw(inspect_shards(place.pack()), tmp_path / "new" / f"picture.{suffix}")
    content = (tmp_path / "new" / f"picture.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert len(content) > 10_000


def test_the_command_prints_all_of_it(place: Place, tmp_path: Path) -> None:
    place.change("rgb", 0, np.zeros_like)
    place.truth["database"]["synth_000001"]["annotations"] += [{"label": "action_000", "segment": [2.0, 1.0]}]
    shards = place.pack()
    printed = succeed(aumn("inspect", shards, "--picture", tmp_path / "p.svg", "--json", tmp_path / "i.json")).stdout
    assert f"{shards}: twelve, 3 classes, a snippet every 16 frames" in printed
    assert "Look at these: 1 constant" in printed
    assert "THUMOS14" not in printed
    assert (
        "CHECK the ground truth. Instances that end before they start: 1 ('action_000' at [2, 1] in synth_" in printed
    )
    assert "  constant: training synth_000000: rgb is all zeros" in printed
    assert all(label in printed for label in ("action_000", "action_001", "action_002"))
    found = json.loads((tmp_path / "i.json").read_text())
    assert found["findings"] == [
        {"kind": "constant", "video": "synth_000000", "subset": "training", "text": "rgb is all zeros"}
    ]
    assert found["subsets"]["training"]["videos"] == 9
    assert (tmp_path / "p.svg").is_file()


def test_wrong_options(place: Place) -> None:
    refused = aumn("inspect", place.root / "nothing", "--picture", "p.jpg")
    assert (refused.returncode, refused.stderr) == (2, "aumn: --picture p.jpg must end in .png, .svg or .pdf.\n")
    with pytest.raises(InputError, match="--sample is 0; it must be at least 1"):
        inspect_shards(place.pack(), sample=0)
    with pytest.raises(InputError, match="--workers is 0; it must be at least 1"):
        inspect_shards(place.root / "shards", workers=0)


@pytest.mark.shared
def test_real_gym_clips(shared_data: Path, tmp_path: Path) -> None:
    """505 real clips: whatever is found there is true of the arrays themselves."""
    archive = shared_data / "i3d_samples/gym_trimmed_i3d.npz"
    labels = json.loads((shared_data / "i3d_samples/gym_labels.json").read_text())["database"]
    rows = [f"{video},{entry['label']},,,{entry['duration']},30" for video, entry in labels.items()]
    (tmp_path / "gym.csv").write_text("\n".join(["video,label,start,end,duration,fps", *rows]))
    pack(
        archive,
        tmp_path / "gym",
        tmp_path / "gym.csv",
        name="gym",
        stride_frames=64,
        dtype="float32",
        layout="joint",
        workers=1,
    )
    found = inspect_shards(tmp_path / "gym", workers=2)
    with np.load(archive) as arrays:
        originals = {name: arrays[name] for name in arrays.files}
    assert found.streams["rgb"].highest == max(array[:, :1024].max() for array in originals.values())
    duplicates = [finding for finding in found.findings if finding.kind == "duplicated"]
    for finding in duplicates:
        stream, other = finding.text.split(" is that of ")
        half = slice(0, 1024) if stream == "rgb" else slice(1024, 2048)
        np.testing.assert_array_equal(originals[finding.video][:, half], originals[other][:, half])


def test_times_in_milliseconds_are_told_from_frames():
    ends = measure_ends(np.zeros(2, int), np.array([4_000.0, 20_000]), np.array([9_000.0, 27_500]), [30.0])
    assert list(ends.say("instance", "the end")) == [
        "Behind the end: 2 of 2 instances start there, and 0 more end there. Are these times milliseconds? Divided by "
        "1000 a second, all lie inside."
    ]
