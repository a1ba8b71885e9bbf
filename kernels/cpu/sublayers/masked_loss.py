"""Squared error at probed points, sums and counts by role."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new, rows_of
from astroco_fast.reference.loss import masked_loss as reference


def _new_outputs(prediction: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    windows = prediction.shape[0]
    return new(prediction, windows, 3), new(prediction, windows, 3)


@kernel_op("cpu_squared_error(Tensor prediction, Tensor target, Tensor role) -> (Tensor, Tensor)", _new_outputs)
def squared_error(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts of points, (B, 3) each; columns are roles 1, 2, 3.

    Args:
        prediction, target: (B, T) float32.
        role: (B, T) int64.
    """
    made = _new_outputs(prediction)
    native.call("squared_error", *made, prediction, target, role, *prediction.shape)
    return made


def _new_gradient(upstream: Tensor, prediction: Tensor, target: Tensor, role: Tensor) -> Tensor:
    return new(prediction, *prediction.shape)


@kernel_op(
    "cpu_squared_error_backward(Tensor upstream, Tensor prediction, Tensor target, Tensor role) -> Tensor",
    _new_gradient,
)
def squared_error_backward(upstream: Tensor, prediction: Tensor, target: Tensor, role: Tensor) -> Tensor:
    """The gradient of prediction; upstream (B, 3) float32 is that of the sums."""
    gradient = _new_gradient(upstream, prediction, target, role)
    native.call("squared_error_backward", gradient, upstream, prediction, target, role, *prediction.shape)
    return gradient


class _MaskedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
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
        d_prediction = squared_error_backward(rows_of(upstream), prediction, target, role)
        # The error's square is the same with the two exchanged.
        return d_prediction, -d_prediction if ctx.needs_input_grad[1] else None, None


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) each, to sums and counts (B, 3); see `reference.loss.masked_loss`.

    float64, and shapes that have to be broadcast, are the reference's to run.
    """
    if prediction.dim() != 2 or not prediction.shape == target.shape == role.shape:
        return reference(prediction, target, role)
    if torch.float64 in (prediction.dtype, target.dtype):
        return reference(prediction, target, role)
    return _MaskedLoss.apply(rows_of(prediction.float()), rows_of(target.float()), rows_of(role.long()))
