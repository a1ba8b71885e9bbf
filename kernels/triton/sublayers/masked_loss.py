"""Squared error at probed points, sums and counts by role."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.tensors import rows_of
from astroco_fast.kernels.triton.loss import squared_error, squared_error_backward
from astroco_fast.reference.loss import masked_loss as reference


class _MaskedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        prediction, target, role = rows_of(prediction), rows_of(target), rows_of(role)
        ctx.save_for_backward(prediction, target, role)
        squared, count = squared_error(prediction, target, role)
        ctx.mark_non_differentiable(count)
        return squared, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        prediction, target, role = ctx.saved_tensors
        if upstream is None:
            return None, None, None
        upstream = rows_of(upstream)
        d_prediction = d_target = None
        if ctx.needs_input_grad[0]:
            d_prediction = squared_error_backward(upstream, prediction, target, role)
        if ctx.needs_input_grad[1]:  # the error's square is the same with the two exchanged
            d_target = squared_error_backward(upstream, target, prediction, role)
        return d_prediction, d_target, None


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) each, to sums and counts (B, 3); see `reference.loss.masked_loss`.

    float64, and shapes that have to be broadcast, are the reference's to run.
    """
    if prediction.dim() != 2 or not prediction.shape == target.shape == role.shape:
        return reference(prediction, target, role)
    if torch.float64 in (prediction.dtype, target.dtype):
        return reference(prediction, target, role)
    return _MaskedLoss.apply(prediction, target, role)
