"""What a run will need, before anything is launched: parameters, bytes a rank holds, bytes a rank moves a step.

One micro-batch goes forward and backward through the real network as PyTorch's fake tensors, which have shapes and no
memory, and what they would take is added up meanwhile. ZeRO's shares and what crosses the ranks are arithmetic. On CUDA
this is untested for want of a GPU; 16 bits are those of a CPU there.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from aumn.config.run_config import RunConfig
from aumn.data.loader import STEPS_AHEAD, count_micro_batches
from aumn.data.shards.union import open_sets
from aumn.model.aumn import StreamNetworks
from aumn.model.losses import Objective
from aumn.model.memory import CHUNK_ELEMENTS
from aumn.records import Batch, InputError, Scores, Step
from aumn.runtime.engines import Engine
from aumn.runtime.own_time import OwnTime
from aumn.runtime.precision import autocast
from aumn.runtime.ranks import Ranks
from aumn.training.step import train_step

FLOAT_BYTES = 4
IN_FLIGHT = STEPS_AHEAD + 2  # steps of features in memory: read ahead, being read, and in use


@dataclass(frozen=True)
class Footprint:
    """One rank's needs. What it holds at its peak is `held_bytes`, beyond the 0.3 GB that Python and torch take.

    The first rank holds `first_rank_bytes` in host memory while it writes a checkpoint and trains on.
    """

    parameters: dict[str, dict[str, int]]  # stream -> layer, as checkpoints name it -> count
    micro_batches: int
    micro_videos: int
    snippets: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int  # forward and backward of one micro-batch at their peak, beyond the gradients
    features_bytes: int
    snapshot_bytes: int  # the first rank's copy of weights and Adam's state, while a checkpoint is written
    gathered_bytes: int  # the same under ZeRO, gathered on the first rank while the copy is made
    moved_bytes: int  # sent in a step by this rank, and as much received

    def rows(self) -> list[tuple[str, int]]:
        """What a rank holds, by name, in bytes."""
        return [
            ("weights", self.weights_bytes),
            ("gradients", self.gradients_bytes),
            ("optimizer state", self.optimizer_bytes),
            (f"activations of {self.micro_videos} videos x {self.snippets} snippets", self.activations_bytes),
            (f"features of {IN_FLIGHT} steps, read ahead", self.features_bytes),
            ("together", self.held_bytes),
            ("together on the first rank while a checkpoint is written", self.first_rank_bytes),
        ]

    @property
    def held_bytes(self) -> int:
        """Everything a rank holds at the step's peak."""
        kept = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return kept + self.activations_bytes + self.features_bytes

    @property
    def first_rank_bytes(self) -> int:
        """Everything the first rank holds meanwhile; no step is under way while the copy is made."""
        beside = max(self.activations_bytes, self.gathered_bytes)
        return self.held_bytes - self.activations_bytes + self.snapshot_bytes + beside


def predict(
    config: RunConfig, *, ranks: int, zero: int, num_classes: int | None, widths: Mapping[str, int] | None
) -> Footprint:
    """`footprint` on the run's shard set; where there is none yet, on the classes and widths given instead."""
    snippets = config.data.snippets
    if num_classes is not None and widths is not None and snippets is not None:
        return footprint(config, widths, num_classes, snippets=snippets, ranks=ranks, zero=zero)
    for place in config.data.places:
        if isinstance(place, Path) and not place.exists():
            raise InputError(
                f"data.shards={place} does not exist: pack it, or give --classes 200 --widths rgb=1024,flow=1024 and a "
                "number in data.snippets instead."
            )
    shards = open_sets(config.data)
    if snippets is None:
        snippets = max(shards.videos[index].snippets for index in shards.indices(*config.data.subsets))
    num_classes, widths = num_classes or len(shards.classes), widths or shards.streams
    return footprint(config, widths, num_classes, snippets=snippets, ranks=ranks, zero=zero)


def parse_widths(text: str | None) -> dict[str, int] | None:
    """`rgb=1024,flow=1024` as a mapping."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(stream and width.isascii() and width.isdigit() and int(width) > 0 for stream, _, width in pairs):
        raise InputError(f"--widths {text!r} must read stream=width,..., e.g. rgb=1024,flow=1024.")
    return {stream: int(width) for stream, _, width in pairs}


def footprint(
    config: RunConfig, widths: Mapping[str, int], num_classes: int, *, snippets: int, ranks: int = 1, zero: int = 0
) -> Footprint:
    """The needs of each of `ranks` ranks; `snippets` is T, `zero` DeepSpeed's stage (0: DDP).

    ZeRO 1 divides the optimizer's state by the ranks, 2 the gradients too, 3 the weights too.
    """
    config.check_streams(widths)
    micro_batches = count_micro_batches(config.batch.global_videos, config.batch.micro_videos, ranks)
    micro_videos = config.batch.micro_videos or -(-config.batch.global_videos // ranks)
    with FakeTensorMode(), patch.dict(CHUNK_ELEMENTS, cpu=CHUNK_ELEMENTS[config.run.device]):
        network = StreamNetworks.build(widths, num_classes, config.model, scores_snippets=config.loss.pseudo_labels > 0)
        batch = Batch(
            videos=(),
            lengths=(snippets,) * (micro_videos - 1) + (max(1, snippets - 1),),  # so that what padding costs is seen
            seeds=tuple(range(micro_videos)),
            features={stream: torch.empty(micro_videos, snippets, width) for stream, width in widths.items()},
            mask_BT=torch.ones(micro_videos, snippets, dtype=torch.bool),
            labels_BC=torch.ones(micro_videos, num_classes),
        )
        # Gradients are there from the start where micro-batches or ranks add up.
        peak_bytes = _peak_bytes(network, batch, config, gradients_stay=micro_batches > 1 or ranks > 1)
    parameters = {stream: _count_parameters(part) for stream, part in network.networks.items()}
    count = sum(sum(layers.values()) for layers in parameters.values())
    weights, gradients, moments = (math.ceil(count / ranks) if zero >= stage else count for stage in (3, 2, 1))
    # Ring collectives send (N - 1)/N of a tensor for a reduce-scatter or an all-gather. Stages 0 and 1 reduce-scatter
    # the gradients once and gather them (0) or the new weights (1); 2 reduces at every micro-batch; 3 also gathers the
    # weights for each forward and backward pass instead of once, and with several micro-batches Eq. 11's sums take a
    # forward pass of their own. Eq. 11's K shares of each stream are all-reduced once.
    passes = 3 * micro_batches if micro_batches > 1 else 2
    rounds = (2, 2, micro_batches + 1, micro_batches + passes)[zero]
    features = micro_batches * micro_videos * snippets * sum(widths.values())
    return Footprint(
        parameters=parameters,
        micro_batches=micro_batches,
        micro_videos=micro_videos,
        snippets=snippets,
        weights_bytes=FLOAT_BYTES * weights,
        gradients_bytes=FLOAT_BYTES * gradients,
        optimizer_bytes=FLOAT_BYTES * 2 * moments,  # Adam has two
        activations_bytes=peak_bytes - FLOAT_BYTES * count,
        features_bytes=FLOAT_BYTES * IN_FLIGHT * features,
        snapshot_bytes=FLOAT_BYTES * 3 * count,
        gathered_bytes=FLOAT_BYTES * 3 * count if zero >= 1 else 0,
        moved_bytes=FLOAT_BYTES * (rounds * count + 2 * config.model.units * len(widths)) * (ranks - 1) // ranks,
    )


def _peak_bytes(network: StreamNetworks, batch: Batch, config: RunConfig, *, gradients_stay: bool) -> int:
    """Most bytes that gradients and activations take together during a step of one micro-batch."""
    parameters = list(network.parameters())
    gradients = [torch.zeros_like(parameter) for parameter in parameters if gradients_stay]
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient
    objective = Objective(config.loss, config.run.steps, config.model.independent_classes)
    step = Step(config.run.steps, 0, len(batch.lengths), (batch,))  # past `loss.pseudo_labels_from`
    held = [*parameters, *gradients, *batch.features.values(), batch.mask_BT, batch.labels_BC]
    with _LiveBytes(held) as live:
        train_step(cast(Engine, _OneProcess(network, config.engine.precision)), step, objective)
    return int(sum(gradient.nbytes for gradient in gradients) + live.peak)


class _LiveBytes(TorchDispatchMode):
    """Bytes of the storages alive that operations have brought about, now and at most; `held` were there before."""

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = tree_map_only(Tensor, self._see, func(*args, **(kwargs or {})))
        if func is torch.ops.aten._softmax_backward_data.default:  # it copies a gradient that comes transposed (Eq. 4)
            self.peak = max(self.peak, self.now + sum(x.nbytes for x in args[:2] if not x.is_contiguous()))
        return found

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:  # views and results in place are nothing new
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return tensor

    def _forget(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self.now -= size


class _OneProcess:
    """As much of an engine as `train_step` needs."""

    ranks = data = Ranks()
    device = torch.device("cpu")

    def __init__(self, network: StreamNetworks, precision: str) -> None:
        self.network, self._precision, self.own_time = network, precision, OwnTime(self.device)

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        assert last
        return nullcontext()

    def forward(self, batch: Batch) -> dict[str, Scores]:
        with autocast(self._precision, self.device):
            return self.network.forward(batch)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        torch.stack(list(losses.values())).sum().backward()


def _count_parameters(network: nn.Module) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        counts[name.removesuffix(".weight").removesuffix(".bias")] += parameter.numel()
    return dict(counts)
