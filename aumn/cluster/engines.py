"""Engines: where a step's forward, backward and update happen. The step itself (`train`) sees only this protocol.

Gradients are *sums* over ranks and micro-batches, since the losses carry the global count of videos (see
`model.losses`): an engine must never average. What an engine saves is named after parameters and whole, not cut by
rank, so any engine goes on from any other's checkpoint, at any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aumn.cluster.precision import LossScale, autocast, poisoned
from aumn.cluster.ranks import Ranks
from aumn.optimizer_state import flatten_optimizer, restore_optimizer
from aumn.records import Batch, InputError, Scores


class Network(Protocol):
    """What an engine runs: a module with a part for each stream."""

    networks: nn.ModuleDict

    def inputs(self, batch: Batch) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
        """Each stream's name, part, and what its part takes."""

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums, without gradient."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is told; see `config.OptimizerConfig` and `config.EngineConfig`."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    precision: str = "fp32"
    zero_stage: int = 2
    offload: str = "none"
    compile_ops: bool = False


class Engine(Protocol):
    """One rank's hands on the network; every rank makes the same calls in the same order."""

    ranks: Ranks
    device: torch.device

    @property
    def rescales(self) -> bool:
        """Whether gradients that overflowed are the loss scale's affair, which has been lowered, and nobody's fault."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch's forward and backward; gradients cross ranks in the step's last one at latest."""

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """Every stream's scores, with gradient."""

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums of every stream, without gradient."""

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradient of this rank's share of each stream's loss."""

    def update(self, learning_rate: float) -> dict[str, float]:
        """Clip, step, clear; each stream's gradient norm before clipping, the same on every rank.

        A stream whose norm is not finite stays as it is: a loss was not finite on some rank, or a gradient overflowed.
        """

    def whole_network(self) -> AbstractContextManager[None]:
        """Context in which every rank has every weight, so that the network can be used without the engine."""

    def weights(self) -> dict[str, Tensor]:
        """The whole network's weights by name; every rank must call, the first one is answered."""

    def trainer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's tensors and JSON facts; every rank must call, the first one is answered."""

    def load_state(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Go on from what `weights` and `trainer_state` of any engine gave."""


class TorchEngine:
    """PyTorch alone, or with DDP where there are several ranks; Adam with decoupled weight decay.

    On CUDA, a step waits for the device once, to look at its gradient norms; untested for want of a GPU.
    """

    def __init__(self, network: Any, ranks: Ranks, device: torch.device, settings: EngineSettings) -> None:
        self.ranks, self.device, self.settings = ranks, device, settings
        self.network = network.to(device)
        self._parallel = DistributedDataParallel(self.network, gradient_as_bucket_view=True) if ranks.size > 1 else None
        parameters = [{"params": list(part.parameters())} for part in self.network.networks.values()]
        self.optimizer = torch.optim.AdamW(
            parameters, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.scales = {name: LossScale(settings.precision) for name in self.network.networks}

    @property
    def rescales(self) -> bool:
        """See Engine."""
        return any(scale.is_dynamic and scale.value >= 1 for scale in self.scales.values())

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
        with autocast(self.settings.precision, self.device):
            scores: dict[str, Scores] = (self._parallel or self.network)(batch)
        return scores

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """See Engine."""
        with autocast(self.settings.precision, self.device):
            sums: dict[str, Tensor] = self.network.unit_sums(batch)
        return sums

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """See Engine. DDP averages over ranks, so each rank's share goes in times their number."""
        parts = [loss * (self.ranks.size * self.scales[name].value) for name, loss in poisoned(losses).items()]
        torch.stack(parts).sum().backward()

    def update(self, learning_rate: float) -> dict[str, float]:
        """See Engine."""
        groups = dict(zip(self.network.networks, self.optimizer.param_groups, strict=True))
        norms = {name: self._unscaled_norm(name, group["params"]) for name, group in groups.items()}
        norms_on_host = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
        for name, group in groups.items():
            group["lr"] = learning_rate
            finite = math.isfinite(norms_on_host[name])
            self.scales[name].adjust(finite=finite)
            if not finite:
                self._drop_gradients(group["params"])
            elif self.settings.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(group["params"], self.settings.clip_norm, norms[name])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms_on_host

    def whole_network(self) -> AbstractContextManager[None]:
        """See Engine."""
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """See Engine; here every rank is answered."""
        return dict(self.network.state_dict())

    def trainer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See Engine; here every rank is answered."""
        tensors, facts = flatten_optimizer(self.optimizer.state_dict(), self._parameter_names())
        return tensors, facts | {"loss_scales": {name: scale.facts() for name, scale in self.scales.items()}}

    def load_state(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """See Engine. The groups' settings are the config's, not the checkpoint's, which another engine may have."""
        self.network.load_state_dict(weights)
        restored = restore_optimizer(tensors, facts, self._parameter_names())
        own_groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**restored, "param_groups": own_groups})
        for name, scale in self.scales.items():
            scale.restore(facts.get("loss_scales", {}).get(name))

    def _unscaled_norm(self, stream: str, parameters: list[Tensor]) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.scales[stream].value != 1:
            torch._foreach_mul_(gradients, 1 / self.scales[stream].value)
        return nn.utils.get_total_norm(gradients)

    def _drop_gradients(self, parameters: list[Tensor]) -> None:
        """So that the optimizer leaves these parameters, their momenta and their count of steps alone."""
        for parameter in parameters:
            parameter.grad = None

    def _parameter_names(self) -> list[str]:
        """In the optimizer's order: stream after stream."""
        return [name for name, _ in self.network.networks.named_parameters()]


def build_engine(name: str, network: Any, ranks: Ranks, device: torch.device, settings: Mapping[str, Any]) -> Engine:
    """The engine of a run's one config word; `settings` are the fields of EngineSettings."""
    if name == "single" and ranks.size > 1:
        raise InputError(
            f"run.engine=single trains in one process, but {ranks.size} ranks were launched: set run.engine=ddp."
        )
    if name == "deepspeed":
        from aumn.cluster.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(network, ranks, device, EngineSettings(**settings))
    return TorchEngine(network, ranks, device, EngineSettings(**settings))
