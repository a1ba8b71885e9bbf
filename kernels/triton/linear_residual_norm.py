"""The end of a sublayer in inference: y = LayerNorm(x + a W^T + b), the matrix product included.

The kernel reads a (N, K) and W (P, K) in half precision and x (N, D), and writes y (N, D): 2 K + 8 D bytes a row. The
product, which would take 4 P bytes a row to write and read again, never leaves the accumulators.

Tiling: a block owns whole rows, since LayerNorm needs their mean and variance, and walks along K in chunks. Rows whose
pitch is no power of two have two accumulators, a main one and a tail (D = 276: 256 and 32 columns), because one of 512
would leave half of the tensor cores' work unused. Every block reads W from the second-level cache, 131 KB at
D = K = 256: for 51,200 rows in blocks of 64 that is 105 MB, beside 131 MB of all else, and at K = 1024 419 MB. So
blocks have as many rows as their registers hold: 128 on sm_90 at D = 256, else 64. After the product, the main columns
are taken in two halves, each with its residual, so that fewer registers are in use at once; in one piece, 128 rows
spill.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.tensors import dot_precision, split


@triton.jit
def _product(
    a, w, row, column, real, depth,
    P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns of a W^T, [BLOCK_R, BLOCK_C] float32. `depth` is K as a run-time number, lest the loop be unrolled."""
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(a + row[:, None] * K + k[None, :], mask=real[:, None] & (k < K)[None, :], other=0.0)
        at = w + column[None, :] * K + k[:, None]
        right = tl.load(at, mask=(column < P)[None, :] & (k < K)[:, None], other=0.0) if MASKED else tl.load(at)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def summed(product, b, x, row, column, real, D: tl.constexpr):
    """product + b + x where the row is real and the column exists, else 0."""
    here = real[:, None] & (column < D)[None, :]
    biases = tl.load(b + column, mask=column < D, other=0.0)
    residual = tl.load(x + row[:, None] * D + column[None, :], mask=here, other=0.0)
    return tl.where(here, product + biases[None, :] + residual, 0.0)


@triton.jit
def store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D: tl.constexpr):
    gains = tl.load(gain + column, mask=column < D, other=0.0)
    shifts = tl.load(shift + column, mask=column < D, other=0.0)
    normal = (z - means[:, None]) * rstds[:, None] * gains[None, :] + shifts[None, :]
    here = inside[:, None] & (column < D)[None, :]
    tl.store(y + row[:, None] * D + column[None, :], tl.where(real[:, None], normal, 0.0), mask=here)


@triton.jit
def squares_about(z, means, column, D: tl.constexpr):
    deviation = tl.where((column < D)[None, :], z - means[:, None], 0.0)
    return tl.sum(deviation * deviation, 1)


@triton.jit(repr=named("linear_residual_norm_inference"), do_not_specialize=["rows", "depth"])
def _kernel(
    a, w, b, x, gain, shift, end, eps, y, rows, depth,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = (P != MAIN + TAIL) or (K % BLOCK_K != 0)
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, MAIN)
    product = _product(a, w, row, column, real, depth, P, K, PRECISION, MASKED, BLOCK_R, MAIN, BLOCK_K)
    if TAIL:
        # The tail has its own loop: Triton takes two products in one loop for a chain, and assigns whole rows of both
        # to every warp.
        last = MAIN + tl.arange(0, TAIL)
        z_tail = _product(a, w, row, last, real, depth, P, K, PRECISION, MASKED, BLOCK_R, TAIL, BLOCK_K)
        z_tail = summed(z_tail, b, x, row, last, real, D)
    # From here on the main columns are in two halves, so that the residual of one half at a time is in registers.
    z_0, z_1 = tl.split(tl.trans(tl.reshape(product, [BLOCK_R, 2, MAIN // 2]), [0, 2, 1]))
    column_0 = tl.arange(0, MAIN // 2)
    column_1 = MAIN // 2 + column_0
    z_0 = summed(z_0, b, x, row, column_0, real, D)
    z_1 = summed(z_1, b, x, row, column_1, real, D)
    means = tl.sum(z_0, 1) + tl.sum(z_1, 1)
    if TAIL:
        means += tl.sum(z_tail, 1)
    means = means / D
    squares = squares_about(z_0, means, column_0, D) + squares_about(z_1, means, column_1, D)
    if TAIL:
        squares += squares_about(z_tail, means, last, D)
    rstds = reciprocal_deviations(squares, D, eps)
    store_normalised(z_0, means, rstds, gain, shift, y, row, column_0, inside, real, D)
    store_normalised(z_1, means, rstds, gain, shift, y, row, column_1, inside, real, D)
    if TAIL:
        store_normalised(z_tail, means, rstds, gain, shift, y, row, last, inside, real, D)


# The most columns (main and tail) that a block of 64 rows has without local loads and stores. In half precision,
# registers a thread and shared memory:
#
# | | D = 64, 4 warps | D = 256, 8 warps | D = 276, 8 warps |
# |---|---|---|---|
# | sm_80, sm_86 | 112, 16 KB | 186, 40 KB | 220, 20 KB |
# | sm_90 | 80, 32 KB | 122, 128 KB (128 rows, 16 warps) | 196, 64 KB |
# | sm_100 | 108, 32 KB | 206, 80 KB | 186, 40 KB |
# | sm_120 | 106, 16 KB | 186, 40 KB | 216, 20 KB |
#
# 128 rows would spill at D = 276 and on the other architectures. On sm_100 16 warps would compile to mma.sync.
_COLUMNS = 288


def _config(rows: int, w: Tensor, width: int) -> Config:
    main, tail = split(width)
    tiles = {"MAIN": main, "TAIL": tail}
    if w.dtype == torch.float32 or main + tail > _COLUMNS:
        half = w.dtype != torch.float32
        blocks = {"BLOCK_R": 16, "BLOCK_K": 64 if half else 32, **tiles}
        return Config(blocks, warps=8 if main >= 256 else 4, stages=2)
    on = architecture(w.device)
    # Rows of less than a wave of blocks of 64 have these: by `bench.roofline` 7 us for 12 at D = 256.
    if on.name == "sm_90" and (main, tail) == (256, 0) and rows > 64 * on.multiprocessors:
        return Config({"BLOCK_R": 128, "BLOCK_K": 64, **tiles}, warps=16, stages=2)
    # Steps of 64 beside a tail would need a mask, since 288 is no multiple of 64.
    return Config({"BLOCK_R": 64, "BLOCK_K": 32 if tail else 64, **tiles}, warps=8 if main > 64 else 4, stages=2)


def _outputs(
    a: Tensor, w: Tensor, b: Tensor, x: Tensor, gain: Tensor, shift: Tensor, end: Tensor, eps: float
) -> Tensor:
    return new(x, *x.shape)


@kernel_op(_outputs)
def linear_residual_norm(
    a: Tensor, w: Tensor, b: Tensor, x: Tensor, gain: Tensor, shift: Tensor, end: Tensor, eps: float
) -> Tensor:
    """LayerNorm(x + a W^T + b), zero at rows that are not real.

    Args:
        a: (N, K) half rows in the compute dtype; rows that are not real may have any values.
        w: (P, K) in the compute dtype, zero from row D on.
        b: (D,) float32.
        x: (N, D) float32, the residual.
        gain, shift: (D,) float32, LayerNorm's.
        end: (N,) int32, as in `Segments`.
        eps: LayerNorm's.

    Returns:
        (N, D) float32.
    """
    y = _outputs(a, w, b, x, gain, shift, end, eps)
    rows, width = x.shape
    config = _config(rows, w, width)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(
        _kernel, grid, a, w, b, x, gain, shift, end, eps, y, rows, a.shape[1],
        D=width, P=pitch(width), K=a.shape[1], PRECISION=dot_precision(a), config=config,
    )  # fmt: skip
    return y
