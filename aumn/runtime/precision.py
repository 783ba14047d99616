"""Mixed precision for every engine: 16-bit matrix products over float32 weights, and loss scaling for float16.

Weights, gradients, optimizer and losses stay float32 whatever the precision. Where inside the network 16 bits will do
is the network's own affair: it closes `torch.autocast` around its softmaxes and its sums over time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aumn.runtime.ranks import Ranks

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_SCALE, GROWTH_INTERVAL_STEPS = 2.0**24, 2000


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in `fp32`, `bf16` or `fp16`; the backward pass goes outside of it."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


def poisoned(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The streams' losses, with NaN for every gradient if one of them is not finite.

    The sum of gradients then carries the news to every rank, as a norm that is not finite, before any weight changes:
    no other collective is needed, and the losses stay on the device.
    """
    factor = torch.where(torch.stack(list(losses.values())).detach().isfinite().all(), 1.0, math.nan)
    return {name: loss * factor for name, loss in losses.items()}


def clip_(
    parameters: list[nn.Parameter],
    scale: LossScale,
    clip_norm: float | None,
    shared_out: Collection[nn.Parameter] = (),
    bank: Ranks | None = None,
) -> Tensor:
    """Unscale a stream's gradients and clip them to a norm, in place; their norm before that, on the device.

    Of those that are `shared_out`, the ranks of the bank hold a part each, and the norm is that of the whole.
    """
    gradients: dict[nn.Parameter, Tensor] = {
        parameter: parameter.grad for parameter in parameters if parameter.grad is not None
    }
    scale.unscale_(list(gradients.values()))
    if shared_out and bank:
        part = nn.utils.get_total_norm([gradients.pop(one) for one in shared_out])
        norm = nn.utils.get_total_norm([*gradients.values(), bank.sum_(part.square()).sqrt()])
    else:
        norm = nn.utils.get_total_norm(list(gradients.values()))
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


class LossScale:
    """What a float16 loss is multiplied by so that its gradients do not vanish; 1 in any other precision.

    Halved where the gradients overflowed, doubled after 2,000 steps without. Powers of two round nothing, and each
    stream has its own, so one stream's overflow leaves the other alone. It lives on the device, so that no step waits.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.is_dynamic = precision == "fp16"
        self.value = torch.tensor(2.0**16 if self.is_dynamic else 1.0, device=device)
        self.good_steps = torch.tensor(0, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self.value if self.is_dynamic else loss

    def unscale_(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if self.is_dynamic:
            torch._foreach_mul_(gradients, self.value.reciprocal())

    def adjust(self, finite: Tensor) -> None:
        """After a step's gradients turned out finite or not."""
        if not self.is_dynamic:
            return
        self.good_steps = torch.where(finite, self.good_steps + 1, 0)
        grown = torch.where(self.good_steps % GROWTH_INTERVAL_STEPS == 0, self.value * 2, self.value)
        self.value = torch.where(finite, grown.clamp(max=LARGEST_SCALE), self.value / 2)

    def facts(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"value": self.value.item(), "good_steps": self.good_steps.item()}

    def restore(self, facts: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint; one that was written in another precision holds nothing to go on from."""
        if self.is_dynamic and facts is not None:
            self.value = torch.full_like(self.value, facts["value"])
            self.good_steps = torch.full_like(self.good_steps, facts["good_steps"])
