"""The memory bank over a group of ranks: each holds some of the K units, and reads them for all the group's videos.

A rank's own videos and its own units are two things. Queries go to all of the group's ranks, each reads them with its
units, and what leaves the reading comes back to be added up (`Memory.read`): for B videos of T snippets A + 1 values a
snippet go out and R + 3 come back, whatever K is, and as many in the backward pass. A unit's gradient stays where the
unit is. All of a group's ranks make the same calls in the same order; backward passes do, since autograd goes through
what was recorded from its end.

Gradients are those of the *sum* of what all ranks hand in as their losses (see `losses`): `exchange` gives each rank
what the others' losses say of what it sent. Eq. 10 alone is computed by every rank of a group alike, from sums that all
of them have, so what the others' losses say is known without asking them: `alike`.

Untested on CUDA for want of several GPUs: there the counts of videos cross by gloo on the host, all else by NCCL.

Shapes: G the group's videos, N its ranks, K units in all (k of them here), F embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from aumn.model.products import product
from aumn.records import InputError, own_rows


class Group(Protocol):
    """What a bank asks of its ranks; they are `runtime.ranks.Ranks`."""

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""

    def exchange(self, tensor: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """So many rows to each rank, in their order, and so many from each."""

    def ask_and_tell(self, question: Callable[[], int], own: int | None = None) -> Callable[[], list[int]]:
        """The highest answer, then every rank's own number."""


@dataclass(frozen=True)
class Bank:
    """K units over a group's ranks."""

    group: Group
    units: int

    @classmethod
    def over(cls, group: Group, units: int) -> Bank | None:
        """None where the group is one rank, which reads as without a group."""
        if units < group.size:
            raise InputError(
                f"model.units={units} are too few for a memory over {group.size} ranks (engine.bank_ranks, "
                "--bank-ranks), each of which holds a unit at least: take fewer ranks, or more units."
            )
        return cls(group, units) if group.size > 1 else None

    @property
    def rows(self) -> slice:
        """Those that this rank holds."""
        return own_rows(self.units, self.group.rank, self.group.size)

    def exchange(self, tensor: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """`Group.exchange`, through which gradients go back the same way."""
        found: Tensor = _Exchange.apply(tensor, self.group, sent, received)  # type: ignore[no-untyped-call]
        return found

    def share(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """All ranks' rows on every rank; `counts` are theirs."""
        copies = tensor.expand(self.group.size, *tensor.shape).flatten(0, 1)
        return self.exchange(copies, [len(tensor)] * self.group.size, counts)

    def softmax(self, sums_Gk: Tensor) -> Tensor:
        """A softmax over all units, the columns of all ranks together."""
        found: Tensor = _Softmax.apply(sums_Gk, self)  # type: ignore[no-untyped-call]
        return found

    def norm(self, part: Tensor) -> Tensor:
        """The norm of a vector of which each rank has a part; no gradient."""
        return self.group.sum_(part.square().sum()).sqrt()

    def gram_alike(self, units_kF: Tensor) -> Tensor:
        """Mᵀ M of all K rows, of which all ranks make the same."""
        found: Tensor = _GramAlike.apply(units_kF, self.group)  # type: ignore[no-untyped-call]
        return found

    def rows_alike(self, units_kF: Tensor) -> Tensor:
        """All K rows, for the few of a bank that is narrower than F, of which all ranks make the same."""
        found: Tensor = _RowsAlike.apply(units_kF, self)  # type: ignore[no-untyped-call]
        return found


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        ctx.way = group, sent, received
        return group.exchange(tensor, sent, received)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        group, sent, received = ctx.way
        return group.exchange(grads[0], received, sent), None, None, None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums_Gk: Tensor, bank: Bank) -> Tensor:
        highest_G = sums_Gk.amax(1)
        shares_Gk = (sums_Gk - highest_G[:, None]).exp_()
        told_N2G = bank.share(torch.stack([highest_G, shares_Gk.sum(1)])[None], [1] * bank.group.size)
        top_G = told_N2G[:, 0].amax(0)
        total_G = (told_N2G[:, 1] * (told_N2G[:, 0] - top_G).exp()).sum(0)
        shares_Gk *= ((highest_G - top_G).exp() / total_G)[:, None]
        ctx.group = bank.group
        ctx.save_for_backward(shares_Gk)
        return shares_Gk

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (shares_Gk,) = ctx.saved_tensors
        weighted_Gk = grads[0] * shares_Gk
        mean_G = ctx.group.sum_(weighted_Gk.sum(1))
        return weighted_Gk.addcmul_(shares_Gk, mean_G[:, None], value=-1), None


class _GramAlike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, units_kF: Tensor, group: Group) -> Tensor:
        ctx.ranks = group.size
        ctx.save_for_backward(units_kF)
        return group.sum_(product(units_kF.T, units_kF))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (units_kF,) = ctx.saved_tensors
        return product(units_kF, (grads[0] + grads[0].T) * ctx.ranks), None


class _RowsAlike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, units_kF: Tensor, bank: Bank) -> Tensor:
        ctx.bank, ranks = bank, bank.group.size
        places = (own_rows(bank.units, place, ranks) for place in range(ranks))
        return bank.share(units_kF, [rows.stop - rows.start for rows in places])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0][ctx.bank.rows] * ctx.bank.group.size, None
