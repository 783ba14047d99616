"""Matrix products, by the library that does them at the processor's speed.

PyTorch hands float32 products to MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN, which
PyTorch has for its convolutions, uses it, at twice the speed (docs/experiments.md). Everywhere else, in other
precisions and on CUDA, these functions are PyTorch's own. Which library it is depends on the machine, never on how
large matrices are, so results do not depend on how work was cut, but for last bits, as with any library's products.

Shapes: N rows, X what is summed over, M columns, P taps.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def product(left_NX: Tensor, right_XM: Tensor) -> Tensor:
    """`left @ right` of two matrices, with gradient."""
    if _is_plain(left_NX):
        return left_NX @ right_XM
    found: Tensor = _Product.apply(left_NX, right_XM)  # type: ignore[no-untyped-call]
    return found


def batch_product(left_BNX: Tensor, right_BXM: Tensor) -> Tensor:
    """`left @ right` of two batches of matrices, with gradient; a batch of one, as in localization, is a `product`."""
    if len(left_BNX) == 1:
        return product(left_BNX[0], right_BXM[0])[None]
    return left_BNX @ right_BXM


def multiply(left_NX: Tensor, right_XM: Tensor, out: Tensor | None = None) -> Tensor:
    """`left @ right`, without gradient: for functions that have a backward pass of their own.

    `out` is a view of `room`, for the result; nothing else may be given.
    """
    if _is_plain(left_NX):
        return torch.mm(left_NX, right_XM, out=out)
    return _multiply(left_NX, right_XM)


def room(like_NX: Tensor, columns: int) -> Tensor | None:
    """Memory for products of N rows to come, which takes the time of a product to get; None: oneDNN brings its own."""
    return like_NX.new_empty(len(like_NX), columns) if _is_plain(like_NX) else None


def add_product(total_NM: Tensor, left_NX: Tensor, right_XM: Tensor) -> None:
    """Add `left @ right` in place, without gradient."""
    if _is_plain(left_NX):
        total_NM.addmm_(left_NX, right_XM)
    else:
        total_NM += _multiply(left_NX, right_XM)


def convolve(rows_NX: Tensor, weight_PXM: Tensor, bias_M: Tensor) -> Tensor:
    """`bias + sum over taps p of rows[p : p + count] @ weight[p]` with count = N - P + 1, with gradient."""
    taps = len(weight_PXM)
    count = max(0, len(rows_NX) - taps + 1)
    if not _is_plain(rows_NX):
        found: Tensor = _Convolution.apply(rows_NX, weight_PXM, bias_M)  # type: ignore[no-untyped-call]
        return found
    out_NM = torch.addmm(bias_M, rows_NX[:count], weight_PXM[0])
    for tap in range(1, taps):
        out_NM = torch.addmm(out_NM, rows_NX[tap : tap + count], weight_PXM[tap])
    return out_NM


class _Product(torch.autograd.Function):
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


class _Convolution(torch.autograd.Function):
    """`convolve`; the output's gradient is laid out for the taps' products once."""

    @staticmethod
    def forward(ctx: Any, rows_NX: Tensor, weight_PXM: Tensor, bias_M: Tensor) -> Tensor:
        ctx.save_for_backward(rows_NX, weight_PXM)
        count = max(0, len(rows_NX) - len(weight_PXM) + 1)
        out_NM = _multiply(rows_NX[:count], weight_PXM[0]).add_(bias_M)
        for tap in range(1, len(weight_PXM)):
            out_NM += _multiply(rows_NX[tap : tap + count], weight_PXM[tap])
        return out_NM

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows_NX, weight_PXM = ctx.saved_tensors
        (grad_NM,) = grads
        grad_MN = grad_NM.T.contiguous()
        grad_weight_PXM = torch.empty_like(weight_PXM)
        grad_rows_NX = torch.zeros_like(rows_NX) if ctx.needs_input_grad[0] else None
        for tap, weight_XM in enumerate(weight_PXM):
            window = slice(tap, tap + len(grad_NM))
            grad_weight_PXM[tap] = _multiply(grad_MN, rows_NX[window]).T
            if grad_rows_NX is not None:
                grad_rows_NX[window] += _multiply(grad_NM, weight_XM.T)
        return grad_rows_NX, grad_weight_PXM, grad_NM.sum(0)


def _multiply(left_NX: Tensor, right_XM: Tensor) -> Tensor:
    """By oneDNN, which wants left rows in one piece: of two products that give the same, the one that copies less."""
    if not left_NX.numel() or not right_XM.numel():  # oneDNN knows no empty ones
        return torch.mm(left_NX, right_XM)
    if not left_NX.is_contiguous() and (right_XM.T.is_contiguous() or right_XM.shape[1] < len(left_NX)):
        return _by_onednn(right_XM.T.contiguous(), left_NX.T).T
    return _by_onednn(left_NX.contiguous(), right_XM)


def _by_onednn(left_NX: Tensor, right_XM: Tensor) -> Tensor:
    if not (right_XM.is_contiguous() or right_XM.T.is_contiguous()):
        right_XM = right_XM.contiguous()  # takes a thousand times as long else
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left_NX, right_XM.T, None, "none", [], "")
    return found


def _is_plain(matrix: Tensor) -> bool:
    """Whether PyTorch's own product serves."""
    return (
        matrix.device.type != "cpu"
        or matrix.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or not _mkl_is_slow()
    )


@cache
def _mkl_is_slow() -> bool:
    """Whether this processor has AVX-512 and is none of Intel's."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_f")) and "intel" not in str(found.get("cpu_name", "")).lower()
