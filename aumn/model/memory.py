"""The memory bank (Eq. 2, 3, 5-7): reading it in chunks of units, with classifiers that are never built.

The value encoder is linear after its ReLU, so a snippet's classifier is a short linear combination of a fixed basis:

    W_t = sum_k S_tk values_k                                   Eq. 6 as written: a basis of K values
        = sum_r (S h)_tr W2_r  +  (sum_k S_tk) b2               METHOD.md, form 2: a basis of R + 1 matrices

`Memory.read` returns the coefficients over whichever basis is smaller (J = K or R + 1) and nothing downstream
knows which it was. Shapes: B videos, T snippets, F embedding width, A key width, K action units, R bottleneck,
C classes, J basis size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PAPER_UNITS = 7
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}  # similarities held at once: a core's cache; a fraction of a GPU


class Reading(NamedTuple):
    """What comparing every snippet with every action unit leaves behind."""

    coefficients_BTJ: Tensor  # W_t = sum_j coefficients_tj basis_j (Eq. 6)
    basis_JFC: Tensor
    attention_BT: Tensor  # max over K of S (Eq. 7); meaningless on padding
    unit_sums_BK: Tensor  # sum over a video's own snippets of S (Eq. 11)


class Memory(nn.Module):
    """K learned action units with a key encoder (one linear) and a value encoder (two linears, ReLU, bottleneck R).

    Units start as N(0, 1/F) rows, so that Eq. 10 starts small. Values start 7/K as large where K > 7: Eq. 6 sums over
    units whose similarity starts near 1/2, so Eq. 8's logits would else grow with K, and at K = 512 already they wreck
    training (docs/large_memory.md). The paper does not say.
    """

    def __init__(self, units: int, embedding_width: int, key_width: int, bottleneck: int, num_classes: int) -> None:
        super().__init__()
        self.units_KF = nn.Parameter(torch.randn(units, embedding_width) / math.sqrt(embedding_width))
        self.encode_key = nn.Linear(embedding_width, key_width)
        self.encode_hidden = nn.Linear(embedding_width, bottleneck)
        values_RFC = torch.empty(bottleneck + 1, embedding_width, num_classes)  # W2's R matrices, then b2
        self.values_RFC = nn.Parameter(values_RFC.uniform_(-1, 1) / math.sqrt(bottleneck) * min(1, PAPER_UNITS / units))

    def read(self, queries_BTA: Tensor, mask_BT: Tensor) -> Reading:
        """Compare every snippet with every action unit (Eq. 5).

        With K <= R + 1 the similarities themselves are the coefficients and the values are built (form 1). Above, K is
        walked in chunks that the backward pass recomputes: no B x T x K and no K x F x C tensor ever exists.
        """
        keys_KA = self.encode_key(self.units_KF) / math.sqrt(queries_BTA.shape[-1])
        hidden_KR = torch.relu(self.encode_hidden(self.units_KF))
        hidden_KR = nn.functional.pad(hidden_KR, (0, 1), value=1.0)  # the last column reads b2
        if len(keys_KA) <= len(self.values_RFC):
            similarity_BTK = torch.sigmoid(queries_BTA @ keys_KA.T)
            sums_BK = torch.einsum("btk,bt->bk", similarity_BTK, mask_BT.to(similarity_BTK.dtype))
            basis_KFC = (hidden_KR @ self.values_RFC.flatten(1)).unflatten(1, self.values_RFC.shape[1:])
            return Reading(similarity_BTK, basis_KFC, similarity_BTK.max(-1).values, sums_BK)
        read = _ReadInChunks.apply(queries_BTA, keys_KA, hidden_KR, mask_BT)  # type: ignore[no-untyped-call]
        coefficients_BTR, attention_BT, sums_BK = read
        return Reading(coefficients_BTR, self.values_RFC, attention_BT, sums_BK)


class _ReadInChunks(torch.autograd.Function):
    """sigmoid(Q keysᵀ) h, its maximum over units and its sum over snippets, holding one chunk of units at a time.

    The sigmoid couples no two units, so a chunk is complete in itself; the backward pass computes it again. Of equal
    maxima the first unit takes the gradient, as torch.max has it.
    """

    @staticmethod
    def forward(ctx: Any, queries_BTA: Tensor, keys_KA: Tensor, hidden_KR: Tensor, mask_BT: Tensor) -> Any:
        shape_BT, num_units = queries_BTA.shape[:2], len(keys_KA)
        coefficients_BTR = queries_BTA.new_zeros(*shape_BT, hidden_KR.shape[1])
        best_BT = queries_BTA.new_full(shape_BT, -torch.inf)
        best_unit_BT = torch.zeros(shape_BT, dtype=torch.long, device=queries_BTA.device)
        sums_BK = queries_BTA.new_empty(shape_BT[0], num_units)
        weights_BT = mask_BT.to(queries_BTA.dtype)
        for units in _chunks(queries_BTA, num_units):
            similarity_BTk = queries_BTA @ keys_KA[units].T
            logit_BT, unit_BT = similarity_BTk.max(-1)
            better_BT = logit_BT > best_BT
            best_BT = torch.where(better_BT, logit_BT, best_BT)
            best_unit_BT = torch.where(better_BT, unit_BT + units.start, best_unit_BT)
            similarity_BTk.sigmoid_()
            coefficients_BTR += similarity_BTk @ hidden_KR[units]
            sums_BK[:, units] = torch.bmm(weights_BT[:, None], similarity_BTk)[:, 0]
        ctx.save_for_backward(queries_BTA, keys_KA, hidden_KR, weights_BT, best_unit_BT)
        return coefficients_BTR, best_BT.sigmoid_(), sums_BK

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        queries_BTA, keys_KA, hidden_KR, weights_BT, best_unit_BT = ctx.saved_tensors
        grad_coefficients_BTR, grad_attention_BT, grad_sums_BK = grads
        grad_queries_BTA = torch.zeros_like(queries_BTA)
        grad_keys_KA, grad_hidden_KR = torch.empty_like(keys_KA), torch.empty_like(hidden_KR)
        for units in _chunks(queries_BTA, len(keys_KA)):
            similarity_BTk = (queries_BTA @ keys_KA[units].T).sigmoid_()
            grad_hidden_KR[units] = similarity_BTk.flatten(0, 1).T @ grad_coefficients_BTR.flatten(0, 1)
            grad_BTk = grad_coefficients_BTR @ hidden_KR[units].T
            grad_BTk.baddbmm_(weights_BT[:, :, None], grad_sums_BK[:, None, units])
            unit_BT = best_unit_BT - units.start
            here_BT = (unit_BT >= 0) & (unit_BT < similarity_BTk.shape[-1])
            unit_BT = unit_BT.clamp(0, similarity_BTk.shape[-1] - 1)
            grad_BTk.scatter_add_(-1, unit_BT[..., None], (grad_attention_BT * here_BT)[..., None])
            grad_BTk = torch.ops.aten.sigmoid_backward(grad_BTk, similarity_BTk)
            grad_queries_BTA += grad_BTk @ keys_KA[units]
            grad_keys_KA[units] = grad_BTk.flatten(0, 1).T @ queries_BTA.flatten(0, 1)
        return grad_queries_BTA, grad_keys_KA, grad_hidden_KR, None


def _chunks(queries_BTA: Tensor, num_units: int) -> list[slice]:
    rows = max(1, queries_BTA.shape[0] * queries_BTA.shape[1])
    size = max(1, CHUNK_ELEMENTS.get(queries_BTA.device.type, 1 << 18) // rows)
    return [slice(start, min(start + size, num_units)) for start in range(0, num_units, size)]
