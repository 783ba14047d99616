"""DeepSpeed: ZeRO stages 0-3 by the same calls as `engines`, with the same arithmetic. The only importer of deepspeed.

Each stream has a DeepSpeed engine of its own: DeepSpeed clips by the norm over all of an engine's parameters, and that
is then the stream's own norm, whatever the stage has partitioned. Weights are float32 and 16 bits are autocast's, as in
Engine, so a stage changes where things lie and nothing else; DeepSpeed's own bf16 and fp16 modes, which round the
weights, are not used.

Written for DeepSpeed 0.19; `_flat_partitions` and `_give_adam_its_state` touch what it does not document.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from aumn.records import Batch, Rows, Scores
from aumn.runtime.engines import Engine
from aumn.runtime.optimizer_state import PREFIX, Slots
from aumn.runtime.precision import autocast, clip_, poisoned
from aumn.runtime.ranks import Ranks, group_of_one
from aumn.runtime.settings import EngineSettings

BUCKET_ELEMENTS = 25_000_000  # 100 MB of float32; DeepSpeed would allocate 2 GB for models of any size
SLOTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine(Engine):
    """See Engine. DeepSpeed itself waits for the device in every step. Untested on CUDA for want of a GPU."""

    def _prepare(self) -> dict[str, Any]:
        self._deepspeed = _import_deepspeed(self.ranks, self.device)
        self._plain = deepcopy(self.network).to("meta")  # DeepSpeed puts hooks into the network
        self._engines = {name: self._build(part) for name, part in self.network.networks.items()}
        return {name: engine.basic_optimizer for name, engine in self._engines.items()}

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """See Engine. Stages 2 and 3 sum over ranks in every micro-batch, since none can hold all of its gradients."""
        for engine in self._engines.values():
            engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """See Engine. Stage 3 gathers weights first, which waits for the other ranks."""
        self._first_wait()
        return {name: Scores(*self._engines[name](*inputs)) for name, _, inputs in self.network.inputs(batch)}

    @torch.no_grad()
    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """See Engine."""
        self._first_wait()
        return {name: self._engines[name](*inputs, only_sums=True)[0] for name, _, inputs in self.network.inputs(batch)}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """See Engine. DeepSpeed averages over ranks, so each rank's share goes in times their number."""
        for name, loss in poisoned(losses).items():
            engine, scale = self._engines[name], self.scales[name]
            share = loss * self.ranks.size
            if self.settings.zero_stage > 0 and scale.is_dynamic:
                engine.optimizer.override_loss_scale(scale.value.item())  # it scales the loss, unscales the gradients
            else:
                share = scale.scaled(share)
            engine.backward(share, scale_wrt_gas=False)

    def whole_network(self) -> Any:
        """See Engine. In stage 3 a copy: what is gathered lasts for one forward, and the next one's is a collective."""
        if self.settings.zero_stage < 3:
            return self.network
        weights = {}
        for name, parameter in self.network.named_parameters():
            with self._gathered([parameter]):
                weights[name] = parameter.detach().clone()
        whole = deepcopy(self._plain)
        whole.load_state_dict(weights, assign=True)
        return whole

    def weights(self) -> dict[str, Tensor | Rows]:
        """See Engine; parameter by parameter, so a device holds one whole parameter at most beyond its partition."""
        weights: dict[str, Tensor | Rows] = {}
        for name, parameter in self.network.named_parameters():
            with self._gathered([parameter]):
                if self.ranks.is_first:
                    weights[name] = parameter.detach().cpu().clone()
        return weights

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            with self._gathered([parameter], modified=True), torch.no_grad():
                parameter.copy_(weights[name])
        if self.settings.zero_stage > 0:
            for engine in self._engines.values():
                engine.optimizer.refresh_fp32_params()

    def _first_wait(self) -> None:
        if self.settings.zero_stage == 3:
            self.own_time.end()

    def _build(self, part: nn.Module) -> Any:
        """A stream's DeepSpeed engine."""
        module = _Stream(part, self.settings.precision, self.device)
        engine, *_ = self._deepspeed.initialize(
            model=module,
            optimizer=self._build_adam(list(module.parameters())),
            config=_deepspeed_config(self.settings, self.optimizer.clip_norm),
        )
        return engine

    def _build_adam(self, parameters: list[nn.Parameter]) -> Any:
        """Adam with decoupled weight decay: PyTorch's, or DeepSpeed's own, which it compiles for minutes once."""
        arguments: dict[str, Any] = {"betas": self.optimizer.betas, "weight_decay": self.optimizer.weight_decay}
        if not self.settings.compile_ops:
            return torch.optim.AdamW(parameters, fused=True, **arguments)
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        if self.device.type == "cpu" or self.settings.offload != "none":
            return DeepSpeedCPUAdam(parameters, adamw_mode=True, **arguments)
        return FusedAdam(parameters, adam_w_mode=True, **arguments)

    def _update(self, stream: str, learning_rate: float) -> Tensor:
        """See Engine; in stage 0, DeepSpeed neither tells the norm nor looks whether it is finite."""
        engine = self._engines[stream]
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.settings.zero_stage > 0:
            engine.step()
            return torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        norm = clip_(list(engine.module.parameters()), self.scales[stream], self.optimizer.clip_norm)
        if not norm.isfinite():
            engine.zero_grad()  # Adam passes over parameters without gradient
        engine.step()
        return norm

    def _gathered(self, parameters: list[nn.Parameter], *, modified: bool = False) -> AbstractContextManager[None]:
        """Context in which these parameters are whole on every rank; in stages 0 to 2 they always are."""
        context: AbstractContextManager[None] = self._deepspeed.zero.GatheredParameters(
            parameters, modifier_rank=0 if modified else None, enabled=self.settings.zero_stage == 3
        )
        return context

    def _optimizer_state(self, stream: str) -> dict[str, Tensor]:
        """Adam's momenta, whole, on the first rank, parameter by parameter. Before the first step there are none."""
        engine = self._engines[stream]
        if self.settings.zero_stage == 0:
            return super()._optimizer_state(stream)
        from deepspeed.utils import safe_get_full_optimizer_state

        adam_state = self._adams[stream].state.get(_flat_partitions(engine)[0])
        if not adam_state:
            return {}
        tensors: dict[str, Tensor] = {}
        for parameter in engine.module.parameters():
            prefix = f"{PREFIX}{self._names[parameter]}"
            whole = {slot: safe_get_full_optimizer_state(parameter, slot) for slot in SLOTS}
            if self.ranks.is_first:
                tensors |= {f"{prefix}/{slot}": tensor.cpu().clone() for slot, tensor in whole.items()}
                tensors[f"{prefix}/step"] = torch.tensor(float(adam_state["step"]))
        return tensors

    def _load_optimizer(self, stream: str, slots: Slots) -> None:
        """Give every rank its part of the momenta."""
        engine = self._engines[stream]
        if self.settings.zero_stage == 0:
            super()._load_optimizer(stream, slots)
            return
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        own = {
            parameter: slots[name]
            for parameter in engine.module.parameters()
            if (name := self._names[parameter]) in slots
        }
        if own:
            _give_adam_its_state(engine, next(iter(own.values()))["step"])
        for parameter, of_parameter in own.items():
            for slot in SLOTS:
                if self.settings.zero_stage == 3:
                    part = _partition(of_parameter[slot], parameter.ds_tensor.numel(), self.ranks)
                    safe_set_local_optimizer_state(parameter, part, slot)
                else:
                    safe_set_full_optimizer_state(parameter, of_parameter[slot], slot)


class _Stream(nn.Module):
    """A stream's network as ZeRO-3 can follow it.

    ZeRO-3 gathers parameters that a module uses itself when they are touched, and again for the backward pass of the
    tensors that this module returns, which must therefore be a plain tuple. `units_KF` leaves as a copy: Eq. 10 reads
    it when the parameter has been partitioned again.
    """

    def __init__(self, network: Any, precision: str, device: torch.device) -> None:
        super().__init__()
        self.network, self.precision, self.device = network, precision, device

    def forward(self, *inputs: Any, only_sums: bool = False) -> tuple[Tensor | float | None, ...]:
        with autocast(self.precision, self.device):
            if only_sums:
                return (self.network.unit_sums(*inputs),)
            scores = self.network.forward(*inputs)
        copied = replace(scores, units_KF=scores.units_KF.clone())
        return tuple(getattr(copied, field.name) for field in fields(copied))


def _import_deepspeed(ranks: Ranks, device: torch.device) -> Any:
    """DeepSpeed, quiet, on this run's process group, without compiling anything."""
    defaults = {"DS_ACCELERATOR": device.type, "LOCAL_RANK": str(ranks.local_rank)}
    defaults |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # it imports mlflow
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls collectives by their names of PyTorch 2.12, in every step.
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    # It would be compiled when the process group is joined, and serves inference alone.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if ranks.size == 1:
        group_of_one(cuda=device.type == "cuda")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _deepspeed_config(settings: EngineSettings, clip_norm: float | None) -> dict[str, Any]:
    """Batch sizes are for DeepSpeed's own statistics; micro-batches are ours."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": 0,  # a dozen parameters in all: partition every one
    }
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": (settings.zero_stage > 0 and clip_norm) or 0.0,  # stage 0's is in `_step`
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _flat_partitions(engine: Any) -> list[Tensor]:
    """This rank's part of the float32 weights, as the optimizer sees them."""
    zero = engine.optimizer
    flat: list[Tensor] = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    return flat


def _give_adam_its_state(engine: Any, step: Tensor) -> None:
    """Adam makes its momenta in its first step; a run that goes on needs them before."""
    for flat in _flat_partitions(engine):
        state = {slot: torch.zeros_like(flat) for slot in SLOTS}
        engine.basic_optimizer.state[flat] = {"step": step.clone(), **state}
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _partition(whole: Tensor, size: int, ranks: Ranks) -> Tensor:
    """This rank's part of a tensor that is cut into equal parts, the last of them filled up with zeros."""
    flat = nn.functional.pad(whole.flatten(), (0, size * ranks.size - whole.numel()))
    return flat.narrow(0, size * ranks.rank, size)
