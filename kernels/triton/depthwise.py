"""The depthwise convolution over time: y[t] = sum_k w[k] x[t + k - K/2], within a window's real points.

Four kernels work on half rows (N, P). Bytes a row in half precision:
- Inference, with BatchNorm folded into taps and offset, then SiLU: reads u, writes s; 4 P.
- Training, with BatchNorm's statistics of c: reads u, writes c; 4 P, and 12 P a tile for the statistics.
- The gradient of the input, the same sum mirrored: reads dc, writes du; 4 P.
- The gradient of the taps: reads dc and u; 4 P.

Tiling: a block has a few whole memory sectors of channels and as many rows as its registers hold. The taps are (K, P),
so that a tap of neighbouring channels is one 16-byte load. The loop over them is not unrolled, because 32 unrolled taps
spill: each tap reads the tile again, shifted by a row, from the first-level cache, since Triton cannot shift a tile in
registers. The taps' gradient needs an accumulator a tap; a block has 8 of them and sweeps many row tiles, so that there
are few partial sums. It sweeps the same number of rows on every GPU, so every GPU adds them in the same order.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.launch import Config, launch

# Rows that one partial sum of the taps' gradient covers: at 32 taps the partial sums are 3 % of the traffic.
SWEEP = 1024


@triton.jit
def _convolved(
    source, taps, row, column, low, high,
    P: tl.constexpr, K: tl.constexpr, SIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[BLOCK_R, BLOCK_C] float32: sum over k of taps[k] * source[row + SIGN * (k - K/2)], rows in low .. high - 1."""
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for k in range(K):
        near = row + SIGN * (k - K // 2)
        here = (near >= low) & (near < high)
        value = tl.load(source + near[:, None] * P + column[None, :], mask=here[:, None], other=0.0).to(tl.float32)
        total += value * tl.load(taps + k * P + column)[None, :]
    return total


@triton.jit
def _tile(first, end, rows, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block's row tile, its rows and channels, and each row's range of neighbours (empty where it is not real)."""
    tile = (tl.program_id(0) // (P // BLOCK_C)).to(tl.int64)
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    low = tl.load(first + row, mask=row < rows, other=0)
    high = tl.load(end + row, mask=row < rows, other=0)
    return tile, row, column, low, high


@triton.jit(do_not_specialize=["rows"])
def _silu_kernel(
    u, taps, offset, first, end, s, rows,
    P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, row, column, low, high = _tile(first, end, rows, P, BLOCK_R, BLOCK_C)
    normal = _convolved(u, taps, row, column, low, high, P, K, 1, BLOCK_R, BLOCK_C)
    normal += tl.load(offset + column)[None, :]
    result = tl.where((high > 0)[:, None], normal * tl.sigmoid(normal), 0.0)
    tl.store(s + row[:, None] * P + column[None, :], result.to(s.dtype.element_ty), mask=(row < rows)[:, None])


@triton.jit(do_not_specialize=["rows"])
def _statistics_kernel(
    u, taps, first, end, c, count, partial, rows,
    P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, row, column, low, high = _tile(first, end, rows, P, BLOCK_R, BLOCK_C)
    rounded = _convolved(u, taps, row, column, low, high, P, K, 1, BLOCK_R, BLOCK_C).to(c.dtype.element_ty)
    tl.store(c + row[:, None] * P + column[None, :], rounded, mask=(row < rows)[:, None])
    value = rounded.to(tl.float32)
    real = (high > 0).to(tl.float32)
    n = tl.sum(real, 0)
    mean = tl.sum(value, 0) / tl.maximum(n, 1.0)
    deviation = (value - mean[None, :]) * real[:, None]
    at = partial + tile * 3 * P + column
    tl.store(count + tile, n, mask=tl.program_id(0) % (P // BLOCK_C) == 0)
    tl.store(at, mean)
    tl.store(at + P, tl.sum(deviation, 0) / tl.maximum(n, 1.0))
    tl.store(at + 2 * P, tl.sum(deviation * deviation, 0))


@triton.jit(do_not_specialize=["rows"])
def _input_gradient_kernel(
    dc, taps, first, end, du, rows,
    P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, row, column, low, high = _tile(first, end, rows, P, BLOCK_R, BLOCK_C)
    total = _convolved(dc, taps, row, column, low, high, P, K, -1, BLOCK_R, BLOCK_C)
    tl.store(du + row[:, None] * P + column[None, :], total.to(du.dtype.element_ty), mask=(row < rows)[:, None])


@triton.jit(do_not_specialize=["rows"])
def _tap_gradient_kernel(
    dc, u, first, end, partial, rows,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, SWEEP_TILES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # The taps are the grid's fastest index, so that the blocks that read the same rows run side by side.
    tap_blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    k = tl.program_id(0) % tap_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    column = tl.program_id(0) // tap_blocks % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    sweep = (tl.program_id(0) // (tap_blocks * (P // BLOCK_C))).to(tl.int64)
    total = tl.zeros([BLOCK_K, BLOCK_R, BLOCK_C], tl.float32)
    left = tl.cdiv(rows - sweep * (SWEEP_TILES * BLOCK_R), BLOCK_R)
    for tile in range(tl.minimum(left, SWEEP_TILES).to(tl.int32)):
        row = (sweep * SWEEP_TILES + tile) * BLOCK_R + tl.arange(0, BLOCK_R)
        low = tl.load(first + row, mask=row < rows, other=0)
        high = tl.load(end + row, mask=row < rows, other=0)
        upstream = tl.load(dc + row[:, None] * P + column[None, :], mask=(high > 0)[:, None], other=0.0).to(tl.float32)
        near = row[None, :] + (k[:, None] - K // 2)
        here = (near >= low[None, :]) & (near < high[None, :]) & (k < K)[:, None]
        at = u + near[:, :, None] * P + column[None, None, :]
        total += tl.load(at, mask=here[:, :, None], other=0.0).to(tl.float32) * upstream[None, :, :]
    at = partial + sweep * D * K + column[None, :] * K + k[:, None]
    tl.store(at, tl.sum(total, 1), mask=(k < K)[:, None] & (column < D)[None, :])


def columns(padded: int, most: int = 64) -> int:
    """The channels of a tile: the largest power of two that divides a half row, so that no lane is idle."""
    return min(padded & -padded, most)


def _config(rows: Tensor) -> Config:
    # 4096 elements for 4 warps are 4 loads of 16 bytes in flight a thread, and 6 blocks' registers fit a
    # multiprocessor. Float32 has 8 warps for 4 such loads a thread, since 4 warps' 8 loads spill on sm_80 and sm_120.
    block = columns(rows.shape[1])
    warps = 8 if rows.element_size() == 4 else 4
    return Config({"BLOCK_R": 4096 // block, "BLOCK_C": block}, warps, stages=1)


def _tap_config(taps: int) -> Config:
    # 8 taps of 32 rows of 32 channels are 64 sums a thread; more would leave no registers to load into.
    return Config({"BLOCK_K": min(8, triton.next_power_of_2(taps)), "BLOCK_R": 32, "BLOCK_C": 32}, warps=4, stages=1)


def _grid(rows: int, padded: int, config: Config) -> tuple[int]:
    return (cdiv(rows, config.blocks["BLOCK_R"]) * (padded // config.blocks["BLOCK_C"]),)


def _silu_outputs(u: Tensor, taps: Tensor, offset: Tensor, first: Tensor, end: Tensor) -> Tensor:
    return new(u, *u.shape)


@kernel_op(_silu_outputs)
def depthwise_silu(u: Tensor, taps: Tensor, offset: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """SiLU(conv(u) + offset), zero at rows that are not real.

    Args:
        u: (N, P) half rows.
        taps: (K, P) float32 with BatchNorm's scale folded in, zero in the pitch.
        offset: (P,) float32, the rest of BatchNorm, zero in the pitch.
        first, end: (N,) int32, as in `Segments`.

    Returns:
        (N, P) half rows.
    """
    s = _silu_outputs(u, taps, offset, first, end)
    rows, padded = u.shape
    config = _config(u)
    grid = _grid(rows, padded, config)
    launch(_silu_kernel, grid, u, taps, offset, first, end, s, rows, P=padded, K=taps.shape[0], config=config)
    return s


def _statistics_outputs(u: Tensor, taps: Tensor, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, padded = u.shape
    tiles = cdiv(rows, _config(u).blocks["BLOCK_R"])
    return new(u, rows, padded), new(taps, tiles), new(taps, tiles, 3, padded)


@kernel_op(_statistics_outputs)
def depthwise_statistics(u: Tensor, taps: Tensor, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c = conv(u), and the statistics of c over each row tile's real rows, as rounded to the stored dtype.

    Args: as for `depthwise_silu`, but with nothing folded into the taps.

    Returns:
        c, (N, P) half rows; the number of real rows of each tile, (tiles,) float32; their statistics, (tiles, 3, P)
        float32: the mean, the part of it that float32 lost, and the sum of squared deviations.
    """
    c, count, partial = outputs = _statistics_outputs(u, taps, first, end)
    rows, padded = u.shape
    config = _config(u)
    grid = _grid(rows, padded, config)
    launch(
        _statistics_kernel, grid, u, taps, first, end, c, count, partial, rows,
        P=padded, K=taps.shape[0], config=config,
    )  # fmt: skip
    return outputs


def _input_gradient_outputs(dc: Tensor, taps: Tensor, first: Tensor, end: Tensor) -> Tensor:
    return new(dc, *dc.shape)


@kernel_op(_input_gradient_outputs)
def depthwise_input_gradient(dc: Tensor, taps: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """The gradient of u from that of c: (N, P) half rows to (N, P) half rows, zero at rows that are not real."""
    du = _input_gradient_outputs(dc, taps, first, end)
    rows, padded = dc.shape
    config = _config(dc)
    grid = _grid(rows, padded, config)
    launch(_input_gradient_kernel, grid, dc, taps, first, end, du, rows, P=padded, K=taps.shape[0], config=config)
    return du


def _tap_gradient_outputs(dc: Tensor, u: Tensor, taps: Tensor, first: Tensor, end: Tensor, width: int) -> Tensor:
    return new(taps, cdiv(dc.shape[0], SWEEP), width, taps.shape[0])


@kernel_op(_tap_gradient_outputs)
def depthwise_tap_gradient(dc: Tensor, u: Tensor, taps: Tensor, first: Tensor, end: Tensor, width: int) -> Tensor:
    """Partial sums (sweeps, D, K) float32 whose sum over sweeps is the gradient of the module's taps.

    Args:
        dc, u: (N, P) half rows.
        taps: (K, P) float32; only its shape is used.
        first, end: (N,) int32, as in `Segments`.
        width: D.
    """
    partial = _tap_gradient_outputs(dc, u, taps, first, end, width)
    rows, padded = dc.shape
    config = _tap_config(taps.shape[0])
    blocks = cdiv(taps.shape[0], config.blocks["BLOCK_K"]) * (pitch(width) // config.blocks["BLOCK_C"])
    launch(
        _tap_gradient_kernel, (cdiv(rows, SWEEP) * blocks,), dc, u, first, end, partial, rows,
        D=width, P=padded, K=taps.shape[0], SWEEP_TILES=SWEEP // config.blocks["BLOCK_R"], config=config,
    )  # fmt: skip
    return partial
