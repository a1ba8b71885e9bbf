"""The end of a sublayer in inference: y = LayerNorm(x + a W^T + b), the matrix product included.

The kernel reads a (N, K) and W (P, K) in half precision and x (N, D), and writes y (N, D): 2 K + 8 D bytes a row. The
product, which would take 4 P bytes a row to write and read again, never leaves the accumulators.

Tiling: a block owns whole rows, since LayerNorm needs their mean and variance, and walks along K in chunks. Rows whose
pitch is no power of two have two accumulators, a main one and a tail (D = 276: 256 and 32 columns), because one of 512
would leave half of the tensor cores' work unused. Every block reads W from the second-level cache: 131 KB for 64 rows
at D = K = 256.
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
    z = _product(a, w, row, column, real, depth, P, K, PRECISION, MASKED, BLOCK_R, MAIN, BLOCK_K)
    z = summed(z, b, x, row, column, real, D)
    means = tl.sum(z, 1)
    if TAIL:
        # The tail has its own loop: Triton takes two products in one loop for a chain, and assigns whole rows of both
        # to every warp.
        last = MAIN + tl.arange(0, TAIL)
        z_tail = _product(a, w, row, last, real, depth, P, K, PRECISION, MASKED, BLOCK_R, TAIL, BLOCK_K)
        z_tail = summed(z_tail, b, x, row, last, real, D)
        means += tl.sum(z_tail, 1)
    means = means / D
    squares = squares_about(z, means, column, D)
    if TAIL:
        squares += squares_about(z_tail, means, last, D)
    rstds = reciprocal_deviations(squares, D, eps)
    store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D)
    if TAIL:
        store_normalised(z_tail, means, rstds, gain, shift, y, row, last, inside, real, D)


# Warps of a block of 64 rows, by architecture and width of the main tile. A warp group's product (wgmma, tcgen05) has
# at least 64 rows. On these two architectures they are also worth their registers, because blocks of 64 rows read W
# half as often: at 32 rows and D = 256 the second-level cache serves more bytes of W than memory serves of everything
# else. In half precision, without local loads and stores:
#
# | registers a thread, shared memory | D = 64 | D = 256 | D = 276 |
# |---|---|---|---|
# | sm_90 | 102, 32 KB | 111, 80 KB | 128, 64 KB |
# | sm_100 | 104, 32 KB | 245, 80 KB | 217, 64 KB |
#
# On sm_90 a block has 16 warps from D = 256 on: 8 spill at D = 276, and since one block fills a multiprocessor with
# either number, more warps hide more of the wait for memory. On sm_100 16 warps would compile to mma.sync. 128 rows,
# and D = 512, spill on both.
_WARPS = {"sm_90": {64: 4, 128: 8, 256: 16}, "sm_100": {64: 4, 128: 8, 256: 8}}
_COLUMNS = 288


def _config(w: Tensor, width: int) -> Config:
    main, tail = split(width)
    tiles = {"MAIN": main, "TAIL": tail}
    half = w.dtype != torch.float32
    warps = _WARPS.get(architecture(w.device).name, {}).get(main)
    if half and warps and main + tail <= _COLUMNS:
        # Steps of 64 beside a tail spill on sm_90, and would need a mask, since 288 is no multiple of 64.
        return Config({"BLOCK_R": 64, "BLOCK_K": 32 if tail else 64, **tiles}, warps, stages=2)
    # 32 rows, not 64: at D = 256 a thread then has 116 registers instead of 216, so two blocks share a multiprocessor
    # and one reads while the other normalises. The kernel waits for memory, and both blocks find W in the cache.
    rows = 32 if half and main <= 256 else 16
    return Config({"BLOCK_R": rows, "BLOCK_K": 64 if half else 32, **tiles}, warps=8 if main >= 256 else 4, stages=2)


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
    config = _config(w, width)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(
        _kernel, grid, a, w, b, x, gain, shift, end, eps, y, rows, a.shape[1],
        D=width, P=pitch(width), K=a.shape[1], PRECISION=dot_precision(a), config=config,
    )  # fmt: skip
    return y
