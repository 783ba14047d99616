"""Products by either library, and their gradients, against float64 on odd sizes; and when which is taken."""

import pytest
import torch
from torch.testing import assert_close

from aumn.model import products
from aumn.model.products import Workspace, convolve, product

SIZES = [(1, 1, 1), (7, 5, 3), (13, 101, 67), (65, 7, 501)]


@pytest.fixture(params=["PyTorch", "oneDNN"])
def library(request, monkeypatch):
    """Both, whatever this processor is."""
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: request.param == "oneDNN")
    return request.param


def matrix(rows, columns, layout="rows"):
    """Random, in one of the layouts that callers have."""
    if layout == "slice":
        return torch.randn(rows + 2, columns + 3)[1:-1, 2:-1]
    return torch.randn(columns, rows).T if layout == "transposed" else torch.randn(rows, columns)


@pytest.mark.parametrize("layout", ["rows", "transposed", "slice"])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_float64s_in_every_layout(library, size, layout):
    rows, inner, columns = size
    left, right = matrix(rows, inner, layout), matrix(inner, columns, layout)
    expected = (left.double() @ right.double()).float()
    whole, row = torch.randn(rows, columns), torch.randn(columns)
    for found in (
        product(left, right),
        product(left, right, plus=whole) - whole,
        product(left, right, plus=row) - row,
        Workspace().product(left, right),
    ):
        assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_workspace_serves_again_for_smaller_products(library):
    space = Workspace()
    space.product(torch.randn(7, 4), torch.randn(4, 9)).fill_(5)
    left, right = torch.randn(7, 4), torch.randn(4, 6)
    assert_close(space.product(left, right), (left.double() @ right.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_products_of_batches_are_float64s(library, batch):
    left, right = torch.randn(batch, 7, 13), torch.randn(batch, 5, 13).mT
    expected = (left.double() @ right.double()).float()
    assert_close(product(left, right), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_float64(library, size):
    rows, inner, columns = size
    left, right = matrix(rows, inner).requires_grad_(), matrix(inner, columns, "transposed").requires_grad_()
    weights = torch.randn(rows, columns)
    plus = torch.randn(columns, requires_grad=True)
    found = torch.autograd.grad((product(left, right, plus) * weights).sum(), (left, right, plus))
    expected = weights.double() @ right.double().T, left.double().T @ weights.double(), weights.double().sum(0)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rows", "taps"), [(19, 1), (19, 4), (3, 3), (2, 3)])
def test_convolutions_are_float64s_and_so_are_their_gradients(library, rows, taps):
    inner, columns = 11, 6
    operands = [torch.randn(rows, inner), torch.randn(taps, inner, columns), torch.randn(columns)]
    count = max(0, rows - taps + 1)
    weights = torch.randn(count, columns)

    def run(convolve, operands):
        operands = [operand.requires_grad_() for operand in operands]
        out = convolve(*operands)
        return out, *torch.autograd.grad((out * weights.to(out.dtype)).sum(), operands)

    def as_written(rows_NX, weight_PXM, bias_M):
        windows = [bias_M + sum(rows_NX[n + p] @ weight_PXM[p] for p in range(taps)) for n in range(count)]
        return torch.stack(windows) if windows else 0 * (rows_NX.sum() + weight_PXM.sum()) + bias_M.expand(0, columns)

    expected = run(as_written, [operand.double() for operand in operands])
    for one, other in zip(run(convolve, operands), expected, strict=True):
        assert_close(one, other.float(), rtol=1e-5, atol=1e-4)


def test_onednn_serves_float32_alone(monkeypatch):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    called = []
    monkeypatch.setattr(products, "_multiply", lambda left, right: called.append(left) or left @ right)
    left, right = torch.randn(3, 4), torch.randn(4, 5)
    product(left.double(), right.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert product(left, right).dtype == torch.bfloat16
    assert not called
    assert product(left, right).dtype == torch.float32
    assert called


@pytest.mark.parametrize(
    ("processor", "slow"),
    [
        ({"avx512_f": True, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_f": False, "cpu_name": "AMD EPYC"}, False),
        ({"avx512_f": True, "cpu_name": "Intel(R) Xeon(R) Platinum"}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_mkl_is_slow_where_it_leaves_avx512_unused(monkeypatch, processor, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert products._mkl_is_slow.__wrapped__() is slow
