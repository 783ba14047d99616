"""Engines: where a step's forward, backward and update happen.

Gradients are *sums* over ranks and micro-batches, since the losses carry the global count of videos (see
`model.losses`): an engine must never average. What an engine saves is named after parameters and whole, not cut by
rank, so any engine goes on from any other's checkpoint, at any number of ranks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aumn.records import Batch, InputError, Rows, Scores, is_bank
from aumn.runtime.optimizer_state import Slots, load_slots, named_state, read_slots
from aumn.runtime.own_time import OwnTime
from aumn.runtime.precision import LossScale, autocast, clip_, poisoned
from aumn.runtime.ranks import Ranks
from aumn.runtime.rows import shared_rows
from aumn.runtime.settings import EngineSettings, OptimizerSettings


class Engine:
    """One rank's hands on the network, here by PyTorch alone; every rank makes the same calls in the same order.

    `network` is a `model.aumn.StreamNetworks`, and `scales` are its streams' loss scales. An engine moves the network
    to its device. Adam's weight decay is decoupled.

    The ranks' gradients lie in one tensor, and cross in one collective behind the step's last backward pass. DDP would
    overlap the two on CUDA, but lays its buckets out anew after its first backward pass, and the order in which gloo
    adds depends on a value's place: on three ranks or more a run that goes on would differ in its last bits. With a
    memory bank over ranks (`model.bank`), the units' gradients lie in another, and cross between ranks that hold the
    same units: `bank` are the ranks that share them out, `data` those with the same.

    A step asks nothing of the device: clipping, loss scales and whether a stream is updated at all are decided there,
    by fused Adam's `found_inf`. Untested on CUDA for want of a GPU.
    """

    def __init__(
        self, network: Any, ranks: Ranks, device: torch.device, optimizer: OptimizerSettings, settings: EngineSettings
    ) -> None:
        self.ranks, self.device, self.optimizer, self.settings = ranks, device, optimizer, settings
        self.bank, self.data = ranks.split(settings.bank_ranks)
        self.network = network.to(device)
        self.own_time = OwnTime(device)
        self.scales = {name: LossScale(settings.precision, device) for name in network.networks}
        self._names: dict[Any, str] = {parameter: name for name, parameter in network.networks.named_parameters()}
        self._gradients: list[tuple[Ranks, Tensor]] = []
        self._adams = self._prepare()

    def _prepare(self) -> dict[str, Any]:
        """Each stream's optimizer, on weights that are the same on every rank."""
        for among, shared_out in ((self.ranks, False), (self.data, True)):
            parameters = [one for one, name in self._names.items() if self._is_shared_out(name) == shared_out]
            if among.size > 1 and parameters:
                for parameter in parameters:
                    among.copy_first_(parameter.data)
                self._gradients.append((among, _gather_gradients(parameters)))
        arguments: dict[str, Any] = {"betas": self.optimizer.betas, "weight_decay": self.optimizer.weight_decay}
        return {
            stream: _Adam(part.parameters(), fused=True, **arguments) for stream, part in self.network.networks.items()
        }

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Context of one micro-batch's forward and backward; gradients cross ranks in the step's last one at latest."""
        yield
        if self._gradients and last:
            assert all(parameter.grad is not None for parameter in self._names), "what has no gradient is an old one's"
            for among, gradients in self._gradients:
                among.sum_(gradients)

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """Every stream's scores, with gradient."""
        self._first_wait()
        with autocast(self.settings.precision, self.device):
            scores: dict[str, Scores] = self.network(batch)
        return scores

    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 11's sums of every stream, without gradient."""
        self._first_wait()
        with autocast(self.settings.precision, self.device):
            sums: dict[str, Tensor] = self.network.unit_sums(batch)
        return sums

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradient of this rank's share of each stream's loss."""
        parts = [self.scales[name].scaled(loss) for name, loss in poisoned(losses).items()]
        torch.stack(parts).sum().backward()

    def update(self, learning_rate: float) -> dict[str, Tensor]:
        """Clip, step, clear; each stream's gradient norm before clipping, the same on every rank, on the device.

        A stream whose norm is not finite stays as it is: a loss was not finite on some rank, or a gradient overflowed.
        What is done about it later is `finite.FiniteWatch`'s affair.
        """
        norms = {stream: self._update(stream, learning_rate) for stream in self.scales}
        for stream, norm in norms.items():
            self.scales[stream].adjust(norm.isfinite())
        return norms

    def communication_s(self) -> float | None:
        """Seconds so far in which ranks spoke and no compute hid it, waiting included; None: nobody measures that.

        On CUDA the host's clock sees the launch of a collective alone.
        """
        spent_s = sum({id(ranks): ranks.sums_s for ranks in (self.ranks, self.bank, self.data)}.values())
        return spent_s if self.device.type == "cpu" or self.ranks.size == 1 else None

    def whole_network(self) -> Any:
        """A network with every weight, to be used without the engine, by each rank as often as it likes."""
        return self.network

    def weights(self) -> dict[str, Tensor | Rows]:
        """The whole network's weights by name; every rank must call, the first one is answered.

        Of what a bank's ranks share out, each is given its own rows, and the first one a way to the others'.
        """
        return self._to_keep(self.network.state_dict())

    def trainer_state(self) -> tuple[dict[str, Tensor | Rows], dict[str, Any]]:
        """The optimizer's tensors and JSON facts; every rank must call, the first one is answered as by `weights`."""
        tensors: dict[str, Tensor] = {}
        for stream in self.scales:
            tensors |= self._optimizer_state(stream)
        scales = {stream: scale.facts() for stream, scale in self.scales.items()}
        facts = {"groups": [{"params": list(self._names.values())}], "loss_scales": scales}
        return self._to_keep(tensors, len(self.scales)), facts

    def load_state(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Go on from what `weights` and `trainer_state` of any engine gave."""
        slots = read_slots(tensors, facts, list(self._names.values()))
        self._load_weights(weights)
        for stream, scale in self.scales.items():
            self._load_optimizer(stream, slots)
            scale.restore(facts.get("loss_scales", {}).get(stream))

    def _update(self, stream: str, learning_rate: float) -> Tensor:
        """One stream's update; its gradient norm before clipping."""
        adam = self._adams[stream]
        (group,) = adam.param_groups
        units = {one for one in group["params"] if self._is_shared_out(self._names[one])}
        norm = clip_(group["params"], self.scales[stream], self.optimizer.clip_norm, units, self.bank)
        group["lr"] = learning_rate
        adam.found_inf = (~norm.isfinite()).float()  # 1: Adam does nothing at all
        adam.step()
        adam.zero_grad()
        return norm

    def _to_keep(self, tensors: Mapping[str, Tensor], before: int = 0) -> dict[str, Tensor | Rows]:
        """With `Rows` for what is shared out, of which `before` others stand before these in a checkpoint."""
        numbers = {name: before + number for number, name in enumerate(filter(self._is_shared_out, tensors))}
        return {
            name: shared_rows(tensor, numbers[name], self.network.bank.units, self.bank) if name in numbers else tensor
            for name, tensor in tensors.items()
        }

    def _first_wait(self) -> None:
        """Forward is about to begin; a bank's ranks read for each other."""
        if self.bank.size > 1:
            self.own_time.end()

    def _is_shared_out(self, name: str) -> bool:
        """Whether this rank holds but some rows of a parameter, or of what Adam has of it."""
        return self.bank.size > 1 and is_bank(name)

    def _optimizer_state(self, stream: str) -> dict[str, Tensor]:
        """One stream's part of `trainer_state`'s tensors."""
        return named_state(self._adams[stream], self._names)

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(weights)

    def _load_optimizer(self, stream: str, slots: Slots) -> None:
        load_slots(self._adams[stream], self._names, slots)


class _Adam(torch.optim.AdamW):
    """PyTorch's, with the same step. What it puts around it is for torch.compile, and imports that: half of a start."""

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    add_param_group: Any = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad: Any = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.AdamW.load_state_dict)


def _gather_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor in which every parameter's gradient takes its place as soon as it is there; never a copy of all."""
    sizes = [parameter.numel() for parameter in parameters]
    together = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, place in zip(parameters, together.split(sizes), strict=True):
        parameter.register_post_accumulate_grad_hook(partial(_move_gradient, place.view_as(parameter)))
    return together


def _move_gradient(place: Tensor, parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad is not place:  # later micro-batches are added in that place
        parameter.grad = place.copy_(parameter.grad)


def build_engine(
    name: str, network: Any, ranks: Ranks, device: torch.device, *, optimizer: OptimizerSettings, engine: EngineSettings
) -> Engine:
    """The engine of a run's one config word."""
    if name == "single" and ranks.size > 1:
        raise InputError(
            f"run.engine=single trains in one process, but {ranks.size} ranks were launched: set run.engine=ddp."
        )
    if name == "deepspeed":
        from aumn.runtime.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(network, ranks, device, optimizer, engine)
    return Engine(network, ranks, device, optimizer, engine)
