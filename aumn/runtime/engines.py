"""Engines: where a step's forward, backward and update happen. The step itself (`train`) sees only this protocol.

Gradients are *sums* over ranks and micro-batches, since the losses carry the global count of videos (see
`model.losses`): an engine must never average. What an engine saves is named after parameters and whole, not cut by
rank, so any engine goes on from any other's checkpoint, at any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aumn.records import Batch, InputError, Scores
from aumn.runtime.optimizer_state import flatten_optimizer, restore_optimizer
from aumn.runtime.precision import LossScale, autocast, poisoned
from aumn.runtime.ranks import Ranks
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.runtime.shared_memory import SharedSum


class Network(Protocol):
    """What an engine runs: a module with a part for each stream."""

    networks: nn.ModuleDict

    def inputs(self, batch: Batch) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
        """Each stream's name, part, and what its part takes."""

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums, without gradient."""


class Engine(Protocol):
    """One rank's hands on the network; every rank makes the same calls in the same order."""

    ranks: Ranks
    device: torch.device
    scales: dict[str, LossScale]
    """Each stream's."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch's forward and backward; gradients cross ranks in the step's last one at latest."""

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """Every stream's scores, with gradient."""

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums of every stream, without gradient."""

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradient of this rank's share of each stream's loss."""

    def update(self, learning_rate: float) -> dict[str, Tensor]:
        """Clip, step, clear; each stream's gradient norm before clipping, the same on every rank, on the device.

        A stream whose norm is not finite stays as it is: a loss was not finite on some rank, or a gradient overflowed.
        What is done about it later is `finite.FiniteWatch`'s affair.
        """

    def communication_s(self) -> float | None:
        """Seconds so far in which gradients crossed the ranks and no compute hid it; None: nobody measures that."""

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
    """PyTorch alone or over several ranks; Adam with decoupled weight decay.

    Gradients of several ranks are DDP's affair; on the CPUs of a single machine they are added up in shared memory.
    A step asks nothing of the device: clipping, loss scales and whether a stream is updated at all are decided there,
    by fused Adam's `found_inf`. Untested on CUDA for want of a GPU.
    """

    def __init__(
        self, network: Any, ranks: Ranks, device: torch.device, optimizer: OptimizerSettings, settings: EngineSettings
    ) -> None:
        self.ranks, self.device, self.optimizer, self.settings = ranks, device, optimizer, settings
        self.network = network.to(device)
        self._weights = list(self.network.parameters())
        self._shared = self._open_shared_memory() if ranks.size > 1 else None
        self._parallel = None
        if self._shared is not None:
            self._shared.copy_from_first_([weight.data for weight in self._weights])
        elif ranks.size > 1:
            self._parallel = DistributedDataParallel(self.network, gradient_as_bucket_view=True)
            self._parallel._set_ddp_runtime_logging_sample_rate(1)  # for `communication_s`; DDP would time every 100th
        streams = self.network.networks
        self.scales = {name: LossScale(settings.precision, device) for name in streams}
        self._optimizers = {name: self._build_adam(list(part.parameters())) for name, part in streams.items()}

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """See Engine."""
        with nullcontext() if self._parallel is None or last else self._parallel.no_sync():
            yield
        if self._shared is not None and last:
            self._shared.sum_([_gradient(weight) for weight in self._weights])

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
        """See Engine. DDP averages over ranks, so its shares go in times their number; shared memory adds them up."""
        factor = 1 if self._parallel is None else self.ranks.size
        parts = [self.scales[name].scaled(loss * factor) for name, loss in poisoned(losses).items()]
        torch.stack(parts).sum().backward()

    def update(self, learning_rate: float) -> dict[str, Tensor]:
        """See Engine."""
        return {name: self._update(name, learning_rate) for name in self._optimizers}

    def communication_s(self) -> float | None:
        """See Engine. Waiting for slower ranks is part of it; DDP's own clocks are a step late."""
        if self._parallel is None:
            return 0.0 if self._shared is None else self._shared.total_s
        clocks = self._parallel._get_ddp_logging_data()
        mean_ns = clocks.get("avg_backward_comm_time", 0) - clocks.get("avg_backward_compute_comm_overlap_time", 0)
        return float(mean_ns * clocks["iteration"]) / 1e9

    def whole_network(self) -> AbstractContextManager[None]:
        """See Engine."""
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """See Engine; here every rank is answered."""
        return dict(self.network.state_dict())

    def trainer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See Engine; here every rank is answered."""
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {"groups": [], "numbers": {}}
        for name, optimizer in self._optimizers.items():
            own_tensors, own_facts = flatten_optimizer(optimizer.state_dict(), self._parameter_names(name))
            tensors |= own_tensors
            facts["groups"] += [{"params": group["params"]} for group in own_facts["groups"]]  # not how: see load_state
            facts["numbers"] |= own_facts["numbers"]
        return tensors, facts | {"loss_scales": {name: scale.facts() for name, scale in self.scales.items()}}

    def load_state(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """See Engine. The groups' settings are the config's, not the checkpoint's, which another engine may have."""
        self.network.load_state_dict(weights)
        names = [name for stream in self._optimizers for name in self._parameter_names(stream)]
        state = restore_optimizer(tensors, facts, names)["state"]
        by_name = {name: state[index] for index, name in enumerate(names) if index in state}
        for stream, optimizer in self._optimizers.items():
            own = enumerate(self._parameter_names(stream))
            own_state = {index: by_name[name] for index, name in own if name in by_name}
            optimizer.load_state_dict({"state": own_state, "param_groups": optimizer.state_dict()["param_groups"]})
            self.scales[stream].restore(facts.get("loss_scales", {}).get(stream))

    def _open_shared_memory(self) -> SharedSum | None:
        if not self.settings.shared_memory or self.device.type != "cpu":
            return None
        return SharedSum.open(self.ranks, sum(weight.nbytes for weight in self._weights))

    def _build_adam(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        betas, weight_decay = self.optimizer.betas, self.optimizer.weight_decay
        return torch.optim.AdamW(parameters, betas=betas, weight_decay=weight_decay, fused=True)

    def _update(self, stream: str, learning_rate: float) -> Tensor:
        """One stream's update, and its gradient norm before clipping."""
        optimizer, scale = self._optimizers[stream], self.scales[stream]
        (group,) = optimizer.param_groups
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        scale.unscale_(gradients)
        norm = nn.utils.get_total_norm(gradients)
        if self.optimizer.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(group["params"], self.optimizer.clip_norm, norm)
        scale.adjust(norm.isfinite())
        group["lr"] = learning_rate
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # 1: Adam does nothing at all
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _parameter_names(self, stream: str) -> list[str]:
        """In the optimizer's order."""
        return [f"{stream}.{name}" for name, _ in self.network.networks[stream].named_parameters()]


def _gradient(weight: nn.Parameter) -> Tensor:
    """A weight's gradient; every rank must have every one, or sums would meet in the wrong places."""
    assert weight.grad is not None
    return weight.grad


def build_engine(
    name: str,
    network: Any,
    ranks: Ranks,
    device: torch.device,
    *,
    optimizer: OptimizerSettings,
    engine: EngineSettings,
) -> Engine:
    """The engine of a run's one config word."""
    if name == "single" and ranks.size > 1:
        raise InputError(
            f"run.engine=single trains in one process, but {ranks.size} ranks were launched: set run.engine=ddp."
        )
    if name == "deepspeed":
        from aumn.runtime.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(network, ranks, device, optimizer, engine)
    return TorchEngine(network, ranks, device, optimizer, engine)
