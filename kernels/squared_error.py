"""The part of `masked_loss` that the backends share: which calls kernels take, and the autograd function."""

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
        if ctx.needs_input_grad[1]:  # the error's square is the same with the two exchanged
            d_target = ctx.gradient(upstream, target, prediction, role)
        return d_prediction, d_target, None, None, None


def squared_error(
    prediction: Tensor, target: Tensor, role: Tensor, forward: Callable[..., Any], backward: Callable[..., Any]
) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts, (B, 3), of (B, T) tensors; see `reference.loss.masked_loss`.

    The reference runs float64 and shapes that have to be broadcast.

    Args:
        forward: takes the three, contiguous, and gives sums and counts.
        backward: takes the sums' gradient as well, first, and gives prediction's.
    """
    if prediction.dim() != 2 or not prediction.shape == target.shape == role.shape:
        return reference(prediction, target, role)
    if torch.float64 in (prediction.dtype, target.dtype):
        return reference(prediction, target, role)
    return _SquaredError.apply(rows_of(prediction), rows_of(target), rows_of(role), forward, backward)
