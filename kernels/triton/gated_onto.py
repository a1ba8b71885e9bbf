"""Backward of `gated_linear` back to its rows: both projections' gradients, and in the same kernel their product.

The feed-forward sublayer: dx = base + dv W_val + dg W_gate. The convolution sublayer, whose a is LayerNorm(x):
dx = base + LayerNorm'(dv W_val + dg W_gate). `base` is the gradient that reaches x through the residual.

Bytes: the kernel reads x, base (4 D a row each) and the gradient of u (2 F), and writes dv and dg (4 F), a (2 D), dx
(4 D) and, in the feed-forward, u (2 F), the four of them for weights' gradients. A kernel for the gate and another for
the product would read dv and dg again, 4 F, and with LayerNorm also write and read the product, 4 D, and read x again.

Tiling: a block holds 64 whole rows of a in shared memory and of dx in accumulators, and walks over the hidden units, 32
at a time: one product gives v and g, side by side as their weights are, and one takes their gradients back. Both
products use the same tile of weights, which is loaded once. 4 warps have 255 registers a thread and 108 KB of shared
memory, so two blocks share a multiprocessor: one computes its gate while the other's products run. The price is that
every block reads all weights from the second-level cache, 1 MB for 64 rows of preset L: modelled on an H100, this is
the longest of what the kernel waits for. 128 rows would halve that, but leave room for one block, whose products and
gate take turns.

LayerNorm's backward pass begins when the accumulators are complete, and takes 8 rows at a time. With x beside all of
them it would spill, so every second eight rows wait in dx's memory, and the others in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.gate import biased, gate_gradient
from astroco_fast.kernels.triton.gated_linear import gated_linear_backward
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.linear_onto import linear_onto
from astroco_fast.kernels.triton.norm_backward import norm_backward, store_gradient, store_sums
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import holds, part_of_rows


@triton.jit
def _of_eight_rows(
    total, for_gain, for_shift, x, gain, mean, rstd, end, base, dx, start, rows, D: tl.constexpr, P: tl.constexpr
):
    """dx = base + LayerNorm'(total) for eight rows, and with theirs the sums for gain and shift, still row by row."""
    row = start + tl.arange(0, 8)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.load(mean + row, mask=real, other=0.0)
    rstds = tl.load(rstd + row, mask=real, other=0.0)
    column = tl.arange(0, P)
    unit = (part_of_rows(x, row, real, column, D) - means[:, None]) * rstds[:, None]
    scaled = total * tl.load(gain + column, mask=column < D, other=0.0)[None, :]
    slope = tl.sum(scaled, 1) / D
    tilt = tl.sum(scaled * unit, 1) / D
    store_gradient(base, dx, scaled, unit, slope, tilt, rstds, row, inside, real, 0, D, P)
    return for_gain + total * unit, for_shift + total


@triton.jit
def _norm_gradient(
    total, x, gain, mean, rstd, end, base, dx, of_norm, rows, D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr
):
    """dx = base + LayerNorm'(total) for the block's rows, and the sums for gain and shift."""
    row = tl.arange(0, BLOCK_R)
    column = tl.arange(0, P)
    waits = (row < rows) & (row % 16 >= 8)
    tl.store(dx + row[:, None] * D + column[None, :], total, mask=waits[:, None] & (column < D)[None, :])
    kept, _ = tl.split(tl.permute(tl.reshape(total, [4, 2, 8, P]), [0, 2, 3, 1]))
    even, odd = tl.split(tl.reshape(tl.permute(kept, [1, 2, 0]), [8, P, 2, 2]))
    for_gain = tl.zeros([8, P], tl.float32)
    for_shift = tl.zeros([8, P], tl.float32)
    t, u = tl.split(even)
    for_gain, for_shift = _of_eight_rows(t, for_gain, for_shift, x, gain, mean, rstd, end, base, dx, 0, rows, D, P)
    for_gain, for_shift = _of_eight_rows(u, for_gain, for_shift, x, gain, mean, rstd, end, base, dx, 32, rows, D, P)
    t, u = tl.split(odd)
    for_gain, for_shift = _of_eight_rows(t, for_gain, for_shift, x, gain, mean, rstd, end, base, dx, 16, rows, D, P)
    for_gain, for_shift = _of_eight_rows(u, for_gain, for_shift, x, gain, mean, rstd, end, base, dx, 48, rows, D, P)
    tl.debug_barrier()
    for start in tl.range(8, BLOCK_R, 16):
        eight = start + tl.arange(0, 8)
        waiting = part_of_rows(dx, eight, eight < rows, column, D)
        tl.debug_barrier()  # in narrow rows several threads read a number that one of them now overwrites
        for_gain, for_shift = _of_eight_rows(
            waiting, for_gain, for_shift, x, gain, mean, rstd, end, base, dx, start, rows, D, P
        )
    store_sums(for_gain, for_shift, of_norm, 0, D, P)


@triton.jit(repr=named("gated_onto_backward", GELU=("glu", "gelu")), do_not_specialize=["rows", "features"])
def _kernel(
    x, gain, shift, mean, rstd, w, b_val, b_gate, end, upstream, base, d, u, a, dx, partial, of_norm, rows, features,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = w.dtype.element_ty
    # Rows are counted from the block's first one, in 32 bits: 64-bit offsets take registers, and there are none left.
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    x += first * D
    end += first
    upstream += first * F
    base += first * D
    d += first * (2 * F)
    if GELU:
        u += first * F
    a += first * P
    dx += first * D
    partial += tl.program_id(0).to(tl.int64) * (2 * F)
    row = tl.arange(0, BLOCK_R)
    left = rows - tl.program_id(0) * BLOCK_R
    inside = row < left
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, P)
    z = part_of_rows(x, row, real, column, D)
    if NORM:
        mean += first
        rstd += first
        means = tl.load(mean + row, mask=real, other=0.0)
        rstds = tl.load(rstd + row, mask=real, other=0.0)
        gains = tl.load(gain + column, mask=column < D, other=0.0)
        shifts = tl.load(shift + column, mask=column < D, other=0.0)
        z = (z - means[:, None]) * rstds[:, None] * gains[None, :] + shifts[None, :]
        z = tl.where(real[:, None] & (column < D)[None, :], z, 0.0)
    own = a + row[:, None] * P + column[None, :]
    tl.store(own, z.to(compute), mask=inside[:, None])
    tl.debug_barrier()
    # Rows that come from a load are read by the products where they are, in shared memory; computed ones would go
    # through registers.
    rows_of_a = tl.load(own, mask=inside[:, None], other=0.0)
    # If the compiler knew that these are zeros, it would wait after every instruction of a product.
    total = rows_of_a.to(tl.float32) * 0.0 if NORM else part_of_rows(base, row, real, column, D)
    both = tl.arange(0, 2 * BLOCK_F)
    for start in range(0, features, BLOCK_F):  # features is F, lest the loop be unrolled
        feature = start + tl.arange(0, BLOCK_F)
        at = both // BLOCK_F * F + start + both % BLOCK_F
        weights = tl.load(w + at[:, None] * P + column[None, :])
        arrived = tl.load(upstream + row[:, None] * F + feature[None, :], mask=real[:, None], other=0.0).to(tl.float32)
        vg = tl.dot(rows_of_a, tl.trans(weights), input_precision=PRECISION)
        v, g = tl.split(vg.reshape([BLOCK_R, 2, BLOCK_F]).permute(0, 2, 1))
        v, g = biased(v, g, b_val, b_gate, feature, WIDTH)
        gated, for_v, for_g = gate_gradient(v, g, GELU, compute != tl.float32)
        slopes = tl.join(arrived * for_v, arrived * for_g).permute(0, 2, 1).reshape([BLOCK_R, 2 * BLOCK_F])
        tl.store(partial + at, tl.sum(slopes, 0))
        slopes = slopes.to(compute)
        tl.store(d + row[:, None] * (2 * F) + at[None, :], slopes, mask=inside[:, None])
        if GELU:
            gated = tl.where(real[:, None], gated, 0.0)
            tl.store(u + row[:, None] * F + feature[None, :], gated.to(compute), mask=inside[:, None])
        total = tl.dot(slopes, weights, total, input_precision=PRECISION)
    if NORM:
        of_norm += tl.program_id(0) * (2 * D)
        _norm_gradient(total, x, gain, mean, rstd, end, base, dx, of_norm, left, D, P, BLOCK_R)
    else:
        tl.store(dx + row[:, None] * D + column[None, :], total, mask=inside[:, None] & (column < D)[None, :])


def _config() -> Config:
    return Config({"BLOCK_R": 64, "BLOCK_F": 32}, warps=4, stages=2)


def fits(weight: Tensor, width: int) -> bool:
    """Whether the kernel fits the GPU. At D = 276 there are no registers for the 32 columns beyond 256."""
    return holds(weight, width) and not split(width)[1]


def _outputs(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, w: Tensor, b_val: Tensor,
    b_gate: Tensor, end: Tensor, upstream: Tensor, base: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (rows, width), (both, depth) = x.shape, w.shape
    blocks = cdiv(rows, _config().blocks["BLOCK_R"])
    u = new(w, rows, both // 2) if activation == "gelu" else new(w, 0)
    of_norm = new(x, 0 if gain is None else blocks, 2, width)
    return new(w, rows, both), u, new(w, rows, depth), new(x, rows, width), new(x, blocks, 2, both // 2), of_norm


@kernel_op(_outputs)
def gated_linear_onto(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, w: Tensor, b_val: Tensor,
    b_gate: Tensor, end: Tensor, upstream: Tensor, base: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`input_gradient` in one kernel, for weights and widths that `fits`.

    Returns:
        The gradients of v and g side by side, (N, 2F) half rows; u, (N, F) half rows, empty for "glu"; a, (N, P)
        half rows; dx, (N, D) float32, zero at rows that are not real; partial sums (blocks, 2, F) and (blocks, 2, D)
        float32, whose sums over blocks are the gradients of b_val and b_gate, and of gain and shift (no blocks if
        there is no gain).
    """
    d, u, a, dx, partial, of_norm = outputs = _outputs(
        x, gain, shift, mean, rstd, w, b_val, b_gate, end, upstream, base, activation
    )
    (rows, width), (both, depth) = x.shape, w.shape
    config = _config()
    launch(
        _kernel, (cdiv(rows, config.blocks["BLOCK_R"]),),
        x, gain, shift, mean, rstd, w, b_val, b_gate, end, upstream, base, d, u, a, dx, partial, of_norm,
        rows, both // 2, WIDTH=b_val.shape[0], D=width, P=depth, F=both // 2, NORM=gain is not None,
        GELU=activation == "gelu", PRECISION=dot_precision(x), config=config,
    )  # fmt: skip
    return outputs


def input_gradient(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, w: Tensor, b_val: Tensor,
    b_gate: Tensor, end: Tensor, upstream: Tensor, base: Tensor, activation: str, kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradient of x through `gated_linear` and past it, and what the gradients of its parameters are made of.

    Args:
        w: (2F, P) in the compute dtype, W_val above W_gate.
        upstream: the gradient of u, (N, F) half rows.
        base: the gradient that reaches x past `gated_linear`, (N, D) float32.
        others: as for `gated_linear_backward`.

    Returns:
        As `gated_linear_onto`.
    """
    if kept is None and fits(w, x.shape[1]):
        return gated_linear_onto(x, gain, shift, mean, rstd, w, b_val, b_gate, end, upstream, base, activation)
    d, u, a, of_biases = gated_linear_backward(
        x, gain, shift, mean, rstd, *w.chunk(2), b_val, b_gate, end, upstream, activation, kept
    )
    if gain is None:
        return d, u, a, linear_onto(base, [d], w, end), of_biases, x.new_empty(0)
    dx, of_norm = norm_backward(torch.mm(d, w), base, x, gain, mean, rstd, end)
    return d, u, a, dx, of_biases, of_norm
