"""Engines: where a step's forward, backward and update happen. The step itself (`train`) sees only this protocol.

Gradients are *sums* over ranks and micro-batches, since the losses carry the global count of videos (see
`model.losses`): an engine must never average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aumn.cluster.ranks import Ranks
from aumn.optimizer_state import flatten_optimizer, restore_optimizer
from aumn.records import Batch, InputError, Scores


class Network(Protocol):
    """What an engine runs: a module with a part for each stream."""

    networks: nn.ModuleDict

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums, without gradient."""


class Engine(Protocol):
    """One rank's hands on the network; every rank makes the same calls in the same order."""

    ranks: Ranks
    device: torch.device

    def accumulate(self, *, last: bool) -> Any:
        """Context of one micro-batch's forward and backward; gradients cross ranks in the step's last one only."""

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """Every stream's scores, with gradient."""

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums of every stream, without gradient."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's share of the loss."""

    def update(self, learning_rate: float) -> dict[str, Tensor]:
        """Clip, step, clear; each stream's gradient norm before clipping."""


class TorchEngine:
    """PyTorch alone, or with DDP where there are several ranks; Adam with decoupled weight decay.

    On CUDA nothing here waits for the device; that is untested for want of a GPU.
    """

    def __init__(
        self,
        network: Any,
        ranks: Ranks,
        device: torch.device,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.ranks, self.device, self.clip_norm = ranks, device, clip_norm
        self.network = network.to(device)
        self._parallel = DistributedDataParallel(self.network, gradient_as_bucket_view=True) if ranks.size > 1 else None
        parameters = [{"params": list(part.parameters())} for part in self.network.networks.values()]
        self.optimizer = torch.optim.AdamW(parameters, betas=betas, weight_decay=weight_decay, fused=True)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """See Engine."""
        if self._parallel is None or last:
            yield
        else:
            with self._parallel.no_sync():
                yield

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """See Engine."""
        scores: dict[str, Scores] = (self._parallel or self.network)(batch)
        return scores

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """See Engine."""
        sums: dict[str, Tensor] = self.network.unit_sums(batch)
        return sums

    def backward(self, loss: Tensor) -> None:
        """See Engine. DDP averages over ranks, so each rank's share goes in times their number."""
        (loss * self.ranks.size).backward()

    def update(self, learning_rate: float) -> dict[str, Tensor]:
        """See Engine."""
        norms = {}
        for name, group in zip(self.network.networks, self.optimizer.param_groups, strict=True):
            group["lr"] = learning_rate
            norms[name] = nn.utils.get_total_norm([p.grad for p in group["params"]])
            if self.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(group["params"], self.clip_norm, norms[name])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def weights(self) -> dict[str, Tensor]:
        """The whole network's weights by name; every rank must call."""
        return dict(self.network.state_dict())

    def trainer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's tensors and JSON facts; every rank must call."""
        return flatten_optimizer(self.optimizer.state_dict(), self._parameter_names())

    def load_state(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Go on from what `weights` and `trainer_state` gave."""
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(restore_optimizer(tensors, facts, self._parameter_names()))

    def _parameter_names(self) -> list[str]:
        """In the optimizer's order: stream after stream."""
        return [name for name, _ in self.network.networks.named_parameters()]


def build_engine(
    name: str, network: Any, ranks: Ranks, device: torch.device, settings: Mapping[str, Any]
) -> TorchEngine:
    """The engine of a run's one config word."""
    if name == "single" and ranks.size > 1:
        raise InputError(
            f"run.engine=single trains in one process, but {ranks.size} ranks were launched: set run.engine=ddp."
        )
    return TorchEngine(network, ranks, device, **settings)
