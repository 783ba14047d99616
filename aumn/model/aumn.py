"""AUMN, one network a stream (Eq. 1-8, 15), and the streams' side by side.

Shapes: B videos, T snippets, D input width, F embedding width, A = F/m key width, K action units, R bottleneck,
C classes, P = C + 1 prototypes, J size of the basis that classifiers are combined from (see `memory`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aumn.model.bank import Bank
from aumn.model.dropout import CHANNELS, MIXING, dropout_factors, video_factors
from aumn.model.memory import Memory, QuickLinear, Reading
from aumn.model.products import convolve, product
from aumn.model.settings import ModelSettings
from aumn.records import Batch, Scores, VideoScores

SLICE_ELEMENTS = 1 << 22  # of snippets' products with the basis, held at once for Eq. 15
TEMPERATURE = 0.1  # of snippets' likeness to prototypes
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
    """One stream's network; `forward` serves training, `localize` gives Eq. 15.

    With `scores_snippets`, a training batch's scores hold Eq. 15 too, which pseudo-labels are made of.
    """

    def __init__(
        self,
        input_width: int,
        num_classes: int,
        settings: ModelSettings,
        *,
        scores_snippets: bool = False,
        bank: Bank | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.scores_snippets = settings, scores_snippets
        width = settings.embedding_width
        self.embed = TemporalConvolution(input_width, width, settings.kernel)
        self.encode_query = QuickLinear(width, settings.key_width, settings.attention_rate)
        self.memory = Memory(settings, num_classes, bank)
        bias_C = torch.full((num_classes,), STARTING_CLASS_BIAS)
        self.class_bias_C = nn.Parameter(bias_C) if settings.independent_classes else None
        deeper = (TemporalConvolution(width, width, settings.kernel) for _ in range(settings.embedding_layers - 1))
        self.embed_deeper = nn.ModuleList(deeper)
        drawn_PF = torch.randn(num_classes + 1, width) / math.sqrt(width) if settings.prototypes else None
        self.prototypes_PF = None if drawn_PF is None else nn.Parameter(drawn_PF)  # a class's each, and background's

    def forward(self, features_BTD: Tensor, mask_BT: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> Scores:
        """Eq. 1-8 for training: Eq. 8's logits, Eq. 7, and Eq. 11's sums."""
        embedded_BTF, queries_BTA = self._embed(features_BTD, mask_BT, lengths, seeds)
        with torch.autocast(features_BTD.device.type, enabled=False):  # softmaxes and sums over time need float32
            reading = self.memory.read(queries_BTA, mask_BT)
            attention_BT = reading.attention_BT * mask_BT
            mixing_BTT = self._mixing(queries_BTA, mask_BT, lengths, seeds)
            scores_snippets = self.scores_snippets or self.prototypes_PF is not None
            if self.settings.pooling_share == 1:
                logits_BC = self._pool_unbuilt(embedded_BTF, mixing_BTT, mask_BT, reading)
                with torch.no_grad():
                    cas_BTC = _class_activation(embedded_BTF, mixing_BTT, reading) if scores_snippets else None
            else:
                cas_BTC = _class_activation(embedded_BTF, mixing_BTT, reading)
                logits_BC = self._pool(attention_BT, cas_BTC, mask_BT)
            if self.class_bias_C is not None:
                logits_BC = logits_BC + self.class_bias_C
            cas_BTC = self._probabilities(cas_BTC.detach()) if scores_snippets and cas_BTC is not None else None
            likeness_BTP = None if self.prototypes_PF is None else self._likeness(embedded_BTF, self.prototypes_PF)
            units_KF, scale = self.memory.units_KF, self.memory.unit_scale
            return Scores(logits_BC, attention_BT, reading.unit_sums_BK, units_KF, scale, cas_BTC, likeness_BTP)

    def unit_sums(self, features_BTD: Tensor, mask_BT: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Only the sums of Eq. 11 (B x K): what Eq. 12 needs of the other micro-batches before the first backward."""
        _, queries_BTA = self._embed(features_BTD, mask_BT, lengths, seeds)
        with torch.autocast(features_BTD.device.type, enabled=False):
            return self.memory.read(queries_BTA, mask_BT).unit_sums_BK

    @torch.no_grad()
    def localize(self, features_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One whole video: Eq. 8 (C), Eq. 7 (T) and Eq. 15's probabilities (T x C)."""
        lengths, seeds = [len(features_TD)], [0]  # nothing is random here
        mask_BT = torch.ones(1, len(features_TD), dtype=torch.bool, device=features_TD.device)
        embedded_BTF, queries_BTA = self._embed(features_TD[None], mask_BT, lengths, seeds)
        reading = self.memory.read(queries_BTA, mask_BT)
        mixing_BTT = self._mixing(queries_BTA, mask_BT, lengths, seeds)
        cas_BTC = _class_activation(embedded_BTF, mixing_BTT, reading)
        logits_BC = self._pool(reading.attention_BT, cas_BTC, mask_BT)
        return self._probabilities(logits_BC)[0], reading.attention_BT[0], self._probabilities(cas_BTC)[0]

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
        settings = self.settings
        if self.training and settings.channel_dropout > 0:
            width = features_BTD.shape[-1]
            features_BTD = features_BTD * video_factors(features_BTD, width, settings.channel_dropout, seeds, CHANNELS)
        embedded_BTF = torch.relu(self.embed(features_BTD))
        for layer in self.embed_deeper:
            embedded_BTF = torch.relu(layer(embedded_BTF * mask_BT[..., None]))
        if self.training and settings.dropout > 0:
            embedded_BTF = embedded_BTF * dropout_factors(embedded_BTF, settings.dropout, lengths, seeds)
        queries_BTA = self.encode_query(embedded_BTF)
        return embedded_BTF.to(features_BTD.dtype), queries_BTA.to(features_BTD.dtype)

    def _mixing(
        self, queries_BTA: Tensor, mask_BT: Tensor, lengths: Sequence[int], seeds: Sequence[int]
    ) -> Tensor | None:
        """Eq. 4's softmax(Q Qᵀ / sqrt(A)), B x T x T, None where X = E; a video's own snippets alone are attended to.

        As they are, background's queries attend to actions about twice as much as to each other and carry their class
        evidence off; without the mean and the lengths that they share, snippets attend to their like
        (docs/experiments.md).
        """
        settings = self.settings
        if not settings.self_attention:
            return None
        if settings.centred_queries:  # less their mean over the video's own snippets, each sqrt(A) long
            mask_BT1 = mask_BT[..., None].to(queries_BTA.dtype)
            mean_B1A = (queries_BTA * mask_BT1).sum(1, keepdim=True) / mask_BT1.sum(1, keepdim=True)
            queries_BTA = functional.normalize(queries_BTA - mean_B1A, dim=-1) * math.sqrt(queries_BTA.shape[-1])
        scores_BTT = product(queries_BTA / math.sqrt(queries_BTA.shape[-1]), queries_BTA.mT)
        if any(length < mask_BT.shape[1] for length in lengths):
            scores_BTT = scores_BTT.masked_fill(~mask_BT[:, None], -torch.inf)
        mixing_BTT = scores_BTT.softmax(-1)
        if self.training and settings.mixing_dropout > 0:
            mixing_BTT = mixing_BTT * video_factors(mixing_BTT, 1, settings.mixing_dropout, seeds, MIXING)
        return mixing_BTT

    def _pool(self, attention_BT: Tensor, cas_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """Eq. 8 before its softmax, B x C: the mean of a_t X_t W_t.

        Over a share of the snippets: for each class those of the video's own with the most evidence, rounded up.
        """
        settings = self.settings
        evidence_BTC = attention_BT[..., None] * cas_BTC if settings.weighted_pooling else cas_BTC * mask_BT[..., None]
        if settings.pooling_share == 1:
            return evidence_BTC.sum(1) / (attention_BT if settings.normalised_pooling else mask_BT).sum(1, keepdim=True)
        count_B1 = (mask_BT.sum(1, keepdim=True) * settings.pooling_share).ceil()
        highest_BTC, snippet_BTC = evidence_BTC.masked_fill(~mask_BT[..., None], -torch.inf).sort(1, descending=True)
        counted_BT1 = (torch.arange(mask_BT.shape[1], device=mask_BT.device) < count_B1)[..., None]
        sum_BC: Tensor = torch.where(counted_BT1, highest_BTC, 0).sum(1)
        if not settings.normalised_pooling:
            return sum_BC / count_B1
        weight_BTC = attention_BT[..., None].expand_as(cas_BTC).gather(1, snippet_BTC)
        return sum_BC / (weight_BTC * counted_BT1).sum(1)

    def _pool_unbuilt(
        self, embedded_BTF: Tensor, mixing_BTT: Tensor | None, mask_BT: Tensor, reading: Reading
    ) -> Tensor:
        """`_pool` over all snippets without X (B x T x F) or Eq. 15 (B x T x C): what training does.

        With u_tj = a_t coefficients_tj / T, Eq. 8's logits are sum_j (sum_t u_tj X_t) basis_j and X = (P + I) E, so
        that (P + I)ᵀ u (T x J) comes first.
        """
        attention_BT = reading.attention_BT if self.settings.weighted_pooling else torch.ones_like(reading.attention_BT)
        attention_BT = attention_BT * mask_BT
        whole_B1 = (attention_BT if self.settings.normalised_pooling else mask_BT).sum(1, keepdim=True)
        pooling_BTJ = reading.coefficients_BTJ * (attention_BT / whole_B1)[..., None]
        if mixing_BTT is not None:
            pooling_BTJ = pooling_BTJ + mixing_BTT.mT @ pooling_BTJ
        pooled_BJF = pooling_BTJ.mT @ embedded_BTF
        return product(pooled_BJF.flatten(1), reading.basis_JFC.flatten(0, 1))

    @staticmethod
    def _likeness(embedded_BTF: Tensor, prototypes_PF: Tensor) -> Tensor:
        """The cosine of each snippet's embedding and each prototype, over TEMPERATURE: logits, B x T x P."""
        directions_BTF, directions_PF = (functional.normalize(rows, dim=-1) for rows in (embedded_BTF, prototypes_PF))
        cosine_NP = product(directions_BTF.flatten(0, 1), directions_PF.T)
        likeness_BTP: Tensor = cosine_NP.unflatten(0, embedded_BTF.shape[:2]) / TEMPERATURE
        return likeness_BTP

    def _probabilities(self, evidence: Tensor) -> Tensor:
        """Eq. 8's and 15's softmax over classes, the last dimension, or each class's own sigmoid."""
        if self.class_bias_C is None:
            return evidence.softmax(-1)
        return (evidence + self.class_bias_C).sigmoid()


def _class_activation(embedded_BTF: Tensor, mixing_BTT: Tensor | None, reading: Reading) -> Tensor:
    """Eq. 15 before its softmax, B x T x C: X_t W_t as sum_j coefficients_tj (X_t basis_j), meaningless on padding.

    In slices of time that hold n x J x C values.
    """
    mixed_BTF = embedded_BTF if mixing_BTT is None else embedded_BTF + product(mixing_BTT, embedded_BTF)
    basis_FX = reading.basis_JFC.transpose(0, 1).flatten(1)
    size, num_classes = reading.basis_JFC.shape[0], reading.basis_JFC.shape[2]
    slice_snippets = max(1, SLICE_ELEMENTS // basis_FX.shape[1])
    slices = zip(
        mixed_BTF.flatten(0, 1).split(slice_snippets),
        reading.coefficients_BTJ.flatten(0, 1).split(slice_snippets),
        strict=True,
    )
    parts = [
        torch.einsum("tjc,tj->tc", product(mixed, basis_FX).view(-1, size, num_classes), coefficients)
        for mixed, coefficients in slices
    ]
    return torch.cat(parts).view(*mixed_BTF.shape[:2], num_classes)


class StreamNetworks(nn.Module):
    """A network a stream, side by side; nothing is shared until inference. Or one of joint streams, or both."""

    def __init__(self, networks: Mapping[str, AUMN], streams: Iterable[str], bank: Bank | None = None) -> None:
        super().__init__()
        self.networks, self.streams, self.bank = nn.ModuleDict(networks), tuple(streams), bank

    @classmethod
    def build(
        cls,
        widths: Mapping[str, int],
        num_classes: int,
        settings: ModelSettings,
        *,
        scores_snippets: bool = False,
        bank: Bank | None = None,
    ) -> StreamNetworks:
        """Networks of one shape for streams of the given input widths; see AUMN and `ModelSettings.networks`."""
        networks = {
            name: AUMN(width, num_classes, settings, scores_snippets=scores_snippets, bank=bank)
            for name, width in settings.networks(widths).items()
        }
        return cls(networks, widths, bank)

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
        scores = {name: network.localize(self._features(batch, name)[0]) for name, network in self.networks.items()}  # type: ignore[operator]
        return {name: VideoScores(*(part.double().cpu().numpy() for part in parts)) for name, parts in scores.items()}

    @torch.no_grad()
    def serve(self) -> None:
        """Once a rank has localized its videos: read for its bank's other ranks until all have.

        Between two calls of `localize`, too, a rank that does not serve keeps the others waiting.
        """
        while self.bank:
            others_go_on = [network.memory.serve() for network in self.networks.values()]  # type: ignore[union-attr, operator]
            if not all(others_go_on):
                break

    def similarity(self, batch: Batch, units: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """Every stream's `AUMN.similarity` of the batch's one video, on the host."""
        found = {name: self.networks[name].similarity(self._features(batch, name)[0], units[name]) for name in units}  # type: ignore[operator]
        return {name: similarity_Tk.double().cpu().numpy() for name, similarity_Tk in found.items()}

    def inputs(self, batch: Batch) -> list[tuple[str, AUMN, tuple[Tensor, Tensor, Sequence[int], list[int]]]]:
        """Streams with their inputs; a video's seed differs between streams, so that their dropout does."""
        return [
            (
                name,
                network,
                (self._features(batch, name), batch.mask_BT, batch.lengths, [s ^ index for s in batch.seeds]),
            )  # type: ignore[misc]
            for index, (name, network) in enumerate(self.networks.items())
        ]

    def _features(self, batch: Batch, network: str) -> Tensor:
        """What a network sees, B x T x D: its stream's features, or those of all streams side by side."""
        if network in self.streams:
            return batch.features[network]
        return torch.cat([batch.features[stream] for stream in self.streams], dim=-1)
