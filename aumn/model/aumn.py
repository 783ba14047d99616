"""AUMN, one network a stream (Eq. 1-8, 15), and the two streams side by side.

Shapes: B videos, T snippets, D input width, F embedding width, A = F/m key width, K action units, R bottleneck,
C classes, J size of the basis that classifiers are combined from (see `memory`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aumn.model.dropout import CHANNELS, MIXING, dropout_factors, video_factors
from aumn.model.memory import Memory, QuickLinear, Reading
from aumn.model.products import convolve, product
from aumn.records import Batch, Scores, VideoScores

SLICE_ELEMENTS = 1 << 22  # of snippets' products with the basis, held at once for Eq. 15
STARTING_CLASS_BIAS = -1.0  # Eq. 8's logits start near 0, and of many classes a video holds a few


class TemporalConvolution(nn.Module):
    """A zero-padded 1-d convolution over time, as one matrix product a tap (Eq. 1).

    Shifted views of one padded buffer take the place of an unfolded copy; initialised as `nn.Conv1d` is.
    """

    def __init__(self, input_width: int, output_width: int, kernel: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(kernel * input_width)
        self.weight = nn.Parameter(torch.empty(kernel, input_width, output_width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(output_width).uniform_(-bound, bound))

    def forward(self, features_BTD: Tensor) -> Tensor:
        """B x T x D to B x T x F; features must be zero on padding."""
        taps = len(self.weight)
        padded_BPD = functional.pad(features_BTD, (0, 0, (taps - 1) // 2, taps // 2))
        rows_ND = padded_BPD.flatten(0, 1)  # video after video, each with its own zeros around it
        out_NF = convolve(rows_ND, self.weight, self.bias)
        out_NF = functional.pad(out_NF, (0, 0, 0, len(rows_ND) - len(out_NF)))
        out_BPF = out_NF.view(*padded_BPD.shape[:2], out_NF.shape[1])
        return out_BPF[:, : features_BTD.shape[1]]  # without the rows that span two videos


class AUMN(nn.Module):
    """One stream's network. `forward` serves training and never builds X or W; `localize` gives Eq. 15.

    Args:
        input_width: D.
        num_classes: C.
        embedding_width: F (paper: 512).
        kernel: taps of the embedding's convolution (the paper does not say).
        key_ratio: m, with A = F / m (the paper does not say; 4).
        units: K (paper: 7).
        bottleneck: R of the value encoder (the paper does not say; 64).
        self_attention: Eq. 4; without it X = E.
        dropout: share of embedding values dropped while training (the paper: none).
        channel_dropout: share of input channels dropped while training, for a whole video at once (the paper: none).
            Snippets of one clip are near copies, over which dropout of single values averages out.
        mixing_dropout: share of videos without Eq. 4's sum, X = E, while training (the paper: none).
        centred_queries: compare Eq. 4's queries without their mean over the video and at one length (the paper: as
            they are); see `_mixing`.
        attention_rate: how many times as fast as the rest Adam moves queries and keys (the paper: 1).
        independent_classes: every class on its own, with a bias: sigmoids in place of Eq. 8's and 15's softmax (the
            paper: softmaxes); `losses.classification` then differs too.
        embedding_layers: convolutions of the embedding, one behind the other, each with its ReLU (the paper: one).
        pooling_share: Eq. 8's mean is, for each class, over this share of the video's snippets, those with the highest
            a_t X_t W_t (the paper: 1, all of them).
        normalised_pooling: Eq. 8 divides by the sum of a over the snippets it counts (the paper: by their number), so
            that the attention's shape counts and not its scale, for which W could make up.
        scores_snippets: whether a training batch's scores hold Eq. 15 too, which pseudo-labels are made of.
    """

    def __init__(
        self,
        input_width: int,
        num_classes: int,
        *,
        embedding_width: int = 512,
        kernel: int = 3,
        key_ratio: int = 4,
        units: int = 7,
        bottleneck: int = 64,
        self_attention: bool = True,
        dropout: float = 0.0,
        channel_dropout: float = 0.0,
        mixing_dropout: float = 0.0,
        centred_queries: bool = False,
        attention_rate: float = 1.0,
        independent_classes: bool = False,
        embedding_layers: int = 1,
        pooling_share: float = 1.0,
        normalised_pooling: bool = False,
        scores_snippets: bool = False,
    ) -> None:
        super().__init__()
        key_width = embedding_width // key_ratio
        self.embed = TemporalConvolution(input_width, embedding_width, kernel)
        self.encode_query = QuickLinear(embedding_width, key_width, attention_rate)
        self.memory = Memory(units, embedding_width, key_width, bottleneck, num_classes, attention_rate=attention_rate)
        self.self_attention = self_attention
        self.dropout = dropout
        self.channel_dropout = channel_dropout
        self.mixing_dropout = mixing_dropout
        self.centred_queries = centred_queries
        self.pooling_share = pooling_share
        self.normalised_pooling = normalised_pooling
        self.scores_snippets = scores_snippets
        bias_C = torch.full((num_classes,), STARTING_CLASS_BIAS)
        self.class_bias_C = nn.Parameter(bias_C) if independent_classes else None
        deeper = (TemporalConvolution(embedding_width, embedding_width, kernel) for _ in range(embedding_layers - 1))
        self.embed_deeper = nn.ModuleList(deeper)

    def forward(self, features_BTD: Tensor, mask_BT: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> Scores:
        """Eq. 1-8 for training: Eq. 8's logits, Eq. 7, and Eq. 11's sums.

        With u_tj = a_t coefficients_tj / T, Eq. 8's logits are sum_j (sum_t u_tj X_t) basis_j and X = (P + I) E, so
        (P + I)ᵀ u (T x T x J) comes first and X (T x T x F) is never built.
        """
        embedded_BTF, queries_BTA = self._embed(features_BTD, mask_BT, lengths, seeds)
        with torch.autocast(features_BTD.device.type, enabled=False):  # softmaxes and sums over time need float32
            return self._score(embedded_BTF, queries_BTA, mask_BT, lengths, seeds)

    def _score(
        self,
        embedded_BTF: Tensor,
        queries_BTA: Tensor,
        mask_BT: Tensor,
        lengths: Sequence[int],
        seeds: Sequence[int],
    ) -> Scores:
        reading = self.memory.read(queries_BTA, mask_BT)
        mixing_BTT = self._mixing(queries_BTA, mask_BT, lengths) if self.self_attention else None
        if mixing_BTT is not None and self.training and self.mixing_dropout > 0:
            mixing_BTT = mixing_BTT * video_factors(mixing_BTT, 1, self.mixing_dropout, seeds, MIXING)
        pool = self._pool_highest if self.pooling_share < 1 else self._pool_all
        logits_BC = pool(embedded_BTF, mixing_BTT, mask_BT, reading)
        if self.class_bias_C is not None:
            logits_BC = logits_BC + self.class_bias_C
        cas_BTC = self._score_snippets(embedded_BTF, mixing_BTT, reading) if self.scores_snippets else None
        return Scores(logits_BC, reading.attention_BT * mask_BT, reading.unit_sums_BK, self.memory.units_KF, cas_BTC)

    @torch.no_grad()
    def _score_snippets(self, embedded_BTF: Tensor, mixing_BTT: Tensor | None, reading: Reading) -> Tensor:
        """Eq. 15 of a training batch, B x T x C; meaningless on padding."""
        if mixing_BTT is not None:
            embedded_BTF = embedded_BTF + mixing_BTT @ embedded_BTF
        cas_NC = self._probabilities(_class_activation(embedded_BTF.flatten(0, 1), reading))
        return cas_NC.view(*embedded_BTF.shape[:2], cas_NC.shape[1])

    def _pool_all(self, embedded_BTF: Tensor, mixing_BTT: Tensor | None, mask_BT: Tensor, reading: Reading) -> Tensor:
        attention_BT = reading.attention_BT * mask_BT
        whole_B1 = (attention_BT if self.normalised_pooling else mask_BT).sum(1, keepdim=True).to(attention_BT.dtype)
        pooling_BTJ = reading.coefficients_BTJ * (attention_BT / whole_B1)[..., None]
        if mixing_BTT is not None:
            pooling_BTJ = pooling_BTJ + mixing_BTT.mT @ pooling_BTJ
        pooled_BJF = pooling_BTJ.mT @ embedded_BTF
        return product(pooled_BJF.flatten(1), reading.basis_JFC.flatten(0, 1))

    def _pool_highest(
        self, embedded_BTF: Tensor, mixing_BTT: Tensor | None, mask_BT: Tensor, reading: Reading
    ) -> Tensor:
        """Eq. 8 over each class's highest snippets alone; X and its products with the basis, B x T x J x C, exist."""
        if mixing_BTT is not None:
            embedded_BTF = embedded_BTF + mixing_BTT @ embedded_BTF
        cas_BTC = _class_activation(embedded_BTF.flatten(0, 1), reading).unflatten(0, mask_BT.shape)
        return self._mean_of_highest(reading.attention_BT, cas_BTC, mask_BT)

    def unit_sums(self, features_BTD: Tensor, mask_BT: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Only the sums of Eq. 11 (B x K): what Eq. 12 needs of the other micro-batches before the first backward."""
        _, queries_BTA = self._embed(features_BTD, mask_BT, lengths, seeds)
        with torch.autocast(features_BTD.device.type, enabled=False):
            return self.memory.read(queries_BTA, mask_BT).unit_sums_BK

    def _mean_of_highest(self, attention_BT: Tensor, cas_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """Eq. 8 over, for each class, the share of a video's own snippets with the most evidence, rounded up. B x C."""
        if self.pooling_share == 1:
            attention_BT = attention_BT * mask_BT
            whole_B1 = (attention_BT if self.normalised_pooling else mask_BT).sum(1, keepdim=True)
            return (attention_BT[..., None] * cas_BTC).sum(1) / whole_B1
        count_B1 = (mask_BT.sum(1, keepdim=True) * self.pooling_share).ceil()
        evidence_BTC = (attention_BT[..., None] * cas_BTC).masked_fill(~mask_BT[..., None], -torch.inf)
        highest_BTC, snippet_BTC = evidence_BTC.sort(1, descending=True)
        counted_BT1 = (torch.arange(mask_BT.shape[1], device=mask_BT.device) < count_B1)[..., None]
        sum_BC = torch.where(counted_BT1, highest_BTC, 0).sum(1)
        if not self.normalised_pooling:
            return sum_BC / count_B1
        weight_BTC = attention_BT[..., None].expand_as(cas_BTC).gather(1, snippet_BTC)
        return sum_BC / (weight_BTC * counted_BT1).sum(1)

    @torch.no_grad()
    def localize(self, features_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One whole video: Eq. 8 (C), Eq. 7 (T) and Eq. 15's probabilities (T x C)."""
        length = len(features_TD)
        mask_BT = torch.ones(1, length, dtype=torch.bool, device=features_TD.device)
        embedded_BTF, queries_BTA = self._embed(features_TD[None], mask_BT, [length], [0])
        reading = self.memory.read(queries_BTA, mask_BT)
        if self.self_attention:
            embedded_BTF = embedded_BTF + product(self._mixing(queries_BTA, mask_BT, [length]), embedded_BTF)
        cas_TC = _class_activation(embedded_BTF[0], reading)
        attention_T = reading.attention_BT[0]
        logits_BC = self._mean_of_highest(attention_T[None], cas_TC[None], mask_BT)
        return self._probabilities(logits_BC)[0], attention_T, self._probabilities(cas_TC)

    def _probabilities(self, evidence_NC: Tensor) -> Tensor:
        """Eq. 8's and 15's softmax over classes, or each class's own sigmoid."""
        if self.class_bias_C is None:
            return evidence_NC.softmax(1)
        return (evidence_NC + self.class_bias_C).sigmoid()

    @torch.no_grad()
    def similarity(self, features_TD: Tensor, units: Sequence[int]) -> Tensor:
        """One whole video: Eq. 5 with some of the action units, T x len(units), to be looked at."""
        mask_BT = torch.ones(1, len(features_TD), dtype=torch.bool, device=features_TD.device)
        _, queries_BTA = self._embed(features_TD[None], mask_BT, [len(features_TD)], [0])
        return self.memory.similarity(queries_BTA[0], units)

    def _embed(
        self, features_BTD: Tensor, mask_BT: Tensor, lengths: Sequence[int], seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Eq. 1 and the queries: most of the work, and all of it that `torch.autocast` may do in 16 bits."""
        if self.training and self.channel_dropout > 0:
            width = features_BTD.shape[-1]
            features_BTD = features_BTD * video_factors(features_BTD, width, self.channel_dropout, seeds, CHANNELS)
        embedded_BTF = torch.relu(self.embed(features_BTD))
        for layer in self.embed_deeper:
            embedded_BTF = torch.relu(layer(embedded_BTF * mask_BT[..., None]))
        if self.training and self.dropout > 0:
            embedded_BTF = embedded_BTF * dropout_factors(embedded_BTF, self.dropout, lengths, seeds)
        queries_BTA = self.encode_query(embedded_BTF)
        return embedded_BTF.to(features_BTD.dtype), queries_BTA.to(features_BTD.dtype)

    def _mixing(self, queries_BTA: Tensor, mask_BT: Tensor, lengths: Sequence[int]) -> Tensor:
        """Eq. 4's softmax(Q Qᵀ / sqrt(A)), B x T x T; a video's own snippets alone are attended to.

        As they are, background's queries attend to actions about twice as much as to each other and carry their class
        evidence off; without the mean and the lengths that they share, snippets attend to their like
        (docs/experiments.md).
        """
        if self.centred_queries:
            queries_BTA = _centred(queries_BTA, mask_BT)
        scores_BTT = product(queries_BTA / math.sqrt(queries_BTA.shape[-1]), queries_BTA.mT)
        if any(length < mask_BT.shape[1] for length in lengths):
            scores_BTT = scores_BTT.masked_fill(~mask_BT[:, None], -torch.inf)
        return scores_BTT.softmax(-1)


def _centred(queries_BTA: Tensor, mask_BT: Tensor) -> Tensor:
    """Queries less their mean over the video's own snippets, each sqrt(A) long."""
    mask_BT1 = mask_BT[..., None].to(queries_BTA.dtype)
    mean_B1A = (queries_BTA * mask_BT1).sum(1, keepdim=True) / mask_BT1.sum(1, keepdim=True)
    return functional.normalize(queries_BTA - mean_B1A, dim=-1) * math.sqrt(queries_BTA.shape[-1])


def _class_activation(mixed_NF: Tensor, reading: Reading) -> Tensor:
    """Eq. 15, N x C: X_t W_t as sum_j coefficients_tj (X_t basis_j), in slices of time that hold n x J x C values."""
    basis_FX = reading.basis_JFC.transpose(0, 1).flatten(1)
    size, num_classes = reading.basis_JFC.shape[0], reading.basis_JFC.shape[2]
    slice_snippets = max(1, SLICE_ELEMENTS // basis_FX.shape[1])
    parts = [
        torch.einsum("tjc,tj->tc", product(mixed, basis_FX).view(-1, size, num_classes), coefficients)
        for mixed, coefficients in zip(
            mixed_NF.split(slice_snippets), reading.coefficients_BTJ.flatten(0, 1).split(slice_snippets), strict=True
        )
    ]
    return torch.cat(parts)


class TwoStream(nn.Module):
    """A network a stream, side by side; nothing is shared until inference."""

    def __init__(self, networks: Mapping[str, AUMN]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    @classmethod
    def build(cls, widths: Mapping[str, int], num_classes: int, settings: Mapping[str, Any]) -> TwoStream:
        """Networks of one shape for streams of the given input widths; `settings` are AUMN's keyword arguments."""
        return cls({stream: AUMN(width, num_classes, **settings) for stream, width in widths.items()})

    def forward(self, batch: Batch) -> dict[str, Scores]:
        """Every stream's scores of a training batch."""
        return {name: network(*inputs) for name, network, inputs in self.inputs(batch)}

    @torch.no_grad()
    def unit_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Every stream's `AUMN.unit_sums`, without gradient."""
        return {name: network.unit_sums(*inputs) for name, network, inputs in self.inputs(batch)}

    def localize(self, batch: Batch) -> dict[str, VideoScores]:
        """Every stream's scores of the batch's one video, on the host."""
        assert len(batch.videos) == 1
        scores = {name: network.localize(batch.features[name][0]) for name, network in self.networks.items()}  # type: ignore[operator]
        return {name: VideoScores(*(part.double().cpu().numpy() for part in parts)) for name, parts in scores.items()}

    def similarity(self, batch: Batch, units: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """Every stream's `AUMN.similarity` of the batch's one video, on the host."""
        found = {name: self.networks[name].similarity(batch.features[name][0], units[name]) for name in units}  # type: ignore[operator]
        return {name: similarity_Tk.double().cpu().numpy() for name, similarity_Tk in found.items()}

    def inputs(self, batch: Batch) -> list[tuple[str, AUMN, tuple[Tensor, Tensor, Sequence[int], list[int]]]]:
        """Streams with their inputs; a video's seed differs between streams, so that their dropout does."""
        return [
            (name, network, (batch.features[name], batch.mask_BT, batch.lengths, [s ^ index for s in batch.seeds]))  # type: ignore[misc]
            for index, (name, network) in enumerate(self.networks.items())
        ]
