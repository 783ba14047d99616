"""One video's arrays give what localization gives for the same video of a shard set."""

import re

import numpy as np
import pytest
import torch

from aumn.data.loader import whole_videos
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.inference.localize import localize
from aumn.inference.one_video import load_network, localize_video
from aumn.model.aumn import TwoStream
from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, save_model
from aumn.synth import synthesize

SETTINGS = {"embedding_width": 8, "units": 3, "bottleneck": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    folder = tmp_path_factory.mktemp("one")
    synthesize(folder / "features", videos=6, seed=0, classes=3, units=4, width=7, testing_share=0.5,
               mean_snippets=20, noise=1.0)  # fmt: skip
    pack(folder / "features", folder / "shards", folder / "features" / "gt.json", name="one", workers=1)
    return ShardSet.open(folder / "shards")


@pytest.fixture(scope="module")
def model(shards, tmp_path_factory):
    """A network and its card, as they come from the disk."""
    torch.manual_seed(0)
    card = ModelCard(
        model=SETTINGS,
        localize={"theta": 0.4, "class_threshold": 0.2, "nms_tiou": 0.5},
        classes=shards.classes,
        streams=shards.streams,
        stride_frames=shards.stride_frames,
        dataset=shards.name,
        dataset_identity=shards.identity,
        metrics={},
        aumn_version="0",
        commit=None,
    )
    weights = TwoStream.build(card.streams, len(card.classes), card.model).state_dict()
    return load_network(save_model(tmp_path_factory.mktemp("model") / "model", weights, card))


def test_a_video_alone_is_the_video_of_a_shard_set_to_the_last_bit(shards, model):
    network, card = model
    indices = shards.indices("testing")
    batches = whole_videos(shards, indices, rank=0, world_size=1)
    together = localize(network, batches, card, rules=card.localize)
    assert len(together)
    for index in indices:
        video = shards.videos[index]
        alone = localize_video(network, card, shards.read(index), fps=video.fps, duration_s=video.duration_s)
        rows = together.video_N == together.videos.index(video.id)
        assert np.array_equal(alone.label_N, together.label_N[rows])
        assert np.array_equal(alone.score_N, together.score_N[rows])
        assert np.array_equal(alone.start_s_N, together.start_s_N[rows])
        assert np.array_equal(alone.end_s_N, together.end_s_N[rows])


def features(**lengths) -> dict[str, np.ndarray]:
    return {stream: np.random.default_rng(0).normal(size=(length, 7)) for stream, length in lengths.items()}


def test_the_frame_rate_or_the_duration_is_enough(model):
    network, card = model
    by_rate = localize_video(network, card, features(rgb=9, flow=9), fps=8 * card.stride_frames)
    by_duration = localize_video(network, card, features(rgb=9, flow=9), duration_s=9 / 8)
    assert by_rate.end_s_N.max() <= 9 / 8
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
def test_what_cannot_be_localized_is_told(case, model):
    arrays, clock, message = BAD[case]
    with pytest.raises(InputError, match=re.escape(message)):
        localize_video(*model, arrays, **clock)
