"""One video alone: its files give what its shard set gives, as a table and a drawing; arrays from anywhere do, too."""

import re

import numpy as np
import pytest
import torch

from aumn.cli.one_video import localize_one
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.inference.detections import read_detections
from aumn.inference.localize import check_fit, localize_subset
from aumn.inference.one_video import load_network, localize_video
from aumn.model.aumn import StreamNetworks
from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, save_model
from aumn.runtime.ranks import connect
from aumn.synth import synthesize
from tests.launching import aumn, succeed

SETTINGS = {"embedding_width": 8, "units": 3, "bottleneck": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Features in float32, their shards in float16, an untrained model, and what it detects in the testing videos."""
    root = tmp_path_factory.mktemp("video")
    synthesize(root / "features", videos=6, classes=3, units=4, width=7, testing_share=0.5, mean_snippets=40)
    rng = np.random.default_rng(0)
    for path in (root / "features").rglob("*.npy"):
        values = np.load(path).astype("float32")
        np.save(path, values + rng.random(values.shape, "float32") * np.float32(1e-4))
    pack(root / "features", root / "shards", root / "features" / "gt.json", name="video", window_frames=64, workers=1)
    shards = ShardSet.open(root / "shards")
    torch.manual_seed(0)
    facts = {
        "localize": {"weights": {"rgb": 0.4, "flow": 0.6}, "class_threshold": 0.0, "nms_tiou": 0.5},
        "dataset": shards.name,
        "metrics": {},
    }
    card = ModelCard(model=SETTINGS, classes=shards.classes, streams=shards.streams, stride_frames=shards.stride_frames,
                     window_frames=shards.window_frames,
                     dataset_identity=shards.identity, aumn_version="0", commit=None, **facts)  # fmt: skip
    weights = StreamNetworks.build(card.streams, len(card.classes), card.model).state_dict()
    save_model(root / "model", weights, card)
    with connect() as ranks:
        localize_subset(root / "model", root / "shards", root / "found", ranks, model="m", subset="testing",
                        device="cpu", advance=lambda _done, _total: None)  # fmt: skip
    return root


def rows(found, video):
    index = list(found.videos).index(video)
    columns = (found.label_N, found.score_N, found.start_s_N, found.end_s_N)
    kept = found.video_N == index
    return sorted(
        (found.labels[label], *numbers) for label, *numbers in zip(*(column[kept] for column in columns), strict=True)
    )


def test_it_finds_what_the_shard_set_gives_to_the_last_bit(place, tmp_path, capsys):
    together, _ = read_detections(place / "found")
    assert len(together.videos) == 3
    assert together.start_s_N.min() >= 0.96  # half of what a window is longer than a stride: the card tells both
    for video in together.videos:
        features = [place / "features" / stream / f"{video}.npy" for stream in ("rgb", "flow")]
        file = tmp_path / f"{video}.json"
        localize_one(
            place / "model",
            list(map(str, features)),
            fps=25.0,
            duration_s=None,
            dtype="float16",
            top=500,
            json_file=file,
        )
        expected = rows(together, video)
        assert rows(read_detections(file)[0], video) == expected
        printed = re.findall(r"^ *(action_\d+) +([\d.]+) +([\d.]+) +([\d.]+) *$", capsys.readouterr().out, re.MULTILINE)
        assert sorted((label, float(s), float(e), float(p)) for label, s, e, p in printed) == sorted(
            (label, round(start, 2), round(end, 2), round(score, 4)) for label, score, start, end in expected
        )


def test_the_command_prints_a_table_and_a_timeline_into_a_log(place):
    features = [place / "features" / stream / "synth_000001.npy" for stream in ("rgb", "flow")]
    command = ("localize", place / "model", "--video", *features, "--fps", 25, "--top", 2)
    printed = succeed(aumn(*command)).stdout
    assert re.search(r"^synth_000001: \d+ snippets, \d+\.\d s; \d+ detections$", printed, re.MULTILINE)
    assert re.search(r"^The best 2 of (\d+); --top \1 shows all\.$", printed, re.MULTILINE)
    drawn = re.findall(r"^(action_\d+) \|([ ░▒▓█]+)\|$", printed, re.MULTILINE)
    assert {label for label, _ in drawn} >= {"action_000"}
    assert len({len(cells) for _, cells in drawn}) == 1
    assert "█" in drawn[0][1]
    assert "\x1b[" not in printed
    plain = succeed(aumn(*command, PYTHONIOENCODING="ascii")).stdout
    assert [(label, cells.translate(str.maketrans(" ░▒▓█", " .:*#"))) for label, cells in drawn] == re.findall(
        r"^(action_\d+) \|([ .:*#]+)\|$", plain, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "--dtype is 'float64'; give that of the shards trained on, float16 or float32"),
        ({"flow": "gt.json"}, r"gt.json is not a .npy file"),
        ({"files": ["a.npy"]}, r"--video has 1 files \(a.npy\), and the model takes rgb=FILE flow=FILE: give these."),
        ({"files": ["rgb=a.npy", "rgb=b.npy"]}, "and the model takes rgb=FILE flow=FILE"),
    ],
)
def test_what_cannot_be_localized_in(place, options, message):
    files = {stream: f"{stream}/synth_000001.npy" for stream in ("rgb", "flow")}
    given = files | {"fps": 25.0, "duration_s": None, "dtype": "float16", "top": 5, "json_file": None} | options
    rgb, flow = (place / "features" / given.pop(stream) for stream in ("rgb", "flow"))
    paths = given.pop("files", [f"flow={flow}", f"rgb={rgb}"])
    with pytest.raises(InputError, match=message):
        localize_one(place / "model", paths, **given)


def test_a_video_and_a_shard_set_exclude_each_other(place):
    both = aumn("localize", place / "model", place / "shards", "--video", "a.npy", "b.npy")
    neither = aumn("localize", place / "model", "--subset", "testing")
    assert (both.returncode, neither.returncode) == (2, 2)
    assert "--video is one video: leave out the shard set, --subset and --out." in both.stderr
    assert (
        "Name a shard set, its --subset and a folder --out; or one video: --video RGB.npy FLOW.npy." in neither.stderr
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"name": "i3d", "fps": 25.0}, {"name": "i3d", "fps": 10.0}, "(fps 25.0 and 10.0)"),
        ({"streams": {"rgb": {"weights": "a"}}}, {"streams": {"rgb": {"weights": "b"}}}, "{'weights': 'b'}"),
    ],
)
def test_features_of_another_extractor_are_refused(place, ours, theirs, said):
    _, card = load_network(place / "model")
    shards = ShardSet.open(place / "shards")
    for made in (None, theirs):  # of the one it is not known who made them
        shards.extractor = made
        check_fit(card.model_copy(update={"extractor": theirs}), "m", shards)
    shards.extractor = ours
    with pytest.raises(InputError, match="were extracted otherwise") as error:
        check_fit(card.model_copy(update={"extractor": theirs}), "m", shards)
    assert said in str(error.value)


def features(**lengths) -> dict[str, np.ndarray]:
    return {stream: np.random.default_rng(0).normal(size=(length, 7)) for stream, length in lengths.items()}


def test_the_frame_rate_or_the_duration_is_enough(place):
    network, card = load_network(place / "model")
    by_rate = localize_video(network, card, features(rgb=9, flow=9), fps=8 * card.stride_frames)
    lasts_s = (8 + 4) / 8  # the last of nine windows is four strides long
    by_duration = localize_video(network, card, features(rgb=9, flow=9), duration_s=lasts_s)
    assert by_rate.end_s_N.max() <= lasts_s
    assert np.array_equal(by_rate.start_s_N, by_duration.start_s_N)
    assert np.array_equal(by_rate.end_s_N, by_duration.end_s_N)


GOOD = features(rgb=5, flow=5)
BAD = {
    "no stream": ({"rgb": GOOD["rgb"]}, {"fps": 25.0}, "The streams given are rgb, and the model takes rgb, flow."),
    "another width": ({**GOOD, "flow": np.ones((5, 6))}, {"fps": 25.0}, "flow is (5, 6), and the model takes snippets"),
    "nothing": (features(rgb=0, flow=0), {"fps": 25.0}, "rgb is (0, 7), and the model takes snippets x 7"),
    "NaN": ({**GOOD, "rgb": GOOD["rgb"] * np.nan}, {"fps": 25.0}, "rgb holds NaN or infinity"),
    "lengths": (features(rgb=5, flow=6), {"fps": 25.0}, "The streams differ in snippets ({'rgb': 5, 'flow': 6})"),
    "no clock": (GOOD, {}, "Neither fps nor duration_s is given"),
    "no rate": (GOOD, {"fps": 0.0}, "fps=0.0 must be above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_localized_in(case, place):
    arrays, clock, message = BAD[case]
    with pytest.raises(InputError, match=re.escape(message)):
        localize_video(*load_network(place / "model"), arrays, **clock)
