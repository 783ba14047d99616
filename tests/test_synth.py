"""The synthetic set: reproducible byte for byte, honest about itself, shaped as a feature release is, and learnable."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from aumn.records import InputError
from aumn.synth import synthesize

SETTINGS = {"videos": 9, "seed": 5, "classes": 4, "units": 6, "width": 24, "mean_snippets": 40}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ground_truth(folder: Path) -> dict:
    return json.loads((folder / "gt.json").read_text())


def nearest_class_accuracy(folder: Path, stream: str) -> float:
    """Share of testing instances whose mean feature lies nearest to that of their class's training instances."""
    instances: dict[str, list[tuple[str, np.ndarray]]] = {"training": [], "testing": []}
    for video, entry in ground_truth(folder)["database"].items():
        features_TD = np.load(folder / stream / f"{video}.npy").astype(np.float64)
        for annotation in entry["annotations"]:
            start, end = (np.array(annotation["segment"]) * 25 / 16).round().astype(int)
            centred_D = features_TD[start:end].mean(0) - features_TD.mean(0)
            instances[entry["subset"]].append((annotation["label"], centred_D / np.linalg.norm(centred_D)))
    labels = sorted({label for label, _ in instances["training"]})
    means_CD = np.stack([np.mean([f for label, f in instances["training"] if label == known], 0) for known in labels])
    hits = [labels[int((means_CD @ features_D).argmax())] == label for label, features_D in instances["testing"]]
    return float(np.mean(hits))


def test_layout_and_report(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    report = synthesize(tmp_path / "set", **SETTINGS, on_progress=lambda done, total: heard.append((done, total)))
    truth = ground_truth(tmp_path / "set")
    database = truth["database"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["flow", "gt.json", "rgb"]
    assert heard == [(done, 9) for done in range(1, 10)]
    assert (report.training, report.testing) == (6, 3)
    assert [entry["subset"] for entry in database.values()].count("testing") == 3
    assert report.instances == sum(len(entry["annotations"]) for entry in database.values())
    for video, entry in database.items():
        rgb_TD, flow_TD = (np.load(tmp_path / "set" / stream / f"{video}.npy") for stream in ("rgb", "flow"))
        assert rgb_TD.dtype == flow_TD.dtype == np.float16
        assert rgb_TD.shape == flow_TD.shape == (len(rgb_TD), 24)
        assert not np.array_equal(rgb_TD, flow_TD)
        assert entry["duration"] == pytest.approx(len(rgb_TD) * 16 / 25)
        assert entry["fps"] == 25.0
    assert report.bytes_written == sum(path.stat().st_size for path in (tmp_path / "set").glob("*/*.npy"))


def test_it_says_that_it_is_synthetic_and_which_units_make_a_class(tmp_path: Path) -> None:
    synthesize(tmp_path, **SETTINGS)
    truth = ground_truth(tmp_path)
    assert truth["version"].startswith("SYNTHETIC")
    mixes = list(truth["action_units"].values())
    assert len({frozenset(mix) for mix in mixes}) == 4
    assert all(len(set(mix)) == 3 for mix in mixes)
    used = [unit for mix in mixes for unit in mix]
    assert len(set(used)) < len(used), "no unit is shared"
    labels = {annotation["label"] for entry in truth["database"].values() for annotation in entry["annotations"]}
    assert labels == set(truth["action_units"])


def test_instances_lie_apart_inside_the_video(tmp_path: Path) -> None:
    synthesize(tmp_path, **SETTINGS | {"videos": 60, "width": 2, "mean_snippets": 32})
    label_counts = set()
    for entry in ground_truth(tmp_path)["database"].values():
        segments = [annotation["segment"] for annotation in entry["annotations"]]
        bounds = np.array([0.0, *np.ravel(segments), entry["duration"]])
        assert (np.diff(bounds) > 0).all()
        label_counts.add(len({annotation["label"] for annotation in entry["annotations"]}))
    assert label_counts == {1, 2}


def test_features_look_like_those_behind_a_relu(tmp_path: Path) -> None:
    synthesize(tmp_path, **SETTINGS | {"width": 256})
    values = np.concatenate([np.load(path).ravel() for path in tmp_path.glob("*/*.npy")]).astype(np.float64)
    assert np.isfinite(values).all()
    assert values.min() == 0
    assert 0.3 < (values == 0).mean() < 0.7
    assert 0.1 < values.mean() < 0.25


def test_a_longer_set_begins_with_the_shorter_one_whatever_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize(tmp_path / "short", **SETTINGS)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    synthesize(tmp_path / "again", **SETTINGS)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    synthesize(tmp_path / "long", **SETTINGS | {"videos": 14})
    short, long = digests(tmp_path / "short"), digests(tmp_path / "long")
    assert short == digests(tmp_path / "again")
    assert {name: long[name] for name in short if name != "gt.json"} == {
        name: digest for name, digest in short.items() if name != "gt.json"
    }
    entries = ground_truth(tmp_path / "long")["database"]
    assert dict(list(entries.items())[:9]) == ground_truth(tmp_path / "short")["database"]


def test_streams_are_by_their_place_whatever_others_there_are(tmp_path: Path) -> None:
    for streams in ("rgb,flow", "rgb", "rgb,flow,audio"):
        synthesize(tmp_path / streams, **SETTINGS, streams=streams.split(","))
    one, two, three = (digests(tmp_path / streams) for streams in ("rgb", "rgb,flow", "rgb,flow,audio"))
    assert one.items() < two.items() < three.items()
    assert len(set(three.values())) == len(three) == 3 * 9 + 1
    with pytest.raises(InputError, match="rgb, rgb cannot be the streams of a set"):
        synthesize(tmp_path / "twice", **SETTINGS, streams=["rgb", "rgb"])


def test_another_seed_is_another_set(tmp_path: Path) -> None:
    synthesize(tmp_path / "a", **SETTINGS)
    synthesize(tmp_path / "b", **SETTINGS | {"seed": 6})
    a, b = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert not set(a.values()) & set(b.values())


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_either_stream_tells_the_classes_apart_but_not_perfectly(tmp_path: Path, stream: str) -> None:
    synthesize(tmp_path, videos=60, classes=10, width=64, mean_snippets=64)
    assert 0.6 < nearest_class_accuracy(tmp_path, stream) < 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": 1}, "videos=1 must be a number of at least 2."),
        ({"units": 2}, "units=2 must be a number of at least 3."),
        ({"mean_snippets": 15}, "mean_snippets=15 must be a number of at least 16."),
        ({"fps": float("nan")}, "fps=nan must be a number of at least 1."),
        ({"noise": float("inf")}, "noise=inf must be a number of at least 0."),
        (
            {"classes": 5, "units": 4},
            "units=4 make only 4 mixes of 3, too few for classes=5: use more units or fewer classes.",
        ),
        (
            {"testing_share": 0.01},
            "testing_share=0.01 of videos=9 must leave both subsets a video: "
            "use a share between 0 and 1, or more videos.",
        ),
    ],
)
def test_settings_that_make_no_set_are_refused_and_nothing_is_written(
    tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(InputError) as raised:
        synthesize(tmp_path / "set", **SETTINGS | change)
    assert str(raised.value) == message
    assert not (tmp_path / "set").exists()


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not an empty folder: name a new one, or remove it first\.$"):
        synthesize(tmp_path, **SETTINGS)
    with pytest.raises(InputError, match=r"note\.txt is not an empty folder"):
        synthesize(tmp_path / "note.txt", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
