"""The memory bank (Eq. 2, 3, 5-7): reading it in chunks of units, with classifiers that are never built.

The value encoder is linear after its ReLU, so a snippet's classifier is a short linear combination of a fixed basis:

    W_t = sum_k S_tk values_k                                   Eq. 6 as written: a basis of K values
        = sum_r (S h)_tr W2_r  +  (sum_k S_tk) b2               METHOD.md, form 2: a basis of R + 1 matrices

`Memory.read` returns the coefficients over whichever basis is smaller (J = K or R + 1) and nothing downstream
knows which it was. Multiply-adds of a forward pass over B videos of T snippets, the embedding's 3 B T D F aside (a
matrix has F C values):

                          form 1           form 2
    similarities          B T K A          B T K A
    values                K (R + 1) F C    -
    coefficients          -                B T K (R + 1)
    pooling, with Eq. 4   B T (T + F) J    B T (T + F) J      X is never built
    Eq. 8 in training     B J F C          B J F C
    Eq. 15, localizing    T J F C          T J F C            a video at a time

All that follows the reading grows with J. Against it stands that form 1 builds its values, once a pass: 4 % of a step
at K = 64, B = 32, T = C = 200, F = 512, D = 1024, less with a smaller K. The choice looks at the model alone, never at
the batch, so a result's last bits do not depend on how the work was cut.

Shapes: B videos, T snippets, F embedding width, A key width, K action units, R bottleneck,
C classes, J basis size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from aumn.model.bank import Bank
from aumn.model.products import Workspace, product
from aumn.model.settings import PAPER_UNITS, ModelSettings

DRAWN_ELEMENTS = 1 << 22  # a multiple of 16, of which PyTorch's generator makes normal numbers at a time
CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}  # similarities held at once: about a cache; a fraction of a GPU


class Reading(NamedTuple):
    """What comparing every snippet with every action unit leaves behind."""

    coefficients_BTJ: Tensor  # W_t = sum_j coefficients_tj basis_j (Eq. 6)
    basis_JFC: Tensor
    attention_BT: Tensor  # max over K of S (Eq. 7); meaningless on padding
    unit_sums_BK: Tensor  # sum over a video's own snippets of S (Eq. 11); of a bank over ranks, see `Memory`


class QuickLinear(nn.Linear):
    """A linear layer that Adam moves `rate` times as fast: it holds 1 / rate of its weights."""

    def __init__(self, in_features: int, out_features: int, rate: float) -> None:
        super().__init__(in_features, out_features)
        self.rate = rate
        with torch.no_grad():
            self.weight.div_(rate)
            self.bias.div_(rate)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Linear's own name)
        """As nn.Linear, with the weights times `rate`."""
        weight, bias = (self.weight, self.bias) if self.rate == 1 else (self.weight * self.rate, self.bias * self.rate)
        out: Tensor = product(input.flatten(0, -2), weight.T).unflatten(0, input.shape[:-1]) + bias
        return out


class Memory(nn.Module):
    """K learned action units with a key encoder (one linear) and a value encoder (two linears, ReLU, bottleneck R).

    Units start as N(0, 1/F) rows, so that Eq. 10 starts small, and values 7/K as large as at K = 7, since Eq. 6 sums
    over units whose similarity starts near 1/2. The paper does not say. With `unit_rates` Adam moves them as at K = 7,
    too (docs/large_memory.md, "One configuration for any K"): parameters have the size that they have there, and count
    for less in what follows, h and the 1 beside it 7/K in Eq. 6, units sqrt(7/K) in Eq. 10; which is as if units, their
    encoders and values had initial sizes and rates of their own.

    With a bank over ranks, `units_KF` are the rows of this one, and a reading's `unit_sums_BK` are those of the whole
    group's videos with this rank's units; all else that is read is the rank's own videos', with all units.
    """

    def __init__(self, settings: ModelSettings, num_classes: int, bank: Bank | None = None) -> None:
        super().__init__()
        units, width, bottleneck = settings.units, settings.embedding_width, settings.bottleneck
        self.bank = bank
        drawn_KF = torch.randn(units, width) if bank is None else _draw_rows(units, width, bank.rows)
        self.units_KF = nn.Parameter(drawn_KF / math.sqrt(width))
        self.encode_key = QuickLinear(width, settings.key_width, settings.attention_rate)
        self.encode_hidden = nn.Linear(width, bottleneck)
        values_RFC = torch.empty(bottleneck + 1, width, num_classes)  # W2's R matrices, then b2
        share, rates = PAPER_UNITS / units, settings.unit_rates
        start = 1.0 if rates else share
        self.values_RFC = nn.Parameter(values_RFC.uniform_(-1, 1) / math.sqrt(bottleneck) * start)
        self.value_scale, self.unit_scale = (share, min(1.0, math.sqrt(share))) if rates else (1.0, 1.0)

    def read(self, queries_BTA: Tensor, mask_BT: Tensor) -> Reading:
        """Compare every snippet with every action unit (Eq. 5).

        In form 1 the similarities themselves are the coefficients. In form 2, K is walked in chunks that the backward
        pass recomputes: no B x T x K and no K x F x C tensor ever exists. The smaller basis is taken.
        """
        keys_KA = self.encode_key(self.units_KF) / math.sqrt(queries_BTA.shape[-1])
        hidden_KR = torch.relu(self.encode_hidden(self.units_KF))
        hidden_KR = nn.functional.pad(hidden_KR, (0, 1), value=1.0)  # the last column reads b2
        if self.value_scale != 1:
            hidden_KR = hidden_KR * self.value_scale
        if self.bank is not None:
            return self._read_over_ranks(self.bank, queries_BTA, mask_BT, keys_KA, hidden_KR)
        if len(keys_KA) <= len(self.values_RFC):
            similarity_BTK = torch.sigmoid(product(queries_BTA.flatten(0, 1), keys_KA.T).unflatten(0, mask_BT.shape))
            sums_BK = torch.einsum("btk,bt->bk", similarity_BTK, mask_BT.to(similarity_BTK.dtype))
            basis_KFC = product(hidden_KR, self.values_RFC.flatten(1)).unflatten(1, self.values_RFC.shape[1:])
            return Reading(similarity_BTK, basis_KFC, similarity_BTK.max(-1).values, sums_BK)
        read = _ReadInChunks.apply(queries_BTA, keys_KA, hidden_KR, mask_BT)  # type: ignore[no-untyped-call]
        coefficients_BTR, attention_BT, sums_BK, _ = read
        return Reading(coefficients_BTR, self.values_RFC, attention_BT, sums_BK)

    def serve(self) -> bool:
        """`read` without a video of one's own, where a bank is over ranks; whether any other rank has one."""
        queries_BTA = self.units_KF.new_empty(0, 0, self.encode_key.out_features)
        return len(self.read(queries_BTA, queries_BTA.new_empty(0, 0, dtype=torch.bool)).unit_sums_BK) > 0

    def _read_over_ranks(
        self, bank: Bank, queries_BTA: Tensor, mask_BT: Tensor, keys_kA: Tensor, hidden_kR: Tensor
    ) -> Reading:
        """Form 2, whatever K is: the group's G queries come here, and what its N ranks read of ours comes back."""
        (videos, snippets), ranks = mask_BT.shape, bank.group.size
        longest, *counts = bank.group.ask_and_tell(lambda: snippets, videos)()
        told_BTX = torch.cat([queries_BTA, mask_BT[..., None].to(queries_BTA.dtype)], -1)
        told_GTX = bank.share(nn.functional.pad(told_BTX, (0, 0, 0, longest - snippets)), counts)
        queries_GTA, weights_GT = told_GTX[..., :-1].contiguous(), told_GTX[..., -1]
        read = _ReadInChunks.apply(queries_GTA, keys_kA, hidden_kR, weights_GT)  # type: ignore[no-untyped-call]
        coefficients_GTR, attention_GT, sums_Gk, logit_GT = read
        read_GTX = torch.cat([coefficients_GTR, attention_GT[..., None], logit_GT[..., None]], -1)
        parts_NBTX = bank.exchange(read_GTX, counts, [videos] * ranks).unflatten(0, (ranks, videos))[:, :, :snippets]
        winner_1BT = parts_NBTX[..., -1].argmax(0, keepdim=True)  # of equals the first rank, which has the first unit
        attention_BT = parts_NBTX[..., -2].gather(0, winner_1BT)[0]
        return Reading(parts_NBTX[..., :-2].sum(0), self.values_RFC, attention_BT, sums_Gk)

    def similarity(self, queries_TA: Tensor, units: Sequence[int]) -> Tensor:
        """Eq. 5 with some of the action units, T x len(units); of a bank over ranks, this one's."""
        keys_kA = self.encode_key(self.units_KF[list(units)])
        return torch.sigmoid(queries_TA @ keys_kA.T / math.sqrt(queries_TA.shape[-1]))


class _ReadInChunks(torch.autograd.Function):
    """sigmoid(Q keysᵀ) h, its maximum over units and its sum over snippets, holding one chunk of units at a time.

    Last comes the maximum before its sigmoid, without gradient.

    The sigmoid couples no two units, so a chunk is complete in itself; the backward pass computes it again. Of equal
    maxima the first unit takes the gradient, as torch.max has it. N = B x T rows, k units of a chunk.
    """

    @staticmethod
    def forward(ctx: Any, queries_BTA: Tensor, keys_KA: Tensor, hidden_KR: Tensor, mask_BT: Tensor) -> Any:
        shape_BT, queries_NA = queries_BTA.shape[:2], queries_BTA.flatten(0, 1)
        weights_BT = mask_BT.to(queries_BTA.dtype)
        coefficients_NR = queries_NA.new_zeros(len(queries_NA), hidden_KR.shape[1])
        best_N = queries_NA.new_full((len(queries_NA),), -torch.inf)
        best_unit_N = torch.zeros_like(best_N, dtype=torch.long)
        sums_BK = queries_NA.new_empty(shape_BT[0], len(keys_KA))
        similarities = Workspace()
        for units in _chunks(queries_NA, len(keys_KA)):
            similarity_Nk = similarities.product(queries_NA, keys_KA[units].T)
            logit_N, unit_N = similarity_Nk.max(-1)
            better_N = logit_N > best_N
            best_N = torch.where(better_N, logit_N, best_N)
            best_unit_N = torch.where(better_N, unit_N + units.start, best_unit_N)
            similarity_Nk.sigmoid_()
            coefficients_NR = product(similarity_Nk, hidden_KR[units], plus=coefficients_NR)
            sums_BK[:, units] = torch.bmm(weights_BT[:, None], similarity_Nk.unflatten(0, shape_BT))[:, 0]
        ctx.save_for_backward(queries_NA, keys_KA, hidden_KR, weights_BT, best_unit_N)
        logit_BT = best_N.unflatten(0, shape_BT)
        ctx.mark_non_differentiable(logit_BT)
        return coefficients_NR.unflatten(0, shape_BT), logit_BT.sigmoid(), sums_BK, logit_BT

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        queries_NA, keys_KA, hidden_KR, weights_BT, best_unit_N = ctx.saved_tensors
        grad_coefficients_BTR, grad_attention_BT, grad_sums_BK, _ = grads
        grad_coefficients_NR, grad_attention_N = grad_coefficients_BTR.flatten(0, 1), grad_attention_BT.flatten()
        grad_queries_NA = torch.zeros_like(queries_NA)
        grad_keys_KA, grad_hidden_KR = torch.empty_like(keys_KA), torch.empty_like(hidden_KR)
        similarities, gradients = Workspace(), Workspace()
        for units in _chunks(queries_NA, len(keys_KA)):
            similarity_Nk = similarities.product(queries_NA, keys_KA[units].T).sigmoid_()
            grad_hidden_KR[units] = product(similarity_Nk.T, grad_coefficients_NR)
            grad_Nk = gradients.product(grad_coefficients_NR, hidden_KR[units].T)
            grad_Nk.unflatten(0, weights_BT.shape).addcmul_(weights_BT[:, :, None], grad_sums_BK[:, None, units])
            unit_N = best_unit_N - units.start
            here_N = (unit_N >= 0) & (unit_N < grad_Nk.shape[1])
            unit_N = unit_N.clamp(0, grad_Nk.shape[1] - 1)
            grad_Nk.scatter_add_(1, unit_N[:, None], (grad_attention_N * here_N)[:, None])
            torch.ops.aten.sigmoid_backward.grad_input(grad_Nk, similarity_Nk, grad_input=grad_Nk)
            grad_queries_NA = product(grad_Nk, keys_KA[units], plus=grad_queries_NA)
            grad_keys_KA[units] = product(grad_Nk.T, queries_NA)
        return grad_queries_NA.unflatten(0, weights_BT.shape), grad_keys_KA, grad_hidden_KR, None


def _draw_rows(count: int, width: int, rows: slice) -> Tensor:
    """`torch.randn(count, width)[rows]`, and the generator as that leaves it, without ever holding all."""
    kept = torch.empty(rows.stop - rows.start, width)
    starts = range(0, 0 if kept.is_meta else max(1, count * width // DRAWN_ELEMENTS) * DRAWN_ELEMENTS, DRAWN_ELEMENTS)
    for start in starts:  # the last draw takes the rest too: of less than 16 numbers the generator would make others
        stop = count * width if start == starts[-1] else start + DRAWN_ELEMENTS
        drawn, first = torch.randn(stop - start), rows.start * width
        begin, end = max(start, first), min(stop, rows.stop * width)
        if begin < end:
            kept.view(-1)[begin - first : end - first] = drawn[begin - start : end - start]
    return kept


def _chunks(queries_NA: Tensor, num_units: int) -> Iterator[slice]:
    """The units chunk by chunk, multiples of 64 where they can be."""
    size = max(1, CHUNK_ELEMENTS.get(queries_NA.device.type, CHUNK_ELEMENTS["cpu"]) // max(1, len(queries_NA)))
    size = size - size % 64 if size > 64 else size
    starts = range(0, num_units, size)
    for start in starts[:2] if isinstance(queries_NA, FakeTensor) else starts:  # --dry-run: others need no more memory
        yield slice(start, min(start + size, num_units))
