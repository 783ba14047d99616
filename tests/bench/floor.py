"""A training step against its floor: the embedding alone as one matrix product, B T x 3 D by 3 D x F.

The floor's forward product and weight gradient start from rows that are already unfolded, and are done by the faster of
PyTorch's own product and `aumn.model.products`.
"""

from functools import partial

import torch
from harness import Row, fresh_seed, main, take_turns
from problems import AsWritten, check_against_as_written, check_against_reference, make_engine, make_step, our_step
from torch import Tensor
from torch.testing import assert_close

from aumn.model.products import product
from aumn.records import Step

SIZE = {"videos": 32, "snippets": 200, "width": 1024, "classes": 200}


def measure() -> list[Row]:
    best_s = take_turns(6, **make_sides(fresh_seed(), SIZE))
    floor_s = min(best_s["theirs"], best_s["plain"])
    ratio = best_s["ours"] / floor_s
    return [Row("step against the embedding's matrix product", ratio, "<= 1.4", best_s["ours"], floor_s, "s")]


def make_sides(seed: int, size: dict[str, int]) -> dict:
    engine = make_engine(seed, size["width"], size["classes"], units=7)
    check_small(engine, seed, size)
    step = make_step(seed + 1, **size)
    features_BTD, embed = step.micro_batches[0].features["rgb"], engine.network.networks["rgb"].embed
    unfolded_NX, weight_XF = unfold(features_BTD, len(embed.weight)), embed.weight.detach().flatten(0, 1)
    assert_close((unfolded_NX @ weight_XF + embed.bias).view(*features_BTD.shape[:2], -1), embed(features_BTD))
    grad_NF = torch.randn(len(unfolded_NX), weight_XF.shape[1])
    grad_FN = grad_NF.T.contiguous()

    def theirs() -> None:
        product(unfolded_NX, weight_XF)
        product(grad_FN, unfolded_NX)

    def plain() -> None:
        torch.mm(unfolded_NX, weight_XF)
        torch.mm(unfolded_NX.T, grad_NF)

    return {"ours": partial(our_step, engine, step), "theirs": theirs, "plain": plain}


def check_small(engine, seed: int, size: dict[str, int]) -> None:
    """Few videos of few snippets, so that W fits."""
    step: Step = make_step(seed, 2, min(size["snippets"], 40), size["width"], size["classes"])
    check_against_reference(engine, step)
    check_against_as_written(engine, AsWritten(engine.network.networks["rgb"]), step)


def unfold(features_BTD: Tensor, taps: int) -> Tensor:
    """B T x taps D: each snippet beside its neighbours in time, zeros beyond the video."""
    padded_BPD = torch.nn.functional.pad(features_BTD, (0, 0, (taps - 1) // 2, taps // 2))
    return torch.cat([padded_BPD[:, tap : tap + features_BTD.shape[1]] for tap in range(taps)], dim=2).flatten(0, 1)


def check() -> None:
    make_sides(fresh_seed(), {"videos": 3, "snippets": 11, "width": 10, "classes": 6})


if __name__ == "__main__":
    main(measure)
