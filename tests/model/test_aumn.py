"""Eq. 1-8 and 15 against the equations as written, values and gradients, padded and not, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from aumn.model import memory
from aumn.model.aumn import AUMN, StreamNetworks
from aumn.model.dropout import CHANNELS, MIXING, dropout_factors, video_factors
from aumn.model.settings import ModelSettings
from aumn.records import Batch, Video

from . import reference

# Every letter has another size; K < R + 1 reads by form 1, K > R + 1 by form 2.
SHAPES = [
    {"units": 1, "bottleneck": 5, "kernel": 3, "self_attention": True},
    {"units": 7, "bottleneck": 9, "kernel": 3, "self_attention": True},
    {"units": 4, "bottleneck": 3, "kernel": 1, "self_attention": False},
    {"units": 41, "bottleneck": 6, "kernel": 5, "self_attention": True, "attention_rate": 5},
    {"units": 7, "bottleneck": 3, "kernel": 2, "self_attention": True, "centred_queries": True},
    {"units": 7, "bottleneck": 9, "kernel": 3, "self_attention": True, "pooling_share": 0.3, "embedding_layers": 2},
    {"units": 30, "bottleneck": 4, "kernel": 2, "self_attention": False, "pooling_share": 0.01, "embedding_layers": 3},
    {"units": 5, "bottleneck": 6, "kernel": 3, "self_attention": True, "normalised_pooling": True},
    {
        "units": 9,
        "bottleneck": 2,
        "kernel": 1,
        "self_attention": True,
        "normalised_pooling": True,
        "pooling_share": 0.2,
    },
    {"units": 6, "bottleneck": 9, "kernel": 3, "self_attention": True, "independent_classes": True},
    {
        "units": 8,
        "bottleneck": 3,
        "kernel": 3,
        "self_attention": False,
        "independent_classes": True,
        "pooling_share": 0.2,
    },
    {"units": 5, "bottleneck": 4, "kernel": 2, "self_attention": True, "weighted_pooling": False},
    {
        "units": 7,
        "bottleneck": 3,
        "kernel": 3,
        "self_attention": False,
        "weighted_pooling": False,
        "pooling_share": 0.3,
        "independent_classes": True,
    },
    {"units": 300, "bottleneck": 2, "kernel": 4, "self_attention": False},
]
LENGTHS, WIDTH, CLASSES = (13, 1, 8, 11), 10, 14


def make_network(seed: int = 0, **settings) -> AUMN:
    torch.manual_seed(seed)
    scores_snippets = settings.pop("scores_snippets", False)
    shape = ModelSettings(embedding_width=12, key_ratio=3, **settings)
    return AUMN(WIDTH, CLASSES, shape, scores_snippets=scores_snippets).double()


def make_videos(lengths=LENGTHS, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(length, WIDTH, dtype=torch.float64, generator=generator) for length in lengths]


def pad(videos: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, videos), default=1) + extra
    features_BTD = torch.zeros(len(videos), longest, WIDTH, dtype=torch.float64)
    mask_BT = torch.zeros(len(videos), longest, dtype=torch.bool)
    for index, video in enumerate(videos):
        features_BTD[index, : len(video)] = video
        mask_BT[index, : len(video)] = True
    return features_BTD, mask_BT


def run(net: AUMN, videos: list[Tensor], extra: int = 0):
    features_BTD, mask_BT = pad(videos, extra)
    return net(features_BTD, mask_BT, [len(video) for video in videos], range(len(videos)))


@pytest.mark.parametrize("chunk_elements", [1, 100, 1 << 18])
@pytest.mark.parametrize("settings", SHAPES)
def test_training_scores_and_gradients_equal_the_equations(settings, chunk_elements, monkeypatch):
    monkeypatch.setitem(memory.CHUNK_ELEMENTS, "cpu", chunk_elements)
    net, videos = make_network(**settings), make_videos()
    expected = [reference.video(net, video) for video in videos]
    scores = run(net, videos)
    assert_close(scores.logits_BC, torch.stack([out["logits_C"] for out in expected]))
    assert_close(scores.unit_sums_BK, torch.stack([out["unit_sums_K"] for out in expected]))
    for index, out in enumerate(expected):
        assert_close(scores.attention_BT[index, : LENGTHS[index]], out["attention_T"])
    assert (scores.attention_BT[1, 1:] == 0).all()

    def scalar(logits_BC, unit_sums_BK, attention):
        return logits_BC.sin().sum() + (unit_sums_BK / 3).cos().sum() + attention.square().sum()

    ours = scalar(scores.logits_BC, scores.unit_sums_BK, scores.attention_BT)
    theirs = scalar(
        torch.stack([out["logits_C"] for out in expected]),
        torch.stack([out["unit_sums_K"] for out in expected]),
        torch.cat([out["attention_T"] for out in expected]),
    )
    parameters = dict(net.named_parameters())
    pairs = zip(
        parameters,
        torch.autograd.grad(ours, parameters.values()),
        torch.autograd.grad(theirs, parameters.values()),
        strict=True,
    )
    for name, actual, wanted in pairs:
        assert_close(actual, wanted, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("settings", SHAPES)
def test_localization_scores_equal_the_equations(settings):
    net = make_network(**settings).eval()
    for video in make_videos():
        expected = reference.video(net, video)
        video_C, attention_T, cas_TC = net.localize(video)
        assert_close(video_C, expected["video_C"])
        assert_close(attention_T, expected["attention_T"])
        assert_close(cas_TC, expected["cas_TC"])


@pytest.mark.parametrize("settings", SHAPES)
def test_padding_and_the_company_of_other_videos_change_nothing(settings):
    net, videos = make_network(**settings, dropout=0.4, channel_dropout=0.3, mixing_dropout=0.5), make_videos()
    together, longer = run(net, videos), run(net, videos, extra=6)
    assert_close(together.logits_BC, longer.logits_BC)
    for index, video in enumerate(videos):
        features_BTD, mask_BT = pad([video])
        alone = net(features_BTD, mask_BT, [len(video)], [index])
        assert_close(together.logits_BC[index], alone.logits_BC[0])
        assert_close(together.unit_sums_BK[index], alone.unit_sums_BK[0])
        assert_close(together.attention_BT[index, : len(video)], alone.attention_BT[0])


@pytest.mark.parametrize("settings", SHAPES[:-1])
def test_an_empty_micro_batch_gives_zero_gradients_for_every_parameter(settings):
    net = make_network(**settings)
    scores = net(torch.zeros(0, 1, WIDTH, dtype=torch.float64), torch.zeros(0, 1, dtype=torch.bool), [], [])
    (scores.logits_BC.sum() + scores.attention_BT.sum() + scores.unit_sums_BK.sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_a_higher_attention_rate_starts_from_the_same_scores_and_moves_queries_that_much_faster():
    plain, quick = make_network(**SHAPES[1]), make_network(**SHAPES[1], attention_rate=8)
    assert_close(run(quick, make_videos()).logits_BC, run(plain, make_videos()).logits_BC)
    embedded_TF = torch.randn(9, 12, dtype=torch.float64)
    started = reference.queries(plain, embedded_TF)
    for net in (plain, quick):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-6)
        run(net, make_videos()).attention_BT.sum().backward()
        optimizer.step()
    moved, moved_quickly = (reference.queries(net, embedded_TF) - started for net in (plain, quick))
    assert_close(moved_quickly, 8 * moved, rtol=1e-3, atol=0)


def test_unit_sums_alone_are_those_of_the_full_pass_dropout_included():
    net, videos = make_network(**SHAPES[3], dropout=0.5, channel_dropout=0.3, mixing_dropout=0.5), make_videos()
    features_BTD, mask_BT = pad(videos)
    sums_BK = net.unit_sums(features_BTD, mask_BT, LENGTHS, range(4))
    assert torch.equal(sums_BK, run(net, videos).unit_sums_BK)


def test_dropout_depends_on_a_videos_seed_and_length_alone():
    few = dropout_factors(torch.zeros(1, 20, 6), 0.5, [17], [5])
    many = dropout_factors(torch.zeros(3, 40, 6), 0.5, [40, 17, 3], [9, 5, 5])
    assert torch.equal(few[0, :17], many[1, :17])
    assert torch.equal(few[0, :3], many[2, :3])
    assert not torch.equal(few[0, :17], many[0, :17])
    assert set(few[0, :17].unique().tolist()) == {0.0, 2.0}


def test_channel_dropout_is_the_equations_on_features_without_those_channels():
    net, videos = make_network(**SHAPES[1], channel_dropout=0.5), make_videos()
    factors = video_factors(torch.zeros(4, 1, WIDTH, dtype=torch.float64), WIDTH, 0.5, range(4), CHANNELS)
    expected = [reference.video(net, video * factor) for video, factor in zip(videos, factors, strict=True)]
    assert_close(run(net, videos).logits_BC, torch.stack([out["logits_C"] for out in expected]))


def test_mixing_dropout_leaves_eq_4s_sum_out_of_some_videos_and_scales_it_in_the_others():
    net, videos = make_network(**SHAPES[1], mixing_dropout=0.5), make_videos()
    factors = video_factors(torch.zeros(4, 1, 1), 1, 0.5, range(4), MIXING).flatten().tolist()
    assert set(factors) == {0.0, 2.0}
    expected = [reference.video(net, video, mixing=factor) for video, factor in zip(videos, factors, strict=True)]
    assert_close(run(net, videos).logits_BC, torch.stack([out["logits_C"] for out in expected]))


def test_dropout_rests_while_localizing():
    net = make_network(**SHAPES[1], dropout=0.9, channel_dropout=0.9, mixing_dropout=0.9).eval()
    video = make_videos()[0]
    assert_close(net.localize(video)[0], reference.video(net, video)["video_C"])


def test_streams_drop_different_values_of_the_same_video():
    torch.manual_seed(0)
    one, two = (AUMN(WIDTH, CLASSES, ModelSettings(embedding_width=12, dropout=0.5)) for _ in range(2))
    two.load_state_dict(one.state_dict())
    features_BTD, mask_BT = pad(make_videos())
    features_BTD = features_BTD.float()
    labels_BC = torch.ones(4, CLASSES)
    batch = Batch((), LENGTHS, (3, 4, 5, 6), {"rgb": features_BTD, "flow": features_BTD}, mask_BT, labels_BC)
    scores = StreamNetworks({"rgb": one, "flow": two}, ["rgb", "flow"])(batch)
    assert not torch.equal(scores["rgb"].logits_BC, scores["flow"].logits_BC)


def test_joint_streams_are_one_network_of_features_side_by_side():
    settings = ModelSettings(embedding_width=12, streams="both")
    both = StreamNetworks.build({"rgb": 4, "flow": 6}, CLASSES, settings).eval()
    network = both.networks["joint"]
    (video,) = make_videos([9])
    video = video.float()
    whole = torch.ones(1, 9, dtype=torch.bool)
    features = {"rgb": video[None, :, :4], "flow": video[None, :, 4:]}
    batch = Batch((Video("v", "testing", 9, (0,), 1.0, 25.0),), (9,), (3,), features, whole, torch.ones(1, CLASSES))
    assert both(batch).keys() == both.localize(batch).keys() == both.unit_sums(batch).keys() == {"rgb", "flow", "joint"}
    torch.testing.assert_close(both(batch)["joint"].logits_BC, network(video[None], whole, (9,), [3]).logits_BC)
    np.testing.assert_allclose(both.localize(batch)["joint"].cas_TC, network.localize(video)[2].double(), rtol=1e-6)
    assert both.similarity(batch, {"joint": [0, 2]})["joint"].shape == (9, 2)


def test_where_logits_start_does_not_depend_on_the_number_of_units():
    spread = {}
    for units in (1, 7, 64, 500):
        logits_BC = torch.cat([run(make_network(seed, units=units), make_videos()).logits_BC for seed in range(10)])
        spread[units] = logits_BC.std().item()
    assert max(spread.values()) < 4 * min(spread.values()), spread
