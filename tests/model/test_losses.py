"""Eq. 9-14 against the equations as written, and their independence of how a batch was cut."""

import pytest
import torch
from torch.testing import assert_close

from aumn.model import losses
from aumn.model.losses import LossWeights
from aumn.records import Batch

from . import reference
from .test_aumn import CLASSES, make_network, make_videos, pad, run

WEIGHTS = LossWeights(diversity=0.3, homogeneity=0.7, sparsity=0.4, sparsity_reduction="mean")
LENGTHS = (13, 1, 8, 11, 5, 13, 9, 2)


def make_labels(count: int) -> torch.Tensor:
    labels_BC = torch.zeros(count, CLASSES, dtype=torch.float64)
    for index in range(count):
        labels_BC[index, [index % CLASSES, (3 * index + 1) % CLASSES]] = 1
    return labels_BC


def loss_in_parts(net, videos, labels_BC, cuts, weights):
    """Eq. 14 as a training step computes it: first everybody's shares, then one part's losses after another."""
    parts = [range(start, end) for start, end in zip((0, *cuts), (*cuts, len(videos)), strict=True)]
    scores = [run(net, [videos[i] for i in part]) for part in parts]
    share_sum_K = sum(losses.unit_shares(score.unit_sums_BK).sum(0) for score in scores)
    direction_K = losses.homogeneity_direction(share_sum_K)
    terms = {"diversity": losses.diversity(net.memory.units_KF)}
    for part, score in zip(parts, scores, strict=True):
        batch = Batch((), (), (), {}, pad([videos[i] for i in part])[1], labels_BC[list(part)])
        shares = losses.batch_losses(score, batch, direction_K, len(videos), weights)
        terms = {name: terms.get(name, 0) + shares.get(name, 0) for name in {**terms, **shares}}
    return terms, losses.total(terms, weights, len(net.memory.units_KF))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "settings",
    [
        {"units": 7, "bottleneck": 9},
        {"units": 41, "bottleneck": 6},
        {"units": 7, "bottleneck": 9, "independent_classes": True},
    ],
)
@pytest.mark.parametrize("cuts", [(), (4,), (2, 4, 6), (3, 3, 7)])
def test_terms_and_gradients_equal_the_equations_however_the_batch_is_cut(settings, reduction, cuts):
    net, videos, labels_BC = make_network(**settings), make_videos(LENGTHS), make_labels(len(LENGTHS))
    weights = LossWeights(0.3, 0.7, 0.4, reduction, independent_classes=settings.get("independent_classes", False))
    ours, our_total = loss_in_parts(net, videos, labels_BC, cuts, weights)
    theirs = reference.losses(net, videos, labels_BC, reduction)
    for name, value in theirs.items():
        assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}")
    factors = {"classification": 1, "diversity": 0.3, "homogeneity": 0.7, "sparsity": 0.4}
    their_total = sum(factors[name] * value for name, value in theirs.items())
    assert_close(our_total, their_total)
    parameters = dict(net.named_parameters())
    our_grads = torch.autograd.grad(our_total, parameters.values())
    their_grads = torch.autograd.grad(their_total, parameters.values())
    for name, actual, wanted in zip(parameters, our_grads, their_grads, strict=True):
        assert_close(actual, wanted, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("settings", [{"units": 7, "bottleneck": 9}, {"units": 41, "bottleneck": 6}])
@pytest.mark.parametrize("cuts", [(), (3, 3, 7)])
def test_what_the_streams_teach_each_other_equals_the_definition_however_the_batch_is_cut(settings, cuts):
    nets = {name: make_network(seed, scores_snippets=True, **settings) for seed, name in enumerate(("rgb", "flow"))}
    videos = {name: make_videos(LENGTHS, seed=seed) for seed, name in enumerate(nets)}
    labels_BC, ours = make_labels(len(LENGTHS)), dict.fromkeys(nets, torch.zeros(()))
    for start, end in zip((0, *cuts), (*cuts, len(LENGTHS)), strict=True):
        scores = {name: run(net, videos[name][start:end], extra=2) for name, net in nets.items()}
        mask_BT = pad(videos["rgb"][start:end], 2)[1]
        action_BT = losses.teach({n: s.cas_BTC for n, s in scores.items()}, labels_BC[start:end], mask_BT)
        assert not action_BT[~mask_BT].any()
        for name, score in scores.items():
            ours[name] = ours[name] + losses.pseudo_labels(score.attention_BT, action_BT, mask_BT) / len(LENGTHS)
    theirs = reference.pseudo_labels(list(nets.values()), list(videos.values()), labels_BC)
    for (name, net), wanted in zip(nets.items(), theirs, strict=True):
        assert_close(ours[name], wanted)
        ours_and_theirs = [torch.autograd.grad(loss, net.encode_query.weight) for loss in (ours[name], wanted)]
        assert_close(*ours_and_theirs)


def test_only_the_attention_learns_from_pseudo_labels():
    net, videos = make_network(units=7, bottleneck=9, scores_snippets=True), make_videos(LENGTHS)
    score, mask_BT = run(net, videos), pad(videos)[1]
    assert not score.cas_BTC.requires_grad
    loss = losses.pseudo_labels(score.attention_BT, losses.teach({"": score.cas_BTC}, make_labels(8), mask_BT), mask_BT)
    loss.backward()
    assert net.memory.values_RFC.grad is None
    assert net.memory.encode_key.weight.grad.abs().max() > 0


def test_pseudo_labels_count_after_their_share_of_the_steps():
    weights = LossWeights(0, 0, 0, "mean", pseudo_labels=0.5, pseudo_labels_from=0.2)
    assert [weights.at(step / 10).pseudo_labels for step in range(4)] == [0, 0, 0.5, 0.5]


def test_a_single_unit_trains_without_diversity_and_homogeneity():
    net, videos, labels_BC = make_network(units=1, bottleneck=4), make_videos(LENGTHS), make_labels(len(LENGTHS))
    terms, total = loss_in_parts(net, videos, labels_BC, (4,), WEIGHTS)
    assert_close(total, terms["classification"] + 0.4 * terms["sparsity"])
    total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(("num_units", "width"), [(3, 8), (8, 8), (9, 8), (200, 8)])
def test_diversity_never_needs_a_tensor_of_units_by_units(num_units, width):
    units_KF = torch.randn(num_units, width, dtype=torch.float64, requires_grad=True)
    wanted = (units_KF @ units_KF.T - torch.eye(num_units, dtype=torch.float64)).square().sum().sqrt()
    assert_close(losses.diversity(units_KF), wanted)
    assert_close(torch.autograd.grad(losses.diversity(units_KF), units_KF), torch.autograd.grad(wanted, units_KF))


def test_diversity_of_orthonormal_units_does_not_cancel_in_float32():
    units_KF = torch.linalg.qr(torch.randn(65, 64, dtype=torch.float64))[0]
    wanted = (units_KF @ units_KF.T - torch.eye(65, dtype=torch.float64)).norm()
    assert_close(losses.diversity(units_KF.float()).double(), wanted, rtol=1e-6, atol=0)
