"""The kernels of `gated_linear` that hold whole rows: a block keeps its rows of a and walks over column tiles.

A block reads its rows of x once, computes LayerNorm's statistics in registers, and keeps a in half precision where the
products read it: in shared memory for wgmma and tcgen05. Per column tile it reads the two weights' tiles alone. A block
of one column tile (gated_linear.py) would read its rows again, in float32, and convert and normalise them again. At 128
rows, D = 256 and 1024 columns a block has 64 KB of a, and the weights' tiles pass through twice 64 KB.

Forward computes v and g by one product, whose columns are eight of W_val and eight of W_gate in turn (`gate.apart`):
shared memory then feeds the rows of a to the tensor cores once, not twice. Backward has two products.

SPLIT blocks share a row tile and take turns in its column tiles, so that the last wave of blocks is shorter.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.gate import apart, biased, gate, gate_gradient
from astroco_fast.kernels.triton.launch import Config, architecture, named
from astroco_fast.kernels.triton.tensors import split
from astroco_fast.kernels.triton.whole_rows import holds, part_of_rows, transposed


@triton.jit
def _normalised(z, means, rstds, gain, shift, real, column, D: tl.constexpr):
    gains = tl.load(gain + column, mask=column < D, other=0.0)
    shifts = tl.load(shift + column, mask=column < D, other=0.0)
    normal = (z - means[:, None]) * rstds[:, None] * gains[None, :] + shifts[None, :]
    return tl.where(real[:, None] & (column < D)[None, :], normal, 0.0)


@triton.jit
def _squares(z, means, column, D: tl.constexpr):
    deviation = tl.where((column < D)[None, :], z - means[:, None], 0.0)
    return tl.sum(deviation * deviation, 1)


@triton.jit
def _columns(at, there, column, P: tl.constexpr, MASKED: tl.constexpr):
    """[column, row] of a transposed weight; `at` are the addresses of its rows, `there` says which exist."""
    at = at[None, :] + column[:, None]
    return tl.load(at, mask=there[None, :] & (column < P)[:, None], other=0.0) if MASKED else tl.load(at)


@triton.jit(repr=named("gated_rows_forward", GELU=("glu", "gelu")), do_not_specialize=["rows", "features"])
def forward_kernel(
    x, gain, shift, eps, w_val, w_gate, b_val, b_gate, end, u, mean, rstd, rows, features,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr,
    PRECISION: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = (P != MAIN + TAIL) or (F % BLOCK_F != 0)
    compute: tl.constexpr = w_val.dtype.element_ty
    part = tl.program_id(0) % SPLIT
    row = (tl.program_id(0) // SPLIT).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, MAIN)
    z = part_of_rows(x, row, real, column, D)
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        z_tail = part_of_rows(x, row, real, last, D)
    if NORM:
        means = tl.sum(z, 1)
        if TAIL:
            means += tl.sum(z_tail, 1)
        means = means / D
        squares = _squares(z, means, column, D)
        if TAIL:
            squares += _squares(z_tail, means, last, D)
        rstds = reciprocal_deviations(squares, D, eps)
        leading = tl.where(part == 0, inside, False)  # Triton 3.9 makes whole numbers of a block & a scalar
        tl.store(mean + row, means, mask=leading)
        tl.store(rstd + row, rstds, mask=leading)
        z = _normalised(z, means, rstds, gain, shift, real, column, D)
        if TAIL:
            z_tail = _normalised(z_tail, means, rstds, gain, shift, real, last, D)
    a = z.to(compute)
    if TAIL:
        a_tail = z_tail.to(compute)
    pair = tl.arange(0, 2 * BLOCK_F)  # columns of one product, as `apart` takes them
    unit = pair // 16 * 8 + pair % 8
    weight = tl.where(pair // 8 % 2 == 0, w_val, w_gate) + unit * P
    for start in range(part * BLOCK_F, features, SPLIT * BLOCK_F):  # features is F, lest the loop be unrolled
        feature = start + tl.arange(0, BLOCK_F)
        at, there = weight + start * P, start + unit < F
        both = tl.dot(a, _columns(at, there, column, P, MASKED), input_precision=PRECISION)
        if TAIL:
            both = tl.dot(a_tail, _columns(at, there, last, P, MASKED), both, input_precision=PRECISION)
        v, g = apart(both, BLOCK_R, BLOCK_F)
        v, g = biased(v, g, b_val, b_gate, feature, WIDTH)
        gated = tl.where(real[:, None], gate(v, g, GELU, compute != tl.float32), 0.0)
        stored = inside[:, None] & (feature < F)[None, :] if MASKED else inside[:, None]
        tl.store(u + row[:, None] * F + feature[None, :], gated.to(compute), mask=stored)


@triton.jit(repr=named("gated_rows_backward", GELU=("glu", "gelu")), do_not_specialize=["rows", "features"])
def backward_kernel(
    x, gain, shift, mean, rstd, w_val, w_gate, b_val, b_gate, end, upstream, d, u, a_copy, partial, rows, features,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr,
    PRECISION: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = (P != MAIN + TAIL) or (F % BLOCK_F != 0)
    compute: tl.constexpr = w_val.dtype.element_ty
    part = tl.program_id(0) % SPLIT
    tile = tl.program_id(0) // SPLIT
    row = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    leading = tl.where(part == 0, inside, False)
    column = tl.arange(0, MAIN)
    z = part_of_rows(x, row, real, column, D)
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        z_tail = part_of_rows(x, row, real, last, D)
    if NORM:
        means = tl.load(mean + row, mask=inside, other=0.0)
        rstds = tl.load(rstd + row, mask=inside, other=0.0)
        z = _normalised(z, means, rstds, gain, shift, real, column, D)
        if TAIL:
            z_tail = _normalised(z_tail, means, rstds, gain, shift, real, last, D)
    a = z.to(compute)
    tl.store(a_copy + row[:, None] * P + column[None, :], a, mask=leading[:, None])
    if TAIL:
        a_tail = z_tail.to(compute)
        tl.store(a_copy + row[:, None] * P + last[None, :], a_tail, mask=leading[:, None] & (last < P)[None, :])
    partial += tile.to(tl.int64) * 2 * F
    for start in range(part * BLOCK_F, features, SPLIT * BLOCK_F):
        feature = start + tl.arange(0, BLOCK_F)
        stored = inside[:, None] & (feature < F)[None, :] if MASKED else inside[:, None]
        here = real[:, None] & (feature < F)[None, :] if MASKED else real[:, None]
        arrived = tl.load(upstream + row[:, None] * F + feature[None, :], mask=here, other=0.0).to(tl.float32)
        v = tl.dot(a, transposed(w_val, feature, column, P, F, MASKED), input_precision=PRECISION)
        g = tl.dot(a, transposed(w_gate, feature, column, P, F, MASKED), input_precision=PRECISION)
        if TAIL:
            v = tl.dot(a_tail, transposed(w_val, feature, last, P, F, MASKED), v, input_precision=PRECISION)
            g = tl.dot(a_tail, transposed(w_gate, feature, last, P, F, MASKED), g, input_precision=PRECISION)
        v, g = biased(v, g, b_val, b_gate, feature, WIDTH)
        gated, for_v, for_g = gate_gradient(v, g, GELU, compute != tl.float32)
        dv = tl.where(here, arrived * for_v, 0.0)
        dg = tl.where(here, arrived * for_g, 0.0)
        at = d + row[:, None] * (2 * F) + feature[None, :]
        tl.store(at, dv.to(compute), mask=stored)
        tl.store(at + F, dg.to(compute), mask=stored)
        if GELU:
            gated = tl.where(here, gated, 0.0)
            tl.store(u + row[:, None] * F + feature[None, :], gated.to(compute), mask=stored)
        tl.store(partial + feature, tl.sum(dv, 0), mask=feature < F)
        tl.store(partial + F + feature, tl.sum(dg, 0), mask=feature < F)


def config(weight: Tensor, width: int, gelu: bool, rows: int | None) -> Config | None:
    """The tiling for a weight (F, P) in the compute dtype; None where a block cannot hold its rows, or should not.

    `rows` is their number in the forward pass; None stands for the backward pass.

    By `bench.roofline` (modelled, H100, 256 windows of 200), microseconds, of blocks that hold no rows and of these:

    | | D = 256 | D = 276 |
    |---|---|---|
    | feed-forward, forward | 175, 145 | 230, 197 |
    | feed-forward, backward | (gated_onto.py) | 552, 399 |
    | GLU, forward | 160, 55 | 171, 77 |

    At D = 276 column tiles of 64 would need 232 KB of shared memory. Narrow rows have tiles of 32, with which two
    blocks share a multiprocessor. So they do in the GLU, in blocks of 64 rows: in one of 128 LayerNorm and products
    take turns, 63 us at D = 256. At D = 276 64 rows spill. For a window of 200, four blocks a row tile of the GLU take
    7 us at D = 256 and 12 at D = 276, one block 11 and 20.
    """
    if not holds(weight, width):
        return None
    main, tail = split(width)
    block, features, parts = 128, 32 if tail else 64, 2
    if rows is not None and gelu:
        features = 64 if (main, tail) == (256, 0) else 32
    elif rows is not None:  # the GLU's few column tiles are worth reading the rows again where most blocks are idle
        block, features = 128 if tail else 64, 32
        parts = 4 if rows <= block * architecture(weight.device).multiprocessors // 4 else 1
    blocks = {"BLOCK_R": block, "BLOCK_F": features, "SPLIT": parts, "MAIN": main, "TAIL": tail}
    return Config(blocks, warps=block // 16, stages=2)
