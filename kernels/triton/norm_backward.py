"""Backward of a LayerNorm at the head of a sublayer with a residual: dx = dz + LayerNorm'(da).

The kernel reads da (N, P) in half precision, dz and x (N, D), and writes dx (N, D): 2 P + 12 D bytes a row.

Tiling: as in residual_norm.py, blocks sweep over tiles of whole rows, a main tile and a tail, and each writes one
partial row of sums for the gradients of gain and shift, which the caller adds up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.column_sums import over_rows
from astroco_fast.kernels.triton.launch import Config, launch, named, sweepers
from astroco_fast.kernels.triton.tensors import split


@triton.jit
def loaded(da, x, gain, means, rstds, row, real, start, D: tl.constexpr, P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels start .. start + BLOCK_C - 1 of the upstream gradient, of its product with the gain, of x normalised."""
    column = start + tl.arange(0, BLOCK_C)
    here = real[:, None] & (column < D)[None, :]
    # The mask ends at the pitch, a multiple of 16 bytes, because one that ends within a load would split the load.
    upstream = tl.load(da + row[:, None] * P + column[None, :], mask=real[:, None] & (column < P)[None, :], other=0.0)
    upstream = upstream.to(tl.float32)
    value = tl.load(x + row[:, None] * D + column[None, :], mask=here, other=0.0)
    unit = tl.where(here, (value - means[:, None]) * rstds[:, None], 0.0)
    return upstream, upstream * tl.load(gain + column, mask=column < D, other=0.0)[None, :], unit


@triton.jit
def store_gradient(
    dz, dx, scaled, unit, slope, tilt, rstds, row, inside, real, start, D: tl.constexpr, BLOCK_C: tl.constexpr
):
    column = start + tl.arange(0, BLOCK_C)
    here = real[:, None] & (column < D)[None, :]
    around = tl.load(dz + row[:, None] * D + column[None, :], mask=here, other=0.0)
    gradient = around + rstds[:, None] * (scaled - slope[:, None] - unit * tilt[:, None])
    at = dx + row[:, None] * D + column[None, :]
    tl.store(at, tl.where(here, gradient, 0.0), mask=inside[:, None] & (column < D)[None, :])


@triton.jit
def store_sums(for_gain, for_shift, partial, start, D: tl.constexpr, BLOCK_C: tl.constexpr):
    column = start + tl.arange(0, BLOCK_C)
    tl.store(partial + column, over_rows(for_gain, BLOCK_C), mask=column < D)
    tl.store(partial + D + column, over_rows(for_shift, BLOCK_C), mask=column < D)


@triton.jit(repr=named("norm_backward"), do_not_specialize=["rows"])
def _kernel(
    da, dz, x, gain, mean, rstd, end, dx, partial, rows,
    D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    for_gain = tl.zeros([BLOCK_R, MAIN], tl.float32)
    for_shift = tl.zeros([BLOCK_R, MAIN], tl.float32)
    if TAIL:
        for_gain_tail = tl.zeros([BLOCK_R, TAIL], tl.float32)
        for_shift_tail = tl.zeros([BLOCK_R, TAIL], tl.float32)
    # While a tile is worked on, the next one's rows are on their way, and the `end` of the one after it; beside a tail
    # there are no registers for that.
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0), num_stages=1 if TAIL else 3):
        row = (tile * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = row < rows
        real = tl.load(end + row, mask=inside, other=0) > 0
        means = tl.load(mean + row, mask=real, other=0.0)
        rstds = tl.load(rstd + row, mask=real, other=0.0)
        upstream, scaled, unit = loaded(da, x, gain, means, rstds, row, real, 0, D, P, MAIN)
        for_gain += upstream * unit
        for_shift += upstream
        slope = tl.sum(scaled, 1)  # D times the mean of da * gain, and of that times the normalised x
        tilt = tl.sum(scaled * unit, 1)
        if TAIL:
            upstream_tail, scaled_tail, unit_tail = loaded(da, x, gain, means, rstds, row, real, MAIN, D, P, TAIL)
            for_gain_tail += upstream_tail * unit_tail
            for_shift_tail += upstream_tail
            slope += tl.sum(scaled_tail, 1)
            tilt += tl.sum(scaled_tail * unit_tail, 1)
        slope = slope / D
        tilt = tilt / D
        store_gradient(dz, dx, scaled, unit, slope, tilt, rstds, row, inside, real, 0, D, MAIN)
        if TAIL:
            store_gradient(dz, dx, scaled_tail, unit_tail, slope, tilt, rstds, row, inside, real, MAIN, D, TAIL)
    partial += tl.program_id(0) * 2 * D
    store_sums(for_gain, for_shift, partial, 0, D, MAIN)
    if TAIL:
        store_sums(for_gain_tail, for_shift_tail, partial, MAIN, D, TAIL)


def _config(width: int) -> Config:
    # As in residual_norm.py: a thread holds 8 values of each tile.
    main, tail = split(width)
    return Config({"BLOCK_R": 2048 // main, "MAIN": main, "TAIL": tail}, warps=8, stages=1)


def _blocks(rows: int, width: int, device: torch.device) -> int:
    # A multiprocessor has room for one or two.
    return sweepers(cdiv(rows, _config(width).blocks["BLOCK_R"]), 4, device)


def _outputs(
    da: Tensor, dz: Tensor, x: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    return new(x, rows, width), new(x, _blocks(rows, width, x.device), 2, width)


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
    launch(
        _kernel, (_blocks(rows, width, x.device),), da, dz, x, gain, mean, rstd, end, dx, partial, rows,
        D=width, P=pitch(width), config=_config(width),
    )  # fmt: skip
    return outputs
