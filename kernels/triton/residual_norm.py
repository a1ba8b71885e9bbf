"""The end of every sublayer: y = LayerNorm(x + Dropout(o + b)).

Forward reads o (N, P) in half precision and x (N, D), and writes y (N, D) and, for backward, the normalised sum (N, P):
4 P + 8 D bytes a row; the sum and its dropout mask are never in memory. Backward reads dy and the normalised sum, and
writes the gradients of x and of o: 4 P + 8 D.

The normalised sum is kept in 16 bits, in whole steps, of which a row's largest value has 32767. That loses less than
float16 (an eighth, for normal numbers), whose last bits depend on each value. To compute the sum again, backward would
read o, x and b, 4 D bytes a row more. Rounded, a row's mean is no longer exactly 0, so backward takes the mean out of
dy * gain before it multiplies the two.

Tiling: a block owns whole rows and keeps them in registers, so that everything is read once and dropout is drawn once.
A row is one tile whose width is a power of two, with a narrower tile beside it where the pitch is no power of two
(D = 276: 256 and 32 columns). One tile of 512 would leave half of its lanes idle, and passing over the row in chunks
would read it and draw its dropout twice. For the gradients of b and of LayerNorm's parameters backward has a
few blocks a multiprocessor. Each sweeps over row tiles, adds up columns in registers, and writes one partial row,
which the caller adds to the others': without atomics the result is the same bits every time. A partial row for each
tile would be 5 to 9 % of the traffic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.column_sums import over_rows
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.dropout import dropout_scale
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named, sweepers
from astroco_fast.kernels.triton.linear_residual_norm import squares_about, store_normalised
from astroco_fast.kernels.triton.tensors import split


@triton.jit
def summed(
    o, b, x, row, inside, start, seed, salt, p,
    D: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Channels start .. start + BLOCK_C - 1 of x + Dropout(o + b), [BLOCK_R, BLOCK_C]."""
    column = start + tl.arange(0, BLOCK_C)
    here = inside[:, None] & (column < D)[None, :]
    pitched = inside[:, None] & (column < P)[None, :]
    value = tl.load(o + row[:, None] * P + column[None, :], mask=pitched, other=0.0).to(tl.float32)
    value += tl.load(b + column, mask=column < D, other=0.0)[None, :]
    if DROPOUT:
        value *= dropout_scale(seed, salt, row, start, p, BLOCK_R, BLOCK_C)
    return tl.where(here, tl.load(x + row[:, None] * D + column[None, :], mask=here, other=0.0) + value, 0.0)


@triton.jit
def furthest(z, means, column, D: tl.constexpr):
    """How far a row's values are from its mean at most."""
    return tl.max(tl.where((column < D)[None, :], tl.abs(z - means[:, None]), 0.0), 1)


@triton.jit
def store_spread(far, rstds, spread, row, inside, KEPT: tl.constexpr):
    """Stores 1/deviation and the step of the kept sum; returns the factors that make steps of z - mean."""
    factors = rstds if KEPT == tl.float32 else 32767 / tl.maximum(far, 1e-30)  # noqa: SIM300
    tl.store(spread + 2 * row, rstds, mask=inside)
    tl.store(spread + 2 * row + 1, rstds / factors, mask=inside)  # NaN where the row has a NaN or an infinity
    return factors


@triton.jit
def store_unit(z, means, factors, normal, row, column, inside, real, D: tl.constexpr, P: tl.constexpr):
    """Stores the normalised sum in steps, zero at rows that are not real and in the pad columns."""
    unit = tl.where(real[:, None] & (column < D)[None, :], (z - means[:, None]) * factors[:, None], 0.0)
    if normal.dtype.element_ty == tl.int16:
        unit = tl.floor(unit + 0.5)
    at = normal + row[:, None] * P + column[None, :]
    tl.store(at, unit.to(normal.dtype.element_ty), mask=inside[:, None] & (column < P)[None, :])


@triton.jit(repr=named("residual_norm_forward", DROPOUT=("", "dropout")), do_not_specialize=["salt", "rows"])
def _forward_kernel(
    o, b, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, rows,
    D: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    z = summed(o, b, x, row, real, 0, seed, salt, p, D, P, DROPOUT, BLOCK_R, MAIN)
    means = tl.sum(z, 1)
    if TAIL:
        z_tail = summed(o, b, x, row, real, MAIN, seed, salt, p, D, P, DROPOUT, BLOCK_R, TAIL)
        means += tl.sum(z_tail, 1)
    means = means / D
    column = tl.arange(0, MAIN)
    squares = squares_about(z, means, column, D)
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        squares += squares_about(z_tail, means, last, D)
    rstds = reciprocal_deviations(squares, D, eps)
    far = furthest(z, means, column, D)
    if TAIL:
        far = tl.maximum(far, furthest(z_tail, means, last, D))
    factors = store_spread(far, rstds, spread, row, inside, normal.dtype.element_ty)
    store_unit(z, means, factors, normal, row, column, inside, real, D, P)
    store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D)
    if TAIL:
        store_unit(z_tail, means, factors, normal, row, last, inside, real, D, P)
        store_normalised(z_tail, means, rstds, gain, shift, y, row, last, inside, real, D)


@triton.jit
def upstream_of(
    dy, normal, steps, gain, row, real, start, seed, salt, p,
    D: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy, dy * gain, the normalised sum and the dropout's scale."""
    column = start + tl.arange(0, BLOCK_C)
    pitched = real[:, None] & (column < P)[None, :]
    unit = tl.load(normal + row[:, None] * P + column[None, :], mask=pitched, other=0).to(tl.float32) * steps[:, None]
    here = real[:, None] & (column < D)[None, :]
    upstream = tl.load(dy + row[:, None] * D + column[None, :], mask=here, other=0.0)
    gains = tl.load(gain + column, mask=column < D, other=0.0)
    scale = tl.full([BLOCK_R, BLOCK_C], 1.0, tl.float32)
    if DROPOUT:
        scale = dropout_scale(seed, salt, row, start, p, BLOCK_R, BLOCK_C)
    return upstream, upstream * gains[None, :], unit, scale


@triton.jit
def store_gradients(
    centred, unit, scale, tilt, rstds, dz, do, row, inside, real, start,
    D: tl.constexpr, P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of the sum and of o; returns the latter."""
    column = start + tl.arange(0, BLOCK_C)
    gradient = rstds[:, None] * (centred - unit * tilt[:, None])
    gradient = tl.where(real[:, None] & (column < D)[None, :], gradient, 0.0)
    tl.store(dz + row[:, None] * D + column[None, :], gradient, mask=inside[:, None] & (column < D)[None, :])
    inward = gradient * scale
    at = do + row[:, None] * P + column[None, :]
    tl.store(at, inward.to(do.dtype.element_ty), mask=inside[:, None] & (column < P)[None, :])
    return inward


@triton.jit
def store_sums(for_gain, for_shift, for_b, partial, start, D: tl.constexpr, BLOCK_C: tl.constexpr):
    column = start + tl.arange(0, BLOCK_C)
    tl.store(partial + column, over_rows(for_gain, BLOCK_C), mask=column < D)
    tl.store(partial + D + column, over_rows(for_shift, BLOCK_C), mask=column < D)
    tl.store(partial + 2 * D + column, over_rows(for_b, BLOCK_C), mask=column < D)


@triton.jit(repr=named("residual_norm_backward", DROPOUT=("", "dropout")), do_not_specialize=["salt", "rows"])
def _backward_kernel(
    dy, normal, spread, gain, end, seed, salt, p, dz, do, partial, rows,
    D: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    for_gain = tl.zeros([BLOCK_R, MAIN], tl.float32)
    for_shift = tl.zeros([BLOCK_R, MAIN], tl.float32)
    for_b = tl.zeros([BLOCK_R, MAIN], tl.float32)
    if TAIL:
        for_gain_tail = tl.zeros([BLOCK_R, TAIL], tl.float32)
        for_shift_tail = tl.zeros([BLOCK_R, TAIL], tl.float32)
        for_b_tail = tl.zeros([BLOCK_R, TAIL], tl.float32)
    # While a tile is worked on, the next AHEAD - 1 are on their way.
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0), num_stages=AHEAD):
        row = (tile * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = row < rows
        real = tl.load(end + row, mask=inside, other=0) > 0
        rstds = tl.load(spread + 2 * row, mask=inside, other=0.0)
        steps = tl.load(spread + 2 * row + 1, mask=inside, other=0.0)
        upstream, pulled, unit, scale = upstream_of(
            dy, normal, steps, gain, row, real, 0, seed, salt, p, D, P, DROPOUT, BLOCK_R, MAIN
        )
        for_gain += upstream * unit
        for_shift += upstream
        slope = tl.sum(pulled, 1)
        if TAIL:
            upstream_tail, pulled_tail, unit_tail, scale_tail = upstream_of(
                dy, normal, steps, gain, row, real, MAIN, seed, salt, p, D, P, DROPOUT, BLOCK_R, TAIL
            )
            for_gain_tail += upstream_tail * unit_tail
            for_shift_tail += upstream_tail
            slope += tl.sum(pulled_tail, 1)
        slope = slope / D
        pulled -= slope[:, None]
        tilt = tl.sum(pulled * unit, 1)
        if TAIL:
            pulled_tail -= slope[:, None]
            tilt += tl.sum(pulled_tail * unit_tail, 1)
        tilt = tilt / D
        for_b += store_gradients(pulled, unit, scale, tilt, rstds, dz, do, row, inside, real, 0, D, P, MAIN)
        if TAIL:
            for_b_tail += store_gradients(
                pulled_tail, unit_tail, scale_tail, tilt, rstds, dz, do, row, inside, real, MAIN, D, P, TAIL
            )
    partial += tl.program_id(0) * 3 * D
    store_sums(for_gain, for_shift, for_b, partial, 0, D, MAIN)
    if TAIL:
        store_sums(for_gain_tail, for_shift_tail, for_b_tail, partial, MAIN, D, TAIL)


def _config(width: int) -> Config:
    # A thread holds 16 values of each tile that forward keeps, 18 at D = 276.
    main, tail = split(width)
    rows = 8 if tail or main > 256 else 16
    return Config({"BLOCK_R": rows, "MAIN": main, "TAIL": tail}, warps=4 if rows * main <= 2048 else 8, stages=1)


def _backward_config(width: int, device: torch.device) -> Config:
    # 8 values of each tile a thread, beside three sums: 122 registers at D = 256, 181 at most at D = 276.
    main, tail = split(width)
    warps = 4 if tail else 8
    # Beside a tail there are no registers for another tile. On sm_100 and sm_120 two more spill.
    ahead = 1 if tail else 2 if architecture(device).name in ("sm_100", "sm_120") else 3
    return Config({"BLOCK_R": warps * 256 // main, "MAIN": main, "TAIL": tail, "AHEAD": ahead}, warps, stages=1)


def _blocks(rows: int, width: int, device: torch.device) -> int:
    config = _backward_config(width, device)
    # A multiprocessor has room for one or two blocks of 8 warps, and for two or three of 4.
    return sweepers(cdiv(rows, config.blocks["BLOCK_R"]), 6 if config.warps == 4 else 4, device)


def kept_sum(like: Tensor, *shape: int) -> Tensor:
    """Memory for a normalised sum, for a product in the compute dtype: steps of 16 bits, or float32."""
    return new(like, *shape, dtype=torch.float32 if like.dtype == torch.float32 else torch.int16)


def _forward_outputs(
    o: Tensor, b: Tensor, x: Tensor, gain: Tensor, shift: Tensor, end: Tensor, seed: Tensor | None, salt: int,
    p: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return new(x, *x.shape), kept_sum(o, *o.shape), new(x, x.shape[0], 2)


@kernel_op(_forward_outputs)
def residual_norm(
    o: Tensor, b: Tensor, x: Tensor, gain: Tensor, shift: Tensor, end: Tensor, seed: Tensor | None, salt: int,
    p: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """LayerNorm(x + Dropout(o + b)), zero at rows that are not real.

    Args:
        o: (N, P) half rows in the compute dtype, the sublayer's last matrix product without its bias.
        b: (D,) float32, that bias.
        x: (N, D) float32, the residual.
        gain, shift: (D,) float32, LayerNorm's.
        end: (N,) int32, as in `Segments`.
        seed: (1,) int64 for dropout; None: nothing is dropped.
        salt: distinguishes this dropout from others of the same seed.
        p: dropout probability.
        eps: LayerNorm's.

    Returns:
        y (N, D) float32; for backward the sum with mean 0 and variance 1, (N, P), as int16 steps if o is in half
        precision, else float32; its 1/standard deviation before that, and the size of a step (float32: 1), (N, 2)
        float32.
    """
    y, normal, spread = outputs = _forward_outputs(o, b, x, gain, shift, end, seed, salt, p, eps)
    rows, width = x.shape
    config = _config(width)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(
        _forward_kernel, grid, o, b, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, rows,
        D=width, P=pitch(width), DROPOUT=seed is not None, config=config,
    )  # fmt: skip
    return outputs


def _backward_outputs(
    dy: Tensor, normal: Tensor, spread: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, width = dy.shape
    partial = new(dy, _blocks(rows, width, dy.device), 3, width)
    return new(dy, *dy.shape), new(normal, *normal.shape, dtype=dtype), partial


@kernel_op(_backward_outputs)
def residual_norm_backward(
    dy: Tensor, normal: Tensor, spread: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of `residual_norm`, from what it kept.

    Returns:
        The gradient of the sum, which is also that of x, (N, D) float32; the gradient of o, (N, P) in `dtype`; partial
        sums (blocks, 3, D) float32, whose sum over blocks is the gradients of gain, shift and b.
    """
    dz, do, partial = outputs = _backward_outputs(dy, normal, spread, gain, end, seed, salt, p, dtype)
    rows, width = dy.shape
    launch(
        _backward_kernel, (_blocks(rows, width, dy.device),),
        dy, normal, spread, gain, end, seed, salt, p, dz, do, partial, rows,
        D=width, P=pitch(width), DROPOUT=seed is not None, config=_backward_config(width, dy.device),
    )  # fmt: skip
    return outputs
