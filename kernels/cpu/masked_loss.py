"""Squared error at probed points, sums and counts by role."""

import torch
from torch import Tensor

from astroco_fast.kernels import squared_error as shared
from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new


def _new_outputs(prediction: Tensor) -> tuple[Tensor, Tensor]:
    windows = prediction.shape[0]
    return new(prediction, windows, 3), new(prediction, windows, 3)


@kernel_op(_new_outputs)
def cpu_squared_error(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts of points, (B, 3) each; columns are roles 1, 2, 3.

    Args:
        prediction, target: (B, T) float32.
        role: (B, T) int64.
    """
    made = _new_outputs(prediction)
    native.call("squared_error", *made, prediction, target, role, *prediction.shape)
    return made


def _new_gradient(prediction: Tensor) -> Tensor:
    return new(prediction, *prediction.shape)


@kernel_op(_new_gradient)
def cpu_squared_error_backward(upstream: Tensor, prediction: Tensor, target: Tensor, role: Tensor) -> Tensor:
    """The gradient of prediction; upstream (B, 3) float32 is that of the sums."""
    gradient = _new_gradient(prediction)
    native.call("squared_error_backward", gradient, upstream, prediction, target, role, *prediction.shape)
    return gradient


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) each, to sums and counts (B, 3); see `reference.loss.masked_loss`."""
    if torch.float64 not in (prediction.dtype, target.dtype):  # else the reference runs
        prediction, target, role = prediction.float(), target.float(), role.long()
    return shared.squared_error(prediction, target, role, cpu_squared_error, cpu_squared_error_backward)
