"""The part of `masked_loss` that the backends share: the choice of the calls that kernels run, and autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.tensors import rows_of
from astroco_fast.reference.loss import masked_loss as reference


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, target: Tensor, role: Tensor, forward: Callable[..., Any],
        backward: Callable[..., Any],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(prediction, target, role)
        ctx.gradient = backward
        squared, count = forward(prediction, target, role)
        ctx.mark_non_differentiable(count)
        return squared, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        prediction, target, role = ctx.saved_tensors
        if upstream is None:
            return (None,) * 5
        upstream = rows_of(upstream)
        d_prediction = d_target = None
        if ctx.needs_input_grad[0]:
            d_prediction = ctx.gradient(upstream, prediction, target, role)
        if ctx.needs_input_grad[1]:  # the squared error is symmetric in prediction and target
            d_target = ctx.gradient(upstream, target, prediction, role)
        return d_prediction, d_target, None, None, None


def squared_error(
    prediction: Tensor, target: Tensor, role: Tensor, forward: Callable[..., Any], backward: Callable[..., Any]
) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts of points, (B, 3), of (B, T) tensors; see `reference.loss.masked_loss`.

    The reference runs float64 and shapes that have to be broadcast.

    Args:
        prediction, target, role: (B, T).
        forward: computes sums and counts from contiguous prediction, target and role.
        backward: computes the gradient of prediction from the gradient of the sums, prediction, target and role.
    """
    if prediction.dim() != 2 or not prediction.shape == target.shape == role.shape:
        return reference(prediction, target, role)
    if torch.float64 in (prediction.dtype, target.dtype):
        return reference(prediction, target, role)
    return _SquaredError.apply(rows_of(prediction), rows_of(target), rows_of(role), forward, backward)
