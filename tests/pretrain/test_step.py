"""The objective of a step: sums, loss and gradient."""

import pytest
import torch

from astroco_fast.pretrain.objective import SumIndex, loss_and_factor, part, sums

SQUARED = torch.tensor([[4.0, 1.0, 1.0], [0.0, 0.0, 0.0], [8.0, 0.0, 0.0]])
COUNT = torch.tensor([[2.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])


def test_sums():
    totals = sums(SQUARED, COUNT)
    assert totals[SumIndex.SQUARED].tolist() == [12, 1, 1]
    assert totals[SumIndex.COUNT].tolist() == [4, 1, 1]
    assert totals[SumIndex.ROOTS].item() == pytest.approx(1.5**0.5 + 2)
    assert totals[SumIndex.WINDOWS] == 2


@pytest.mark.parametrize(("loss", "value"), [("batch", (14 / 6) ** 0.5), ("curve", (1.5**0.5 + 2) / 2)])
def test_loss_and_gradient(loss, value):
    squared = SQUARED.double().requires_grad_()
    found, factor = loss_and_factor(loss, sums(squared, COUNT))
    assert found.item() == pytest.approx(value)
    part(loss, squared, COUNT).backward()
    direct = SQUARED.double().requires_grad_()
    if loss == "batch":
        (direct.sum() / COUNT.sum()).sqrt().backward()
    else:
        (((direct[0].sum() / 4).sqrt() + (direct[2].sum() / 2).sqrt()) / 2).backward()
    torch.testing.assert_close(squared.grad * factor, direct.grad)


@pytest.mark.parametrize("loss", ["batch", "curve"])
def test_a_perfect_fit_and_no_points_have_no_gradient(loss):
    error = torch.zeros(2, 3, requires_grad=True)
    for count in (COUNT[:2], torch.zeros(2, 3)):
        squared = error.square()
        value, factor = loss_and_factor(loss, sums(squared, count))
        (gradient,) = torch.autograd.grad(part(loss, squared, count), error)
        assert value == 0
        assert torch.equal(gradient * factor, torch.zeros(2, 3).double())


@pytest.mark.parametrize("loss", ["batch", "curve"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_is_not_finite_where_an_error_is_not(loss, bad):
    squared = SQUARED.clone()
    squared[1, 1] = bad
    value, _ = loss_and_factor(loss, sums(squared, COUNT))
    assert not torch.isfinite(value)
