"""Squared error at probed points, by role: sums and counts a window, and the gradient.

Prediction, target and role, (B, T) each, are read once. For 256 windows of 200 points that is half a megabyte: what
matters is that it is one launch in place of a dozen. A block sweeps one window, in tiles, so it compiles once for any
T, and no sum crosses blocks. Sums are float64 inside, which at this size costs nothing and makes them right to the last
bit of float32. Points that are not probed are never read, so a NaN there has no effect.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit
def _error(prediction, target, role, offset, inside):
    """Prediction - target at probed points, else 0, and the role there, else 0."""
    code = tl.load(role + offset, mask=inside, other=0).to(tl.int32)
    probed = inside & (code >= 1) & (code <= 3)
    value = tl.load(prediction + offset, mask=probed, other=0.0).to(tl.float32)
    return value - tl.load(target + offset, mask=probed, other=0.0).to(tl.float32), tl.where(probed, code, 0)


@triton.jit(repr=named("masked_loss_forward"), do_not_specialize=["length"])
def _forward_kernel(prediction, target, role, squared, count, length, BLOCK_T: tl.constexpr):
    window = tl.program_id(0).to(tl.int64)
    by_role = tl.arange(0, 4)
    sums = tl.zeros([BLOCK_T, 4], tl.float64)
    counts = tl.zeros([BLOCK_T, 4], tl.float32)
    for at in range(0, length, BLOCK_T):
        position = at + tl.arange(0, BLOCK_T)
        error, code = _error(prediction, target, role, window * length + position, position < length)
        is_role = code[:, None] == by_role[None, :] + 1
        exact = error.to(tl.float64)
        sums += tl.where(is_role, (exact * exact)[:, None], 0.0)
        counts += tl.where(is_role, 1.0, 0.0)
    tl.store(squared + window * 3 + by_role, tl.sum(sums, 0).to(tl.float32), mask=by_role < 3)
    tl.store(count + window * 3 + by_role, tl.sum(counts, 0), mask=by_role < 3)


@triton.jit(repr=named("masked_loss_backward"), do_not_specialize=["length"])
def _backward_kernel(upstream, prediction, target, role, gradient, length, BLOCK_T: tl.constexpr):
    window = tl.program_id(0).to(tl.int64)
    for at in range(0, length, BLOCK_T):
        position = at + tl.arange(0, BLOCK_T)
        inside = position < length
        error, code = _error(prediction, target, role, window * length + position, inside)
        weight = tl.load(upstream + window * 3 + code - 1, mask=code > 0, other=0.0)
        value = (2.0 * error * weight).to(gradient.dtype.element_ty)
        tl.store(gradient + window * length + position, value, mask=inside)


# A window of 200 in one sweep.
_CONFIG = Config({"BLOCK_T": 256}, warps=4, stages=1)


def _forward_outputs(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    shape = (prediction.shape[0], 3)
    return new(prediction, *shape, dtype=torch.float32), new(prediction, *shape, dtype=torch.float32)


@kernel_op(_forward_outputs)
def squared_error(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts of points, (B, 3) float32 each; columns are roles 1, 2, 3.

    Args:
        prediction, target: (B, T), floating point.
        role: (B, T), integers.
    """
    squared, count = outputs = _forward_outputs(prediction, target, role)
    windows, length = prediction.shape
    launch(_forward_kernel, (windows,), prediction, target, role, squared, count, length, config=_CONFIG)
    return outputs


def _backward_outputs(upstream: Tensor, prediction: Tensor, target: Tensor, role: Tensor) -> Tensor:
    return new(prediction, *prediction.shape)


@kernel_op(_backward_outputs)
def squared_error_backward(upstream: Tensor, prediction: Tensor, target: Tensor, role: Tensor) -> Tensor:
    """The gradient of prediction, in its dtype, from upstream, the gradient of the sums, (B, 3) float32."""
    gradient = _backward_outputs(upstream, prediction, target, role)
    windows, length = prediction.shape
    launch(_backward_kernel, (windows,), upstream, prediction, target, role, gradient, length, config=_CONFIG)
    return gradient
