"""What a run will need, before anything is launched: bytes a rank holds and sends, operations, and what bounds a step.

A step goes forward and backward through the real network and engine as PyTorch's fake tensors, which have shapes and no
memory, and what they would take is added up meanwhile. ZeRO's shares and the update are arithmetic. On CUDA this is
untested for want of a GPU; 16 bits are those of a CPU there.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, shape_wrapper

from aumn.config.run_config import RunConfig
from aumn.data.loader import STEPS_AHEAD, count_micro_batches
from aumn.data.shards.union import open_sets
from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.model.losses import Objective
from aumn.model.memory import CHUNK_ELEMENTS
from aumn.records import Batch, InputError, Step, is_bank
from aumn.runtime.engines import Engine
from aumn.training.plan import Collective, Mesh, Rates
from aumn.training.step import train_step

FLOAT_BYTES = 4
STORED_BYTES = 2  # float16 in a shard set, usually
IN_FLIGHT = STEPS_AHEAD + 2  # steps of features in memory: read ahead, being read, and in use
UPDATE_PASSES = 7 + 3  # Adam reads four tensors and writes three; clipping reads gradients twice and writes them


class Held(NamedTuple):
    """Bytes of a part of the network on a rank."""

    weights: int
    gradients: int
    adam: int


@dataclass(frozen=True)
class Footprint:
    """One rank's needs: the first one's, which has the most. Beyond them Python and torch take 0.3 GB.

    The first rank holds `first_rank_bytes` in host memory while it writes a checkpoint and trains on.
    """

    parameters: dict[str, dict[str, int]]  # stream -> layer, as checkpoints name it -> count in the whole network
    ranks: int
    per_node: int
    micro_batches: int
    micro_videos: int
    snippets: int
    bank: Held  # the units (M)
    rest: Held
    activations_bytes: int  # forward and backward of one micro-batch at their peak, beyond the gradients
    features_bytes: int
    snapshot_bytes: int  # the first rank's copy of weights and Adam's state, while a checkpoint is written
    gathered_bytes: int  # the same under ZeRO, gathered on the first rank while the copy is made
    collectives: list[Collective]
    operations: Counter[Operation]  # of a step's forward and backward passes
    read_bytes: int  # features of a step, as they are stored
    steps_an_epoch: int | None  # None: how many videos there are is not known
    videos: int | None
    steps_in_flight: int = IN_FLIGHT

    @property
    def held_bytes(self) -> int:
        """Everything a rank holds at the step's peak."""
        return sum((*self.bank, *self.rest)) + self.activations_bytes + self.features_bytes

    @property
    def first_rank_bytes(self) -> int:
        """Everything the first rank holds meanwhile; no step is under way while the copy is made."""
        beside = max(self.activations_bytes, self.gathered_bytes)
        return self.held_bytes - self.activations_bytes + self.snapshot_bytes + beside

    @property
    def moved_bytes(self) -> int:
        """Sent in a step by a rank, and as much received."""
        return round(sum(one.within + one.between for one in self.collectives))

    @property
    def flops(self) -> int:
        """Multiplications and additions of a step's matrix products; nothing else comes near them."""
        return sum(operation.flops * count for operation, count in self.operations.items())

    def seconds(self, rates: Rates) -> dict[str, float]:
        """What a step's time is made of, by what bounds it; features are read meanwhile.

        An operation takes as long as its products at `flops` or its bytes at `memory`, whichever is longer.
        """
        found = {
            "matrix products": 0.0,
            "device memory": UPDATE_PASSES * (self.bank.weights + self.rest.weights) / rates.memory,
        }
        for (flops, touched), count in self.operations.items():
            by_products, by_memory = flops / rates.flops, touched / rates.memory
            bound = "matrix products" if by_products > by_memory else "device memory"
            found[bound] += count * max(by_products, by_memory)
        for link in ("within", "between"):
            found[f"network {link} nodes"] = 0.0
        for one in self.collectives:
            link = "between" if one.between / rates.network > one.within / rates.local else "within"
            found[f"network {link} nodes"] += one.seconds(rates)
        return found

    def reading_s(self, rates: Rates) -> float:
        """What a node's ranks together take to read a step's features."""
        return min(self.per_node, self.ranks) * self.read_bytes / rates.disk


def predict(
    config: RunConfig,
    *,
    ranks: int,
    zero: int,
    per_node: int = 8,
    num_classes: int | None = None,
    widths: Mapping[str, int] | None = None,
    videos: int | None = None,
) -> Footprint:
    """`footprint` on the run's shard set; where there is none yet, on the classes, widths and videos given instead."""
    snippets, mesh = config.data.snippets, {"ranks": ranks, "zero": zero, "per_node": per_node}
    if num_classes is not None and widths is not None and snippets is not None:
        return footprint(config, widths, num_classes, snippets=snippets, videos=videos, **mesh)
    for place in config.data.places:
        if isinstance(place, Path) and not place.exists():
            raise InputError(
                f"data.shards={place} does not exist: pack it, or give --classes 200 --widths rgb=1024,flow=1024 and a "
                "number in data.snippets instead."
            )
    shards = open_sets(config.data)
    indices = shards.indices(*config.data.subsets)
    if snippets is None:
        snippets = max(shards.videos[index].snippets for index in indices)
    num_classes, widths, videos = num_classes or len(shards.classes), widths or shards.streams, videos or len(indices)
    return footprint(config, widths, num_classes, snippets=snippets, videos=videos, **mesh)


def parse_widths(text: str | None) -> dict[str, int] | None:
    """`rgb=1024,flow=1024` as a mapping."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(stream and width.isascii() and width.isdigit() and int(width) > 0 for stream, _, width in pairs):
        raise InputError(f"--widths {text!r} must read stream=width,..., e.g. rgb=1024,flow=1024.")
    return {stream: int(width) for stream, _, width in pairs}


def footprint(
    config: RunConfig,
    widths: Mapping[str, int],
    num_classes: int,
    *,
    snippets: int,
    ranks: int = 1,
    zero: int = 0,
    per_node: int = 8,
    videos: int | None = None,
) -> Footprint:
    """The needs of each of `ranks` ranks; `snippets` is T, `zero` DeepSpeed's stage (0: DDP).

    ZeRO 1 divides the optimizer's state by the ranks, 2 the gradients too, 3 the weights too.
    """
    config.check_streams(widths)
    micro_batches = count_micro_batches(config.batch.global_videos, config.batch.micro_videos, ranks)
    micro_videos = config.batch.micro_videos or -(-config.batch.global_videos // ranks)
    mesh = Mesh(ranks, per_node)
    bank = Bank.over(mesh.split(config.engine.bank_ranks)[0], config.model.units)
    with FakeTensorMode(), patch.dict(CHUNK_ELEMENTS, cpu=CHUNK_ELEMENTS[config.run.device]):
        labels = config.loss.pseudo_labels > 0
        network = StreamNetworks.build(widths, num_classes, config.model, scores_snippets=labels, bank=bank)
        batch = Batch(
            videos=(),
            lengths=(snippets,) * (micro_videos - 1) + (max(1, snippets - 1),),  # so that what padding costs is seen
            seeds=tuple(range(micro_videos)),
            features={stream: torch.empty(micro_videos, snippets, width) for stream, width in widths.items()},
            mask_BT=torch.ones(micro_videos, snippets, dtype=torch.bool),
            labels_BC=torch.ones(micro_videos, num_classes),
        )
        took = _take_step(config, network, mesh, batch, min(2, micro_batches))
        if micro_batches > 2:
            took = took.with_more(_take_step(config, network, mesh, batch, 3), micro_batches - 2)
    units = sum(parameter.numel() for name, parameter in network.networks.named_parameters() if is_bank(name))
    rest = sum(parameter.numel() for parameter in network.parameters()) - units
    count = units + rest
    # Stages 0 and 1 reduce-scatter the gradients once and gather them (0) or the new weights (1); 2 reduces at every
    # micro-batch; 3 also gathers the weights for each forward and backward pass instead of once, and with several
    # micro-batches Eq. 11's sums take a forward pass of their own. An all-reduce is two such rounds.
    passes = 3 * micro_batches if micro_batches > 1 else 2
    rounds = (2, 2, micro_batches + 1, micro_batches + passes)[zero]
    if ranks > 1:
        took.sent[0][mesh.sums] += (rounds / 2 - 1) * FLOAT_BYTES * count
    pairs = zip(mesh.parts, took.sent, strict=True)
    features = micro_batches * micro_videos * snippets * sum(widths.values())
    return Footprint(
        parameters={stream: _count_parameters(part, config.model.units) for stream, part in network.networks.items()},
        ranks=ranks,
        per_node=per_node,
        micro_batches=micro_batches,
        micro_videos=micro_videos,
        snippets=snippets,
        bank=_held(units, ranks, zero),
        rest=_held(rest, ranks, zero),
        activations_bytes=took.peak_bytes - FLOAT_BYTES * count,
        features_bytes=FLOAT_BYTES * IN_FLIGHT * features,
        snapshot_bytes=FLOAT_BYTES * 3 * count,
        gathered_bytes=FLOAT_BYTES * 3 * count if zero >= 1 else 0,
        collectives=[one for part, sent in pairs for one in part.collectives(sent)],
        operations=took.operations,
        read_bytes=STORED_BYTES * features,
        steps_an_epoch=-(-videos // config.batch.global_videos) if videos else None,
        videos=videos,
    )


def _held(count: int, ranks: int, zero: int) -> Held:
    weights, gradients, moments = (math.ceil(count / ranks) if zero >= stage else count for stage in (3, 2, 1))
    return Held(FLOAT_BYTES * weights, FLOAT_BYTES * gradients, FLOAT_BYTES * 2 * moments)


class Operation(NamedTuple):
    """What one takes: multiplications and additions of its matrix products, and bytes read and written."""

    flops: int
    touched: int


@dataclass(frozen=True)
class _Took:
    """A step's bytes of gradients and activations at their peak, its operations, and what each part of a mesh sent."""

    peak_bytes: int
    operations: Counter[Operation]
    sent: list[dict[str, float]]

    def with_more(self, longer: _Took, times: int) -> _Took:
        """What a micro-batch more adds, so many times."""
        for operation in longer.operations:
            self.operations[operation] += times * (longer.operations[operation] - self.operations[operation])
        for own, other in zip(self.sent, longer.sent, strict=True):
            own |= {what: own[what] + times * (size - own[what]) for what, size in other.items()}
        return self


def _take_step(config: RunConfig, network: StreamNetworks, mesh: Mesh, batch: Batch, micro_batches: int) -> _Took:
    """Of so many micro-batches."""
    for part in mesh.parts:
        part.sent.clear()
    with patch.object(StreamNetworks, "to", lambda network, _: network):  # fake tensors are nowhere, and cannot move
        engine = Engine(network, mesh, torch.device("cpu"), config.optimizer, config.engine)
    gradients = [gradients for _, gradients in engine._gradients]
    if micro_batches > 1 and not gradients:  # they are there from the start where micro-batches add up
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    objective = Objective(config.loss, config.run.steps, config.model.independent_classes)
    videos = len(batch.lengths) * micro_batches * mesh.size
    step = Step(config.run.steps, 0, videos, (batch,) * micro_batches)  # past `loss.pseudo_labels_from`
    held = [*network.parameters(), *gradients, *batch.features.values(), batch.mask_BT, batch.labels_BC]
    with _Watch(held) as watch:
        train_step(engine, step, objective)
    network.zero_grad()
    peak_bytes = sum(gradient.nbytes for gradient in gradients) + watch.peak
    return _Took(peak_bytes, watch.operations, [dict(part.sent) for part in mesh.parts])


class _Watch(TorchDispatchMode):
    """What operations take, and bytes of the storages alive that they brought about; `held` were there before."""

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.operations: Counter[Operation] = Counter()
        self._alive = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        found = tree_map_only(Tensor, self._see, made)
        if not func.is_view:
            tensors = {
                leaf.untyped_storage()._cdata: leaf
                for leaf in tree_leaves((args, kwargs, made))
                if isinstance(leaf, Tensor)
            }
            count = _FLOPS.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=made) if count else 0
            self.operations[Operation(flops, sum(tensor.nbytes for tensor in tensors.values()))] += 1
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


def _count_parameters(network: nn.Module, units: int) -> dict[str, int]:
    """Of the whole network, where this rank has some of the units only."""
    counts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        rows = units if is_bank(f".{name}") else len(parameter)
        counts[name.removesuffix(".weight").removesuffix(".bias")] += parameter.numel() // len(parameter) * rows
    return dict(counts)


def _linear_flops(left_shape: Any, right_shape: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(map(int, left_shape)) * int(right_shape[0])


_FLOPS = {**flop_registry, torch.ops.mkldnn._linear_pointwise: shape_wrapper(_linear_flops)}
