"""The masked loss: sums and counts by role."""

import torch

from astroco_fast.reference.loss import masked_loss


def test_sums_and_counts_by_role() -> None:
    target = torch.zeros(2, 5)
    prediction = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0, float("nan")]])
    role = torch.tensor([[1, 2, 3, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.uint8)
    squared, count = masked_loss(prediction, target, role)
    assert squared.tolist() == [[26.0, 4.0, 9.0], [0.0, 0.0, 0.0]]
    assert count.tolist() == [[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_unprobed_points_give_no_gradient_even_if_nan() -> None:
    prediction = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    target = torch.tensor([[0.0, float("nan")]])
    squared, _ = masked_loss(prediction, target, torch.tensor([[1, 0]]))
    squared.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[2.0, 0.0]]


def test_half_precision_is_summed_in_float32() -> None:
    squared, count = masked_loss(torch.ones(1, 1000).bfloat16(), torch.zeros(1, 1000), torch.ones(1, 1000))
    assert squared.dtype == count.dtype == torch.float32
    assert squared[0, 0] == 1000
