"""Banks of 65,536 units in float32 against float64: how little is lost."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from aumn.model import losses, memory
from aumn.model.memory import Memory, _draw_rows
from aumn.model.settings import ModelSettings
from aumn.records import own_rows

UNITS = 65_536


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in float64."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def with_gradient(function, inputs: Tensor) -> tuple[Tensor, Tensor]:
    inputs = inputs.detach().clone().requires_grad_()
    value = function(inputs)
    return value.detach(), torch.autograd.grad(value, inputs)[0]


def homogeneity(unit_sums_BK: Tensor) -> Tensor:
    """Eq. 12 as a training step computes it."""
    return losses.homogeneity(unit_sums_BK, losses.unit_shares(unit_sums_BK).sum(0)) / len(unit_sums_BK)


def homogeneity_as_written(unit_sums_BK: Tensor) -> Tensor:
    return unit_sums_BK.softmax(1).mean(0).norm()


def diversity_as_written(units_KF: Tensor) -> Tensor:
    return (units_KF @ units_KF.T - torch.eye(len(units_KF), dtype=units_KF.dtype)).norm()


def nearly_orthonormal(num_units: int, width: int, noise: float) -> Tensor:
    """Where Eq. 10 drives the memory: orthonormal columns (K > F) or rows, and some noise."""
    generator = torch.Generator().manual_seed(num_units)
    drawn_KF = torch.randn(num_units, width, dtype=torch.float64, generator=generator)
    rows_KF = torch.linalg.qr(drawn_KF if num_units >= width else drawn_KF.T)[0]
    rows_KF = rows_KF if num_units >= width else rows_KF.T
    return rows_KF + noise * torch.randn(rows_KF.shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("spread", "gradient_bound"), [(20, 1e-5), (2, 1e-5), (0.1, 1e-4)])
def test_homogeneity_of_65536_units_keeps_its_value_and_gradient(spread, gradient_bound):
    """Sums of 750 snippets about 375, from "a few units take all" (spread 20) to "all within ten percent" (0.1)."""
    sums_BK = 375 + spread * torch.randn(3, UNITS, generator=torch.Generator().manual_seed(0))
    value, gradient_BK = with_gradient(homogeneity, sums_BK)
    wanted, wanted_BK = with_gradient(homogeneity_as_written, sums_BK.double())
    assert relative_error(value, wanted) < 5e-5
    assert relative_error(gradient_BK, wanted_BK) < gradient_bound


def test_homogeneity_of_even_units_has_no_gradient_to_lose():
    """Shares equal within 1e-5: float32 has only noise to say, of 1e-9 of the gradient that uneven shares give."""
    sums_BK = 375 + 1e-5 * torch.randn(3, UNITS, generator=torch.Generator().manual_seed(0))
    uneven_BK = 375 + 20 * torch.randn(3, UNITS, generator=torch.Generator().manual_seed(1))
    value, gradient_BK = with_gradient(homogeneity, sums_BK)
    assert_close(value, torch.tensor(UNITS**-0.5), rtol=5e-5, atol=0)
    assert gradient_BK.norm() < 1e-7 * with_gradient(homogeneity, uneven_BK)[1].norm()


def test_a_unit_whose_share_is_gone_gets_no_gradient_that_could_bring_it_back():
    """Eq. 12's gradient is proportional to the share: docs/large_memory.md builds on this."""
    sums_BK = torch.full((2, UNITS), 375.0)
    sums_BK[:, 7] -= 110
    assert with_gradient(homogeneity, sums_BK + torch.randn(UNITS) / 10)[1][:, 7].tolist() == [0, 0]


@pytest.mark.parametrize("noise", [0, 1 / 16])
def test_diversity_of_65536_units_keeps_its_value_and_gradient(noise):
    """Without noise the memory is where Eq. 10 is least, sqrt(K - F), and its gradient next to nothing."""
    units_KF = nearly_orthonormal(UNITS, 64, noise).float()
    value, gradient_KF = with_gradient(losses.diversity, units_KF)
    wanted, wanted_KF = with_gradient(losses.diversity, units_KF.double())
    assert relative_error(value, wanted) < 1e-5
    scale = units_KF.double().norm() / max(1, float(wanted))  # of the two terms whose difference the gradient is
    assert (gradient_KF - wanted_KF).norm() < 1e-5 * (scale + wanted_KF.norm())


@pytest.mark.parametrize(("num_units", "bound"), [(255, 1e-5), (256, 1e-5), (257, 1e-7)])
def test_diversity_does_not_cancel_where_k_is_near_f(num_units, bound):
    """F = 256, near the optimum: up to F units Eq. 10 goes to 0; |MᵀM|² - 2|M|² + K would lose all but three digits."""
    units_KF = nearly_orthonormal(num_units, 256, 5e-5).float()
    wanted, wanted_KF = with_gradient(diversity_as_written, units_KF.double())
    ours, ours_KF = with_gradient(losses.diversity, units_KF)
    assert relative_error(ours, wanted) < bound
    assert relative_error(ours_KF, wanted_KF) < 1e-2


def read_with_gradients(bank: Memory, queries_BTA: Tensor, mask_BT: Tensor) -> list[Tensor]:
    reading = bank.read(queries_BTA, mask_BT)
    return with_gradients_of_a_scalar(bank, queries_BTA, mask_BT, reading[0], *reading[2:])


def as_written(bank: Memory, queries_BTA: Tensor, mask_BT: Tensor) -> list[Tensor]:
    """Eq. 2, 3, 5, 7, 11, all of B x T x K at once."""
    keys_KA = bank.encode_key(bank.units_KF)
    hidden_KR = torch.relu(bank.encode_hidden(bank.units_KF))
    hidden_KR = torch.cat([hidden_KR, torch.ones_like(hidden_KR[:, :1])], 1) * (7 / UNITS)
    s_BTK = torch.sigmoid(queries_BTA @ keys_KA.T / queries_BTA.shape[2] ** 0.5)
    sums_BK = (s_BTK * mask_BT[..., None]).sum(1)
    return with_gradients_of_a_scalar(bank, queries_BTA, mask_BT, s_BTK @ hidden_KR, s_BTK.max(2).values, sums_BK)


def with_gradients_of_a_scalar(bank, queries_BTA, mask_BT, coefficients_BTJ, attention_BT, sums_BK) -> list[Tensor]:
    attention_BT = attention_BT * mask_BT
    scalar = (coefficients_BTJ / UNITS).sin().sum() + attention_BT.square().sum() + (sums_BK / 5).cos().mean()
    wanted = [queries_BTA, bank.units_KF, bank.encode_key.weight, bank.encode_hidden.weight]
    return [coefficients_BTJ, attention_BT, sums_BK, *torch.autograd.grad(scalar, wanted)]


def make_bank_and_queries() -> tuple[Memory, Tensor, Tensor]:
    torch.manual_seed(0)
    bank = Memory(ModelSettings(units=UNITS, embedding_width=72, key_ratio=3, bottleneck=16), num_classes=3)
    with torch.no_grad():
        bank.encode_key.weight *= 10  # so that similarities differ, as after training
    mask_BT = torch.arange(11) < torch.tensor([11, 8])[:, None]
    return bank, torch.randn(2, 11, 24, requires_grad=True), mask_BT


def test_reading_65536_units_in_chunks_keeps_its_values_and_gradients():
    bank, queries_BTA, mask_BT = make_bank_and_queries()
    ours = read_with_gradients(bank, queries_BTA, mask_BT)
    theirs = as_written(bank.double(), queries_BTA.detach().double().requires_grad_(), mask_BT)
    assert max(relative_error(*pair) for pair in zip(ours, theirs, strict=True)) < 5e-6


def test_the_size_of_a_chunk_changes_nothing_beyond_rounding(monkeypatch):
    bank, queries_BTA, mask_BT = make_bank_and_queries()
    ours = read_with_gradients(bank, queries_BTA, mask_BT)
    for chunk_units in (3_000, UNITS):
        monkeypatch.setitem(memory.CHUNK_ELEMENTS, "cpu", mask_BT.numel() * chunk_units)
        again = read_with_gradients(bank, queries_BTA, mask_BT)
        assert max(relative_error(*pair) for pair in zip(again, ours, strict=True)) < 2e-6


@pytest.mark.parametrize(("units", "width"), [(13, 12), (37, 5), (64, 8), (3, 5)])
def test_rows_over_ranks_are_those_that_are_drawn_at_once(units, width, monkeypatch):
    monkeypatch.setattr("aumn.model.memory.DRAWN_ELEMENTS", 32)
    torch.manual_seed(3)
    whole_KF, behind = torch.randn(units, width), torch.rand(3)
    for ranks in (2, 3):
        parts = []
        for place in range(ranks):
            torch.manual_seed(3)
            parts.append(_draw_rows(units, width, own_rows(units, place, ranks)))
            assert torch.equal(torch.rand(3), behind)
        assert torch.equal(torch.cat(parts), whole_KF)
