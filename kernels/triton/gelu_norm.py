"""The end of the input embedding: y = LayerNorm(GELU(o + b)).

Forward reads o (N, P) in half precision and writes y (N, D): 2 P + 4 D bytes a row. Backward reads dy and o and writes
the gradient of o: 4 P + 4 D. Each block also writes column sums: those for the gradients of the norm and of b, and the
sums of o's gradient weighted by each point's magnitude and by its uncertainty. Because photometry is linear in these
two, its gradient is the product of the weighted sums with `fuse`'s weight, so the gradient of all points' features, a
product over N rows, is never needed.

Tiling: as in residual_norm.py, a block owns whole rows; where the pitch is no power of two it passes over them in
chunks.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.gate import gelu
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.point_features import field, hides
from astroco_fast.kernels.triton.tensors import chunk


@triton.jit
def _activated(
    o, b, row, real, start, D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Channels start .. start + BLOCK_C - 1 of GELU(o + b) and of its slope; zero beyond D and at rows not real."""
    column = start + tl.arange(0, BLOCK_C)
    here = real[:, None] & (column < D)[None, :]
    value = tl.load(o + row[:, None] * P + column[None, :], mask=real[:, None] & (column < P)[None, :], other=0.0)
    biases = tl.load(b + column, mask=column < D, other=0.0)
    activated, slope = gelu(value.to(tl.float32) + biases[None, :])
    return tl.where(here, activated, 0.0), slope


@triton.jit(repr=named("gelu_norm_forward"), do_not_specialize=["rows"])
def _forward_kernel(
    o, b, gain, shift, end, eps, y, mean, rstd, rows,
    D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.zeros([BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_R], tl.float32)  # about the mean
    for start in tl.static_range(0, P, BLOCK_C):
        z, _ = _activated(o, b, row, real, start, D, P, BLOCK_R, BLOCK_C)
        # Chan's formula joins the chunk to those before it; E[z^2] - E[z]^2 would cancel.
        n = BLOCK_C if start + BLOCK_C < D else D - start
        chunk_mean = tl.sum(z, 1) / n
        deviation = tl.where((start + tl.arange(0, BLOCK_C) < D)[None, :], z - chunk_mean[:, None], 0.0)
        delta = chunk_mean - means
        means += delta * (n / (start + n))
        squares += tl.sum(deviation * deviation, 1) + delta * delta * (start * n / (start + n))
    rstds = reciprocal_deviations(squares, D, eps)
    tl.store(mean + row, means, mask=inside)
    tl.store(rstd + row, rstds, mask=inside)
    for start in tl.static_range(0, P, BLOCK_C):
        if BLOCK_C < P:
            z, _ = _activated(o, b, row, real, start, D, P, BLOCK_R, BLOCK_C)
        column = start + tl.arange(0, BLOCK_C)
        gains = tl.load(gain + column, mask=column < D, other=0.0)
        shifts = tl.load(shift + column, mask=column < D, other=0.0)
        normal = (z - means[:, None]) * rstds[:, None] * gains[None, :] + shifts[None, :]
        here = inside[:, None] & (column < D)[None, :]
        tl.store(y + row[:, None] * D + column[None, :], tl.where(real[:, None], normal, 0.0), mask=here)


@triton.jit(repr=named("gelu_norm_backward"), do_not_specialize=["rows"])
def _backward_kernel(
    dy, o, b, gain, end, mean, rstd, mag, err, hidden, do, partial, rows,
    D: tl.constexpr, P: tl.constexpr, HIDE_TIME: tl.constexpr, HIDE_MAGNITUDE: tl.constexpr,
    HIDE_UNCERTAINTY: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.load(mean + row, mask=inside, other=0.0)
    rstds = tl.load(rstd + row, mask=inside, other=0.0)
    level = tl.zeros([BLOCK_R], tl.float32)  # mean of dy * gain, and of that times the normalised activation
    tilt = tl.zeros([BLOCK_R], tl.float32)
    for start in tl.static_range(0, P, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        here = real[:, None] & (column < D)[None, :]
        z, slope = _activated(o, b, row, real, start, D, P, BLOCK_R, BLOCK_C)
        normal = tl.where(here, (z - means[:, None]) * rstds[:, None], 0.0)
        upstream = tl.load(dy + row[:, None] * D + column[None, :], mask=here, other=0.0)
        gains = tl.load(gain + column, mask=column < D, other=0.0)
        level += tl.sum(upstream * gains[None, :], 1) / D
        tilt += tl.sum(upstream * gains[None, :] * normal, 1) / D
        at = partial + block * 5 * D + column
        tl.store(at, tl.sum(upstream * normal, 0), mask=column < D)
        tl.store(at + D, tl.sum(upstream, 0), mask=column < D)
    m = field(mag, hidden, row, real, HIDE_MAGNITUDE)
    e = field(err, hidden, row, real, HIDE_UNCERTAINTY)
    for start in tl.static_range(0, P, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        here = real[:, None] & (column < D)[None, :]
        if BLOCK_C < P:
            z, slope = _activated(o, b, row, real, start, D, P, BLOCK_R, BLOCK_C)
            normal = tl.where(here, (z - means[:, None]) * rstds[:, None], 0.0)
            upstream = tl.load(dy + row[:, None] * D + column[None, :], mask=here, other=0.0)
            gains = tl.load(gain + column, mask=column < D, other=0.0)
        gradient = rstds[:, None] * (upstream * gains[None, :] - level[:, None] - normal * tilt[:, None])
        gradient = tl.where(here, gradient * slope, 0.0)
        tl.store(
            do + row[:, None] * P + column[None, :],
            gradient.to(do.dtype.element_ty),
            mask=inside[:, None] & (column < P)[None, :],
        )
        at = partial + block * 5 * D + 2 * D + column
        tl.store(at, tl.sum(gradient, 0), mask=column < D)
        tl.store(at + D, tl.sum(gradient * m[:, None], 0), mask=column < D)
        tl.store(at + 2 * D, tl.sum(gradient * e[:, None], 0), mask=column < D)


def _config(width: int) -> Config:
    # As in residual_norm.py: with 8 warps, a thread holds 16 values of each tile of 16 rows and 256 channels.
    return Config({"BLOCK_R": 16, "BLOCK_C": chunk(width)}, warps=8 if chunk(width) >= 128 else 4, stages=1)


def _forward_outputs(
    o: Tensor, b: Tensor, gain: Tensor, shift: Tensor, end: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = o.shape[0]
    return new(b, rows, b.shape[0]), new(b, rows), new(b, rows)


@kernel_op(_forward_outputs)
def gelu_norm(
    o: Tensor, b: Tensor, gain: Tensor, shift: Tensor, end: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(GELU(o + b)), zero at rows that are not real.

    Args:
        o: (N, P) half rows in the compute dtype, a matrix product without its bias.
        b: (D,) float32, that bias.
        gain, shift: (D,) float32, LayerNorm's.
        end: (N,) int32, as in `Segments`.
        eps: LayerNorm's.

    Returns:
        y (N, D) float32, and the activation's mean and 1/standard deviation (N,), for backward.
    """
    y, mean, rstd = outputs = _forward_outputs(o, b, gain, shift, end, eps)
    rows, width = y.shape
    config = _config(width)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(
        _forward_kernel, grid, o, b, gain, shift, end, eps, y, mean, rstd, rows,
        D=width, P=pitch(width), config=config,
    )  # fmt: skip
    return outputs


def _backward_outputs(
    dy: Tensor, o: Tensor, b: Tensor, gain: Tensor, end: Tensor, mean: Tensor, rstd: Tensor, mag: Tensor, err: Tensor,
    hidden: Tensor | None, hide: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, width = dy.shape
    return new(o, *o.shape), new(b, cdiv(rows, _config(width).blocks["BLOCK_R"]), 5, width)


@kernel_op(_backward_outputs)
def gelu_norm_backward(
    dy: Tensor, o: Tensor, b: Tensor, gain: Tensor, end: Tensor, mean: Tensor, rstd: Tensor, mag: Tensor, err: Tensor,
    hidden: Tensor | None, hide: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Backward of `gelu_norm`; mag, err, hidden and hide as in `point_features`.

    Returns:
        The gradient of o, (N, P) half rows, and partial sums (blocks, 5, D) float32. Their sum over blocks is the
        gradients of gain, shift and b, and the sums over rows of the gradient of o times mag and times err.
    """
    do, partial = outputs = _backward_outputs(dy, o, b, gain, end, mean, rstd, mag, err, hidden, hide)
    rows, width = dy.shape
    config = _config(width)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(
        _backward_kernel, grid, dy, o, b, gain, end, mean, rstd, mag, err, hidden, do, partial, rows,
        D=width, P=pitch(width), **hides(hide), config=config,
    )  # fmt: skip
    return outputs
