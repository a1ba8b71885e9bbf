"""A sublayer's end in training with its product, y = LayerNorm(x + Dropout(o + b)), o = s W^T, in one kernel each way.

In the convolution sublayer s = SiLU(BatchNorm(c)), which forward computes as it reads c and never writes.

Bytes: forward reads s or c (2 K a row) and x (4 D), and writes the normalised sum (2 P, for backward) and y (4 D).
Backward reads dy (4 D) and the normalised sum (2 P), and writes the gradients of the sum (4 D), of o (2 P, for W's
gradient) and of s (2 K). Products of the library would write or read o, or its gradient, once more, and be launches of
their own; so would BatchNorm and SiLU, which write s and read it.

Tiling: a block owns 64 rows. Forward holds those of s and walks over the columns of W, 32 at a time, and puts o where
the normalised sum will be; then it reads o again, which the caches have, and takes it through LayerNorm 4 rows at a
time, as residual_norm.py does. Backward begins with LayerNorm and ends with the product. Three blocks of 4 warps share
a multiprocessor, so that one reads rows while another's products run. Each block reads all of W, 128 KB at D = 256,
from the second-level cache, a third of what the rows take; the W_out of the feed-forward is four times as large, and
two launches are expected to be as fast there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.batch_norm import batch_norm_silu
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.linear_residual_norm import squares_about, store_normalised
from astroco_fast.kernels.triton.residual_norm import (
    furthest,
    kept_sum,
    residual_norm,
    residual_norm_backward,
    store_gradients,
    store_spread,
    store_sums,
    store_unit,
    summed,
    upstream_of,
)
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import holds, transposed


@triton.jit
def _rows_of_s(s, statistics, scale, offset, row, real, here, k, D: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr):
    """Columns k of a block's rows of s, or of SiLU(BatchNorm(c)) as batch_norm.py computes it."""
    rows_of_s = tl.load(s + row[:, None] * K + k[None, :], mask=here[:, None], other=0.0)
    if SILU:
        mean = tl.load(statistics + k)
        rstd = tl.load(statistics + 3 * K + k)
        scales = tl.load(scale + k, mask=k < D, other=0.0)
        offsets = tl.load(offset + k, mask=k < D, other=0.0)
        n = (rows_of_s.to(tl.float32) - mean[None, :]) * rstd[None, :] * scales[None, :] + offsets[None, :]
        rows_of_s = tl.where(real[:, None], n * tl.sigmoid(n), 0.0)
    return rows_of_s


@triton.jit
def norm_of_rows(
    o, b, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, first, rows,
    D: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_R: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """LayerNorm(x + Dropout(o + b)) for a block's rows, which begin with `first`; o and `normal` are one memory."""
    for start in range(0, BLOCK_R, STEP):
        row = first + start + tl.arange(0, STEP)
        inside = row < rows
        real = tl.load(end + row, mask=inside, other=0) > 0
        z = summed(o, b, x, row, real, 0, seed, salt, p, D, P, DROPOUT, STEP, P)
        means = tl.sum(z, 1) / D
        column = tl.arange(0, P)
        rstds = reciprocal_deviations(squares_about(z, means, column, D), D, eps)
        factors = store_spread(furthest(z, means, column, D), rstds, spread, row, inside, normal.dtype.element_ty)
        tl.debug_barrier()  # o may be read by other threads than those that now overwrite it
        store_unit(z, means, factors, normal, row, column, inside, real, D, P)
        store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D)


@triton.jit(
    repr=named("product_residual_norm_forward", SILU=("", "silu"), DROPOUT=("", "dropout")),
    do_not_specialize=["salt", "rows", "columns"],
)
def _forward_kernel(
    s, statistics, scale, offset, w, b, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, rows, columns,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    held = tl.arange(0, BLOCK_R)
    here = held < rows - tl.program_id(0) * BLOCK_R
    filled = tl.load(end + first + held, mask=here, other=0) > 0
    s += first * K
    k = tl.arange(0, K // 2)
    left = _rows_of_s(s, statistics, scale, offset, held, filled, here, k, D, K, SILU).to(w.dtype.element_ty)
    second = K // 2 + k
    right = _rows_of_s(s, statistics, scale, offset, held, filled, here, second, D, K, SILU).to(w.dtype.element_ty)
    o = normal.to(tl.pointer_type(w.dtype.element_ty), bitcast=True)
    for start in range(0, columns, BLOCK_F):  # columns is P, lest the loop be unrolled
        column = start + tl.arange(0, BLOCK_F)
        product = tl.dot(left, transposed(w, column, k, K, P, False), input_precision=PRECISION)
        product = tl.dot(right, transposed(w, column, second, K, P, False), product, input_precision=PRECISION)
        at = o + first * P + held[:, None] * P + column[None, :]
        tl.store(at, product.to(o.dtype.element_ty), mask=here[:, None])
    tl.debug_barrier()
    norm_of_rows(
        o, b, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, first, rows, D, P, DROPOUT, BLOCK_R, STEP
    )


@triton.jit(
    repr=named("residual_norm_product_backward", DROPOUT=("", "dropout")), do_not_specialize=["salt", "rows", "columns"]
)
def _kernel(
    dy, normal, spread, gain, end, seed, salt, p, w, dz, do, ds, partial, rows, columns,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    for_gain = tl.zeros([STEP, P], tl.float32)
    for_shift = tl.zeros([STEP, P], tl.float32)
    for_b = tl.zeros([STEP, P], tl.float32)
    for start in range(0, BLOCK_R, STEP):
        row = first + start + tl.arange(0, STEP)
        inside = row < rows
        real = tl.load(end + row, mask=inside, other=0) > 0
        rstds = tl.load(spread + 2 * row, mask=inside, other=0.0)
        steps = tl.load(spread + 2 * row + 1, mask=inside, other=0.0)
        upstream, pulled, unit, scale = upstream_of(
            dy, normal, steps, gain, row, real, 0, seed, salt, p, D, P, DROPOUT, STEP, P
        )
        for_gain += upstream * unit
        for_shift += upstream
        pulled -= (tl.sum(pulled, 1) / D)[:, None]
        tilt = tl.sum(pulled * unit, 1) / D
        for_b += store_gradients(pulled, unit, scale, tilt, rstds, dz, do, row, inside, real, 0, D, P, P)
    store_sums(for_gain, for_shift, for_b, partial + tl.program_id(0).to(tl.int64) * 3 * D, 0, D, P)
    tl.debug_barrier()
    do += first * P
    ds += first * K
    here = (tl.arange(0, BLOCK_R) < rows - tl.program_id(0) * BLOCK_R)[:, None]
    held = tl.arange(0, BLOCK_R)[:, None]
    depth = tl.arange(0, P)
    rows_of_do = tl.load(do + held * P + depth[None, :], mask=here, other=0.0)
    for start in range(0, columns, BLOCK_F):  # columns is K, lest the loop be unrolled
        column = start + tl.arange(0, BLOCK_F)[None, :]
        product = tl.dot(rows_of_do, tl.load(w + depth[:, None] * K + column), input_precision=PRECISION)
        tl.store(ds + held * K + column, product.to(ds.dtype.element_ty), mask=here)


# 4 rows at a time are 8 values of a tile a thread.
_FORWARD = Config({"BLOCK_R": 128, "BLOCK_F": 32, "STEP": 8}, warps=8, stages=2)
_BACKWARD = Config({"BLOCK_R": 64, "BLOCK_F": 32, "STEP": 4}, warps=4, stages=2)


def _forward_outputs(
    s: Tensor, statistics: Tensor | None, scale: Tensor | None, offset: Tensor | None, w: Tensor, b: Tensor, x: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows = x.shape[0]
    return new(x, *x.shape), kept_sum(s, rows, w.shape[0]), new(x, rows, 2)


@kernel_op(_forward_outputs)
def product_residual_norm(
    s: Tensor, statistics: Tensor | None, scale: Tensor | None, offset: Tensor | None, w: Tensor, b: Tensor, x: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`sublayer_end` in one kernel, for weights and widths that `fits`."""
    y, normal, spread = outputs = _forward_outputs(
        s, statistics, scale, offset, w, b, x, gain, shift, end, seed, salt, p, eps
    )
    (rows, width), (columns, depth) = x.shape, w.shape
    launch(
        _forward_kernel, (cdiv(rows, _FORWARD.blocks["BLOCK_R"]),),
        s, statistics, scale, offset, w, b, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, rows, columns,
        D=width, P=columns, K=depth, SILU=statistics is not None, DROPOUT=seed is not None,
        PRECISION=dot_precision(x), config=_FORWARD,
    )  # fmt: skip
    return outputs


def _outputs(
    dy: Tensor, normal: Tensor, spread: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    w: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, width = dy.shape
    partial = new(dy, cdiv(rows, _BACKWARD.blocks["BLOCK_R"]), 3, width)
    return new(dy, rows, width), new(w, *normal.shape), new(w, rows, w.shape[1]), partial


@kernel_op(_outputs)
def residual_norm_product_backward(
    dy: Tensor, normal: Tensor, spread: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    w: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`end_gradients` in one kernel, for weights and widths that `fits`."""
    dz, do, ds, partial = outputs = _outputs(dy, normal, spread, gain, end, seed, salt, p, w)
    (rows, width), (depth, columns) = dy.shape, w.shape
    launch(
        _kernel, (cdiv(rows, _BACKWARD.blocks["BLOCK_R"]),),
        dy, normal, spread, gain, end, seed, salt, p, w, dz, do, ds, partial, rows, columns,
        D=width, P=depth, K=columns, DROPOUT=seed is not None, PRECISION=dot_precision(dy), config=_BACKWARD,
    )  # fmt: skip
    return outputs


def fits(weight: Tensor, width: int) -> bool:
    """Whether the kernels fit the GPU, and are expected to be faster than two launches."""
    return holds(weight, width) and weight.shape[0] == weight.shape[1] and not split(width)[1]


def sublayer_end(
    s: Tensor, w: Tensor, b: Tensor, x: Tensor, gain: Tensor, shift: Tensor, end: Tensor, seed: Tensor | None,
    salt: int, p: float, eps: float, batch_norm: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """LayerNorm(x + Dropout(s W^T + b)), zero at rows that are not real.

    Args:
        s: (N, K) half rows, finite; with `batch_norm`, that before BatchNorm and SiLU.
        w: (P, K) in the compute dtype.
        batch_norm: statistics, scale and offset as for `batch_norm_silu`; None: there is no BatchNorm.
        others: as for `residual_norm`.

    Returns:
        As `residual_norm`.
    """
    if fits(w, x.shape[1]):
        norm = (None, None, None) if batch_norm is None else batch_norm
        return product_residual_norm(s, *norm, w, b, x, gain, shift, end, seed, salt, p, eps)
    if batch_norm is not None:
        s = batch_norm_silu(s, *batch_norm, end)
    return residual_norm(torch.mm(s, w.t()), b, x, gain, shift, end, seed, salt, p, eps)


def end_gradients(
    dy: Tensor, normal: Tensor, spread: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    w: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of `sublayer_end` up to s.

    Args:
        w: (P, K) in the compute dtype.
        others: as for `residual_norm_backward`.

    Returns:
        The gradients of the sum (N, D), float32, of o (N, P) and of s (N, K), half rows; partial sums (blocks, 3, D)
        float32, whose sum over blocks is the gradients of gain, shift and b.
    """
    if fits(w, dy.shape[1]):
        return residual_norm_product_backward(dy, normal, spread, gain, end, seed, salt, p, w)
    dz, do, partial = residual_norm_backward(dy, normal, spread, gain, end, seed, salt, p, w.dtype)
    return dz, do, torch.mm(do, w), partial
