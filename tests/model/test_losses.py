"""Eq. 9-14 against the equations as written, and their independence of how a batch was cut."""

import pytest
import torch
from torch.testing import assert_close

from aumn.model import losses
from aumn.model.losses import Objective
from aumn.model.settings import LossSettings
from aumn.records import Batch, Step

from . import reference
from .test_aumn import CLASSES, make_network, make_videos, pad, run

WEIGHTS = {"diversity": 0.3, "homogeneity": 0.7, "sparsity": {"rgb": 0.4, "flow": 0.1}}
LENGTHS = (13, 1, 8, 11, 5, 13, 9, 2)


def make_labels(count: int) -> torch.Tensor:
    labels_BC = torch.zeros(count, CLASSES, dtype=torch.float64)
    for index in range(1, count):  # the first has none
        labels_BC[index, [index % CLASSES, (3 * index + 1) % CLASSES]] = 1
    return labels_BC


def loss_in_parts(nets, videos, labels_BC, cuts, objective, index=0):
    """Eq. 14 as a training step computes it, by stream: first everybody's shares, then one part after another."""
    parts = [range(start, end) for start, end in zip((0, *cuts), (*cuts, len(labels_BC)), strict=True)]
    scores = [
        {name: run(net, [videos[name][i] for i in part], extra=2) for name, net in nets.items()} for part in parts
    ]
    share_sums = {name: sum(losses.unit_shares(part[name].unit_sums_BK).sum(0) for part in scores) for name in nets}
    step, terms = Step(index, 0, len(labels_BC), ()), {name: {} for name in nets}
    for part, score in zip(parts, scores, strict=True):
        mask_BT = pad([videos["rgb"][i] for i in part], 2)[1]
        batch = Batch((), (), (), {}, mask_BT, labels_BC[list(part)])
        found = losses.batch_losses(score, batch, share_sums, step, objective, diversity_parts=len(parts))
        for name, shares in found.items():
            terms[name] = {term: terms[name].get(term, 0) + value for term, value in shares.items()}
    return terms


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
    loss = LossSettings(**WEIGHTS, sparsity_reduction=reduction)
    objective = Objective(loss, 1, independent_classes=settings.get("independent_classes", False))
    ours = loss_in_parts({"rgb": net}, {"rgb": videos}, labels_BC, cuts, objective)["rgb"]
    theirs = reference.losses(net, videos, labels_BC, reduction)
    for name, value in theirs.items():
        assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}")
    factors = {"classification": 1, "diversity": 0.3, "homogeneity": 0.7, "sparsity": 0.4}
    their_total = sum(factors[name] * value for name, value in theirs.items())
    assert_close(ours["total"], their_total)
    parameters = dict(net.named_parameters())
    our_grads = torch.autograd.grad(ours["total"], parameters.values())
    their_grads = torch.autograd.grad(their_total, parameters.values())
    for name, actual, wanted in zip(parameters, our_grads, their_grads, strict=True):
        assert_close(actual, wanted, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("settings", [{"units": 7, "bottleneck": 9}, {"units": 41, "bottleneck": 6}])
@pytest.mark.parametrize("cuts", [(), (3, 3, 7)])
def test_what_the_streams_teach_each_other_equals_the_definition_however_the_batch_is_cut(settings, cuts):
    nets = {name: make_network(seed, scores_snippets=True, **settings) for seed, name in enumerate(("rgb", "flow"))}
    videos = {name: make_videos(LENGTHS, seed=seed) for seed, name in enumerate(nets)}
    labels_BC = make_labels(len(LENGTHS))
    objective = Objective(LossSettings(pseudo_labels=0.5, pseudo_labels_from=0.0), 1)
    terms = loss_in_parts(nets, videos, labels_BC, cuts, objective)
    ours = {name: of_stream["pseudo_labels"] for name, of_stream in terms.items()}
    theirs = reference.pseudo_labels(list(nets.values()), list(videos.values()), labels_BC)
    for (name, net), wanted in zip(nets.items(), theirs, strict=True):
        assert_close(ours[name], wanted)
        ours_and_theirs = [torch.autograd.grad(loss, net.encode_query.weight) for loss in (ours[name], wanted)]
        assert_close(*ours_and_theirs)


@pytest.mark.parametrize(
    "settings", [{"pooling_share": 0.1, "independent_classes": True}, {}, {"self_attention": False, "units": 41}]
)
@pytest.mark.parametrize("cuts", [(), (1, 3)])
def test_prototypes_equal_the_definition_however_the_batch_is_cut(settings, cuts):
    net = make_network(**{"units": 7, "bottleneck": 9, "prototypes": True} | settings)
    videos = make_videos(lengths := (43, 1, 8, 61, 20))
    labels_BC = make_labels(len(lengths))
    objective = Objective(LossSettings(**WEIGHTS, prototypes=0.6), 1, settings.get("independent_classes", False))
    ours = loss_in_parts({"rgb": net}, {"rgb": videos}, labels_BC, cuts, objective)["rgb"]
    theirs = reference.prototypes(net, videos, labels_BC)
    assert_close(ours["prototypes"], theirs)
    factors = {"classification": 1, "diversity": 0.3, "homogeneity": 0.7, "sparsity": 0.4, "prototypes": 0.6}
    assert_close(ours["total"], sum(factor * ours[name] for name, factor in factors.items()))
    learning = (net.prototypes_PF, net.embed.weight)
    grads = [torch.autograd.grad(loss, learning) for loss in (ours["prototypes"], theirs)]
    for actual, wanted in zip(*grads, strict=True):
        assert_close(actual, wanted)


def test_only_the_attention_learns_from_pseudo_labels():
    net, videos = make_network(units=7, bottleneck=9, scores_snippets=True), make_videos(LENGTHS)
    objective = Objective(LossSettings(pseudo_labels=0.5, pseudo_labels_from=0.0), 1)
    terms = loss_in_parts({"rgb": net}, {"rgb": videos}, make_labels(len(LENGTHS)), (), objective)["rgb"]
    terms["pseudo_labels"].backward()
    assert net.memory.values_RFC.grad is None
    assert net.memory.encode_key.weight.grad.abs().max() > 0


def test_pseudo_labels_count_after_their_share_of_the_steps():
    net, videos = make_network(units=7, bottleneck=9, scores_snippets=True), make_videos(LENGTHS)
    objective = Objective(LossSettings(pseudo_labels=0.5, pseudo_labels_from=0.2), 10)
    for index, counts in ((0, False), (1, False), (2, True), (9, True)):
        labels_BC = make_labels(len(LENGTHS))
        terms = loss_in_parts({"rgb": net}, {"rgb": videos}, labels_BC, (), objective, index)["rgb"]
        assert ("pseudo_labels" in terms) == counts


def test_each_stream_has_its_own_sparsity():
    nets = {name: make_network(units=7, bottleneck=9) for name in ("rgb", "flow")}
    videos = dict.fromkeys(nets, make_videos(LENGTHS))
    objective = Objective(LossSettings(**WEIGHTS), 1)
    rgb, flow = loss_in_parts(nets, videos, make_labels(len(LENGTHS)), (), objective).values()
    assert_close(rgb["total"] - flow["total"], 0.3 * rgb["sparsity"])


def test_a_single_unit_trains_without_diversity_and_homogeneity():
    net, videos, labels_BC = make_network(units=1, bottleneck=4), make_videos(LENGTHS), make_labels(len(LENGTHS))
    objective = Objective(LossSettings(**WEIGHTS), 1)
    terms = loss_in_parts({"rgb": net}, {"rgb": videos}, labels_BC, (4,), objective)["rgb"]
    assert_close(terms["total"], terms["classification"] + 0.4 * terms["sparsity"])
    terms["total"].backward()
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
