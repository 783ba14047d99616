"""Matrix products, by the library that does them at the processor's speed.

PyTorch hands float32 products to MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN, which
PyTorch has for its convolutions, uses it, at twice the speed (docs/experiments_log.md). Everywhere else, in other
precisions and on CUDA, a product is PyTorch's own. Which library it is depends on the machine, never on how large
matrices are, so results do not depend on how work was cut, but for last bits, as with any library's products.

Shapes: N rows, X what is summed over, M columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, plus: Tensor | None = None) -> Tensor:
    """`plus + left @ right`, with gradient, of matrices N x X and X x M; `plus` is N x M, or M for every row.

    Of two batches of matrices without `plus`; several go to PyTorch, as oneDNN has no such product.
    """
    if left.dim() == 3:
        return product(left[0], right[0])[None] if len(left) == 1 else left @ right
    if _is_plain(left):
        return left @ right if plus is None else torch.addmm(plus, left, right)
    found: Tensor = _ByOneDNN.apply(left, right)  # type: ignore[no-untyped-call]
    return found if plus is None else found.add_(plus)


def convolve(rows_NX: Tensor, weight_PXM: Tensor, bias_M: Tensor) -> Tensor:
    """`bias + sum over taps p of rows[p : p + count] @ weight[p]` with count = N - P + 1, with gradient."""
    count, out_NM = max(0, len(rows_NX) - len(weight_PXM) + 1), bias_M
    for tap, weight_XM in enumerate(weight_PXM):
        out_NM = product(rows_NX[tap : tap + count], weight_XM, plus=out_NM)
    if out_NM.requires_grad and not _is_plain(rows_NX):  # each tap would lay the gradient out anew: 6 % of a step
        out_NM.register_hook(lambda grad_NM: grad_NM.T.contiguous().T)
    return out_NM


class Workspace:
    """Products without gradient, each in the memory of the one before; oneDNN, though, brings its own.

    On a CPU fresh memory costs up to 7 % of a step: the system gives it out page by page.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def product(self, left_NX: Tensor, right_XM: Tensor) -> Tensor:
        """`left @ right`, until the next call; the first call's is the largest."""
        if not _is_plain(left_NX):
            return product(left_NX, right_XM)
        shape = len(left_NX), right_XM.shape[1]
        if self._memory is None:
            self._memory = left_NX.new_empty(shape)
        return torch.mm(left_NX, right_XM, out=self._memory.flatten()[: shape[0] * shape[1]].view(shape))


class _ByOneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left_NX: Tensor, right_XM: Tensor) -> Tensor:
        ctx.save_for_backward(left_NX, right_XM)
        return _multiply(left_NX, right_XM)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        left_NX, right_XM = ctx.saved_tensors
        (grad_NM,) = grads
        grad_left_NX = _multiply(grad_NM, right_XM.T) if ctx.needs_input_grad[0] else None
        grad_right_XM = _multiply(left_NX.T, grad_NM) if ctx.needs_input_grad[1] else None
        return grad_left_NX, grad_right_XM


def _multiply(left_NX: Tensor, right_XM: Tensor) -> Tensor:
    """By oneDNN, which wants left rows in one piece: of two products that give the same, the one that copies less."""
    if not left_NX.numel() or not right_XM.numel():  # oneDNN knows no empty ones
        return torch.mm(left_NX, right_XM)
    if not left_NX.is_contiguous() and (right_XM.T.is_contiguous() or right_XM.shape[1] < len(left_NX)):
        return _multiply(right_XM.T.contiguous(), left_NX.T).T
    if not (right_XM.is_contiguous() or right_XM.T.is_contiguous()):
        right_XM = right_XM.contiguous()  # takes a thousand times as long else
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left_NX.contiguous(), right_XM.T, None, "none", [], "")
    return found


def _is_plain(matrix: Tensor) -> bool:
    """Whether PyTorch's own product serves."""
    is_float32_on_cpu = matrix.device.type == "cpu" and matrix.dtype == torch.float32
    return not is_float32_on_cpu or torch.is_autocast_enabled("cpu") or not _mkl_is_slow()


@cache
def _mkl_is_slow() -> bool:
    """Whether this processor has AVX-512 and is none of Intel's."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_f")) and "intel" not in str(found.get("cpu_name", "")).lower()
