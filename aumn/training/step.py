"""A training step: a pure function of its videos, whatever ranks and micro-batches they are cut into.

A step's loss and gradients are sums of shares over micro-batches and ranks (see `model.losses`), so the step does not
depend on how many there are of either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from aumn.model import losses
from aumn.model.losses import Objective
from aumn.records import Step
from aumn.runtime.engines import Engine
from aumn.runtime.settings import OptimizerSettings

TRAPEZOID_FALL = 0.4  # share of the steps


def train_step(engine: Engine, step: Step, objective: Objective) -> dict[str, Tensor]:
    """Forward and backward over the step's micro-batches; this rank's shares of `<stream>/<term>`, on the device.

    With several micro-batches, a first pass without gradient finds the global mean share of Eq. 12; with one, its own
    forward already has it.
    """
    engine.own_time.begin()
    bank = engine.network.bank
    batches = [batch.to(engine.device) for batch in step.micro_batches]
    shares = _share_sums(engine, [engine.unit_sums(batch) for batch in batches]) if len(batches) > 1 else None
    report: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with engine.accumulate(last=last):
            scores = engine.forward(batch)
            if shares is None:
                shares = _share_sums(engine, [{name: score.unit_sums_BK for name, score in scores.items()}])
            parts = engine.ranks.size if last else None  # each rank adds its part of Eq. 10 once
            terms = losses.batch_losses(scores, batch, shares, step, objective, diversity_parts=parts, bank=bank)
            engine.backward({name: of_stream["total"] for name, of_stream in terms.items()})
        for name, score in scores.items():
            mean = losses.sparsity(score.attention_BT, batch.mask_BT, "mean") / step.global_videos
            _add(report, name, {**terms[name], "attention_mean": mean})
    assert shares is not None
    _add_alive_units(report, shares, step.global_videos, engine.data.size, bank.units if bank else None)
    return report


def learning_rate(optimizer: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of one step, a pure function: linear warm-up, then constant, a half cosine or a trapezoid.

    A trapezoid's line down to zero does what averaging the last weights does, and keeps nothing.
    """
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    if optimizer.schedule == "trapezoid":
        return optimizer.learning_rate * min(1.0, (steps - step) / (TRAPEZOID_FALL * steps))
    progress = (step - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    return optimizer.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _share_sums(engine: Engine, unit_sums: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Eq. 11 summed over every video of the step, all ranks included, K numbers a stream; no gradient.

    Of a bank over ranks this rank's units alone, and those of the ranks that hold the same.
    """
    bank = engine.network.bank
    parts = {
        name: torch.stack([losses.unit_shares(sums[name].detach(), bank).sum(0) for sums in unit_sums]).sum(0)
        for name in unit_sums[0]
    }
    engine.own_time.end()
    together = engine.data.sum_(torch.cat(list(parts.values())))
    return dict(zip(parts, together.split([len(part) for part in parts.values()]), strict=True))


def _add(report: dict[str, Tensor], stream: str, terms: Mapping[str, Tensor]) -> None:
    for name, term in terms.items():
        key = f"{stream}/{name}"
        report[key] = report[key] + term.detach() if key in report else term.detach()


def _add_alive_units(
    report: dict[str, Tensor], shares: Mapping[str, Tensor], global_videos: int, ranks: int, units: int | None
) -> None:
    """How many units have a mean share (Eq. 11) above 1 / (10 K); divided by the ranks that say so.

    `units` is K where a rank has the shares of some units only.
    """
    for stream, share_sum_K in shares.items():
        alive = (share_sum_K / global_videos > 1 / (10 * (units or len(share_sum_K)))).sum()
        report[f"{stream}/units_alive"] = alive.double() / ranks
