"""What a run will need, before anything is launched: parameters, bytes a rank holds, bytes a rank moves a step.

Arithmetic in shape letters, a few formulas that `docs/large_memory.md` explains and a test holds against real runs.
B videos of a micro-batch, T snippets, D input width, F embedding width, A = F/m key width, K action units,
R bottleneck, C classes, J = min(K, R + 1) basis size (see `model.memory`), N ranks, M micro-batches of a rank's step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from aumn.config.run_config import RunConfig
from aumn.data.loader import STEPS_AHEAD, count_micro_batches
from aumn.data.shards.shard_set import ShardSet
from aumn.model.aumn import SLICE_ELEMENTS
from aumn.model.memory import CHUNK_ELEMENTS
from aumn.records import InputError

FLOAT_BYTES = 4
IN_FLIGHT = STEPS_AHEAD + 2  # steps of features in memory: read ahead, being read, and in use


@dataclass(frozen=True)
class Footprint:
    """One rank's needs. What it holds at its peak is `held_bytes`, beyond the 0.3 GB that Python and torch take.

    The first rank holds `first_rank_bytes` in host memory while it writes a checkpoint and trains on.
    """

    parameters: dict[str, dict[str, int]]  # stream -> part -> count
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
    if not config.data.shards.exists():
        raise InputError(
            f"data.shards={config.data.shards} does not exist: pack it, or give --classes 200 --widths "
            "rgb=1024,flow=1024 and a number in data.snippets instead."
        )
    shards = ShardSet.open(config.data.shards)
    if snippets is None:
        snippets = max(shards.videos[index].snippets for index in shards.indices(config.data.subset))
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


class _Sizes(NamedTuple):
    """The letters of one stream's network in one forward pass."""

    B: int
    T: int
    D: int
    F: int
    A: int
    K: int
    R: int
    C: int
    taps: int
    attends: bool
    centres: bool
    chunk: int
    biased: bool
    layers: int
    pools_highest: bool
    drops: bool
    drops_mixing: bool
    teaches: bool

    @classmethod
    def of(cls, config: RunConfig, **letters: int) -> _Sizes:
        model = config.model
        return cls(
            F=model.embedding_width,
            A=model.embedding_width // model.key_ratio,
            K=model.units,
            R=model.bottleneck,
            taps=model.kernel,
            attends=model.self_attention,
            centres=model.centred_queries,
            biased=model.independent_classes,
            layers=model.embedding_layers,
            pools_highest=model.pooling_share < 1,
            drops=model.dropout > 0,
            drops_mixing=model.mixing_dropout > 0,
            teaches=config.loss.pseudo_labels > 0,
            **letters,
        )

    @property
    def J(self) -> int:
        return min(self.K, self.R + 1)


class _Phase(NamedTuple):
    """A part of a stream's backward pass, in numbers of values."""

    saved: int  # by the forward pass; released when the phase ends
    working: int  # at most, on top of what is held when the phase begins
    left: int = 0  # gradients of activations handed to a later phase
    taken: int = 0  # the same, used up by this phase
    gradient: int = 0  # of parameters, complete when the phase ends


def footprint(
    config: RunConfig, widths: Mapping[str, int], num_classes: int, *, snippets: int, ranks: int = 1, zero: int = 0
) -> Footprint:
    """The needs of each of `ranks` ranks in float32; `snippets` is T, `zero` DeepSpeed's stage (0: DDP).

    ZeRO 1 divides the optimizer's state by the ranks, 2 the gradients too, 3 the weights too.
    """
    micro_batches = count_micro_batches(config.batch.global_videos, config.batch.micro_videos, ranks)
    micro_videos = config.batch.micro_videos or -(-config.batch.global_videos // ranks)
    chunk = CHUNK_ELEMENTS[config.run.device]
    streams = {
        stream: _Sizes.of(config, B=micro_videos, T=snippets, D=width, C=num_classes, chunk=chunk)
        for stream, width in widths.items()
    }
    parameters = {stream: _parameters(sizes) for stream, sizes in streams.items()}
    count = sum(sum(parts.values()) for parts in parameters.values())
    peak = _peak(list(streams.values()), gradients_stay=micro_batches > 1 or ranks > 1, count=count)
    step_videos = micro_batches * micro_videos
    return Footprint(
        parameters=parameters,
        micro_batches=micro_batches,
        micro_videos=micro_videos,
        snippets=snippets,
        weights_bytes=FLOAT_BYTES * _share(count, ranks, zero >= 3),
        gradients_bytes=FLOAT_BYTES * _share(count, ranks, zero >= 2),
        optimizer_bytes=FLOAT_BYTES * 2 * _share(count, ranks, zero >= 1),  # Adam's two moments
        activations_bytes=FLOAT_BYTES * (peak - count),
        features_bytes=FLOAT_BYTES * IN_FLIGHT * step_videos * snippets * sum(widths.values()),
        snapshot_bytes=FLOAT_BYTES * 3 * count,
        gathered_bytes=FLOAT_BYTES * 3 * count if zero >= 1 else 0,
        moved_bytes=FLOAT_BYTES * _moved(count, config.model.units * len(widths), ranks, zero, micro_batches),
    )


def _parameters(s: _Sizes) -> dict[str, int]:
    return {
        "embedding": s.taps * (s.D + (s.layers - 1) * s.F) * s.F + s.layers * s.F,
        "queries": s.F * s.A + s.A,
        "keys": s.F * s.A + s.A,
        "memory": s.K * s.F,
        "values": (s.F + 1) * s.R + (s.R + 1) * s.F * s.C + s.biased * s.C,
    }


def _peak(streams: list[_Sizes], *, gradients_stay: bool, count: int) -> int:
    """Most values held at once by a micro-batch's forward and backward, gradients included.

    Both streams' forward passes come first. The backward pass takes every stream's Eq. 10, then stream after stream,
    the last first; a phase releases what the forward pass saved for it. Gradients are there from the start where
    micro-batches add up or DDP's buckets hold them, else they appear phase by phase.
    """
    phases = [_diversity(s) for s in streams]
    phases += [phase for s in reversed(streams) for phase in (_pooling(s), _mixing(s), _reading(s), _embedding(s))]
    held = sum(phase.saved for phase in phases) + (count if gradients_stay else 0)
    held += sum(s.B * s.T * s.C for s in streams if s.teaches)  # until the step's end
    peak = held + max(_scoring_snippets(s) for s in streams)
    for phase in phases:
        peak = max(peak, held + phase.working)
        held += phase.left - phase.taken - phase.saved + (0 if gradients_stay else phase.gradient)
    return max(peak, count)


def _diversity(s: _Sizes) -> _Phase:
    """Eq. 10: M enters its Gram matrix twice, so two gradients are added; the sum waits for the reading's."""
    return _Phase(saved=2 * min(s.K, s.F) ** 2, working=2 * s.K * s.F, left=s.K * s.F)


def _scoring_snippets(s: _Sizes) -> int:
    """Eq. 15 for pseudo-labels, at the end of the forward pass: X, a slice's products, and the basis once more."""
    if not s.teaches:
        return 0
    mixed = 2 * s.B * s.T * s.F if s.attends else 0
    return mixed + min(s.B * s.T * s.J * s.C, SLICE_ELEMENTS) + s.J * s.F * s.C + s.B * s.T * s.C


def _pooling(s: _Sizes) -> _Phase:
    """Eq. 8 and the losses: pooled features B x J x F; coefficients, their pooling and its mixture, each B x T x J."""
    if s.pools_highest:
        return _pooling_highest(s)
    pooled, pooling, basis = s.B * s.J * s.F, s.B * s.T * s.J, s.J * s.F * s.C
    return _Phase(
        saved=pooled + (4 if s.attends else 2) * pooling + (basis if s.J == s.K else 0),
        working=pooled + basis + pooling + s.B * s.T * s.F,
        left=s.B * s.T * s.F + basis if s.J == s.K else s.B * s.T * s.F,
        gradient=0 if s.J == s.K else basis,
    )


def _pooling_highest(s: _Sizes) -> _Phase:
    """Eq. 8 over the highest snippets: X (B x T x F), its products with the basis, the evidence B x T x C, sorted."""
    mixed, products, evidence, basis = s.B * s.T * s.F, s.B * s.T * s.J * s.C, s.B * s.T * s.C, s.J * s.F * s.C
    return _Phase(
        saved=(mixed if s.attends else 0) + products + 4 * evidence + basis,
        working=products + basis,
        left=mixed + (basis if s.J == s.K else 0),
        gradient=0 if s.J == s.K else basis,
    )


def _mixing(s: _Sizes) -> _Phase:
    """Eq. 4: B x T x T after the softmax, and after its dropout; backward, three more. Centred queries come twice."""
    square = s.B * s.T * s.T if s.attends else 0
    queries = (3 if s.attends and s.centres else 1) * s.B * s.T * s.A
    return _Phase(saved=(2 if s.drops_mixing else 1) * square + queries, working=3 * square)


def _reading(s: _Sizes) -> _Phase:
    """Eq. 2, 3, 5, 11: keys K x A, hidden K x R and shares B x K; two chunks, which the backward pass reuses."""
    bank, values = s.K * (s.A + s.R + s.R + 1), (s.R + 1) * s.F * s.C
    if s.J == s.K:
        basis = s.J * s.F * s.C
        return _Phase(saved=bank, working=values, taken=s.K * s.F + basis, gradient=values + s.K * s.F)
    chunks = 2 * min(s.B * s.T * s.K, max(s.chunk, s.B * s.T)) + s.K * (s.A + s.R + 1)
    return _Phase(
        saved=bank + 2 * s.B * s.K,
        working=max(chunks + s.B * s.T * s.A, s.K * s.F - s.K * s.R),
        taken=s.K * s.F,
        gradient=s.K * s.F,
    )


def _embedding(s: _Sizes) -> _Phase:
    """Eq. 1: the padded features and relu's output, with dropout its factors and product too.

    Backward, a tap's gradient and two of all taps.
    """
    padded, weight = s.B * (s.T + s.taps - 1), s.taps * s.D * s.F
    embedded = s.B * s.T * s.F
    deeper = (s.layers - 1) * (padded * s.F + embedded)
    return _Phase(
        saved=padded * s.D + (3 if s.drops else 1) * embedded + s.B * s.T * s.A + deeper,
        working=max(2 * embedded, padded * s.F - 2 * embedded + min(s.taps, 2) * weight + s.D * s.F),
        taken=embedded,
        gradient=weight + (s.layers - 1) * s.taps * s.F * s.F,
    )


def _share(count: int, ranks: int, divided: bool) -> int:
    return -(-count // ranks) if divided else count


def _moved(count: int, shares: int, ranks: int, zero: int, micro_batches: int) -> int:
    """Values a rank sends in a step, in ring collectives: (N - 1)/N of a tensor for a reduce-scatter or an all-gather.

    Stages 0 and 1 reduce-scatter the gradients once and gather them (0) or the new weights (1); 2 reduces at every
    micro-batch; 3 also gathers the weights for each forward and backward pass instead of once. Eq. 11's K shares of
    each stream are all-reduced once.
    """
    passes = (
        3 * micro_batches if micro_batches > 1 else 2
    )  # with several, Eq. 11's sums take a forward pass of their own
    rounds = (2, 2, micro_batches + 1, micro_batches + passes)[zero]
    return (rounds * count + 2 * shares) * (ranks - 1) // ranks
