"""Backward of a LayerNorm at the head of a sublayer with a residual: dx = dz + LayerNorm'(da).

The kernel reads da (N, P) in half precision, dz and x (N, D), and writes dx (N, D): 2 P + 12 D bytes a row.

Tiling: as in residual_norm.py, a block owns whole rows; where the pitch is no power of two it passes over them in
chunks. For the gradients of gain and shift each block writes one partial row, and the caller adds these up.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.tensors import chunk


@triton.jit
def _loaded(da, x, gain, means, rstds, row, real, start, D: tl.constexpr, P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels start .. start + BLOCK_C - 1 of the upstream gradient, of its product with the gain, of x normalised."""
    column = start + tl.arange(0, BLOCK_C)
    here = real[:, None] & (column < D)[None, :]
    # The mask ends at the pitch, a multiple of 16 bytes, because one that ends within a load would split the load.
    upstream = tl.load(da + row[:, None] * P + column[None, :], mask=real[:, None] & (column < P)[None, :], other=0.0)
    upstream = upstream.to(tl.float32)
    value = tl.load(x + row[:, None] * D + column[None, :], mask=here, other=0.0)
    unit = tl.where(here, (value - means[:, None]) * rstds[:, None], 0.0)
    return upstream, upstream * tl.load(gain + column, mask=column < D, other=0.0)[None, :], unit


@triton.jit(repr=named("norm_backward"), do_not_specialize=["rows"])
def _kernel(
    da, dz, x, gain, mean, rstd, end, dx, partial, rows,
    D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.load(mean + row, mask=real, other=0.0)
    rstds = tl.load(rstd + row, mask=real, other=0.0)
    slope = tl.zeros([BLOCK_R], tl.float32)  # mean of da * gain, and of that times the normalised x
    tilt = tl.zeros([BLOCK_R], tl.float32)
    for start in tl.static_range(0, P, BLOCK_C):
        upstream, scaled, unit = _loaded(da, x, gain, means, rstds, row, real, start, D, P, BLOCK_C)
        slope += tl.sum(scaled, 1) / D
        tilt += tl.sum(scaled * unit, 1) / D
        column = start + tl.arange(0, BLOCK_C)
        at = partial + block * 2 * D + column
        tl.store(at, tl.sum(upstream * unit, 0), mask=column < D)
        tl.store(at + D, tl.sum(upstream, 0), mask=column < D)
    for start in tl.static_range(0, P, BLOCK_C):
        if BLOCK_C < P:
            _, scaled, unit = _loaded(da, x, gain, means, rstds, row, real, start, D, P, BLOCK_C)
        column = start + tl.arange(0, BLOCK_C)
        here = real[:, None] & (column < D)[None, :]
        around = tl.load(dz + row[:, None] * D + column[None, :], mask=here, other=0.0)
        gradient = around + rstds[:, None] * (scaled - slope[:, None] - unit * tilt[:, None])
        tl.store(
            dx + row[:, None] * D + column[None, :],
            tl.where(here, gradient, 0.0),
            mask=inside[:, None] & (column < D)[None, :],
        )


def _config(width: int) -> Config:
    # As in residual_norm.py: a thread holds 16 values of each tile.
    return Config({"BLOCK_R": 16, "BLOCK_C": chunk(width)}, warps=8 if chunk(width) >= 128 else 4, stages=1)


def _outputs(
    da: Tensor, dz: Tensor, x: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    return new(x, rows, width), new(x, cdiv(rows, _config(width).blocks["BLOCK_R"]), 2, width)


@kernel_op(_outputs)
def norm_backward(
    da: Tensor, dz: Tensor, x: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of x where a sublayer is x + f(LayerNorm(x)).

    Args:
        da: (N, P) half rows, the gradient of LayerNorm(x).
        dz: (N, D) float32, the gradient that reaches x through the residual.
        x: (N, D) float32.
        gain: (D,) float32, LayerNorm's.
        mean, rstd: (N,) float32, x's mean and 1/standard deviation.
        end: (N,) int32, as in `Segments`.

    Returns:
        dx (N, D) float32, zero at rows that are not real; partial sums (blocks, 2, D) float32 whose sum over blocks is
        the gradients of gain and shift.
    """
    dx, partial = outputs = _outputs(da, dz, x, gain, mean, rstd, end)
    rows, width = x.shape
    config = _config(width)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(
        _kernel, grid, da, dz, x, gain, mean, rstd, end, dx, partial, rows,
        D=width, P=pitch(width), config=config,
    )  # fmt: skip
    return outputs
