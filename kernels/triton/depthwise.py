"""The depthwise convolution over time: y[t] = sum_k w[k] x[t + k - K/2], within a window's real points.

Three kernels work on half rows (N, P). Bytes a row in half precision:
- Inference, with BatchNorm folded into taps and offset, then SiLU: reads u, writes s; 4 P.
- Training, with BatchNorm's statistics of c: reads u, writes c; 4 P, and 12 P a tile for the statistics.
- The gradient of the input, the same sum mirrored: reads dc, writes du; 4 P.

Tiling: a thread computes a run of eight rows of four channels. It loads a row of the input once, and adds it to all of
the run's rows that see it, so that a multiply-add in the loop over taps takes 1.43 instructions (sm_90, bf16), where
four were needed when each tap loaded its tile anew. The taps are (K, P), so that a tap of four channels is one 16-byte
load; a thread's taps move from one row of the run to the next in registers. The loop takes eight taps at a time and is
not unrolled further, because 32 unrolled taps spill. Rows are counted from the tile's first one, in 32 bits. Nothing
moves between threads: a thread stores its rows one by one, 8 bytes each, which are 128 with those of its neighbours.

A row is masked as it is loaded, once for a whole run. So a run is computed for one window at a time: in a tile where a
window begins or ends within a run, which is rare with windows of a multiple of eight points, once for each window.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.gated_linear import gate
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit
def float32(value):
    """The value in float32; bfloat16 by its bits, because the compiler's own conversion takes half as many again."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def _eight_steps(
    value_at, weight_at, s, low, high, w0, w1, w2, w3, w4, w5, w6, w7, y0, y1, y2, y3, y4, y5, y6, y7,
    P: tl.constexpr, STEP: tl.constexpr, TAPS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Eight rows of the input, each times the taps that eight rows of the output have for it.

    PART 1 has the run's first eight rows of input, which only output rows up to the same number see; 2 its last, which
    only later ones see. wj is the tap for the j-th output row; it moves on with every step. TAPS is their number, or 0
    if it is a multiple of eight.
    """
    for i in tl.static_range(8):
        if PART < 2 or i < 7:
            value = float32(tl.load(value_at + i * P, mask=(low <= i) & (high > i), other=0.0))
            w7, w6, w5, w4, w3, w2, w1 = w6, w5, w4, w3, w2, w1, w0
            if PART < 2 and TAPS == 0:
                w0 = tl.load(weight_at + i * STEP)
            elif PART < 2:
                w0 = tl.load(weight_at + i * STEP, mask=s + i < TAPS, other=0.0)
            if PART == 0 or (PART == 1) == (i >= 0):
                y0 += w0 * value
            if PART == 0 or (PART == 1) == (i >= 1):
                y1 += w1 * value
            if PART == 0 or (PART == 1) == (i >= 2):
                y2 += w2 * value
            if PART == 0 or (PART == 1) == (i >= 3):
                y3 += w3 * value
            if PART == 0 or (PART == 1) == (i >= 4):
                y4 += w4 * value
            if PART == 0 or (PART == 1) == (i >= 5):
                y5 += w5 * value
            if PART == 0 or (PART == 1) == (i >= 6):
                y6 += w6 * value
            if PART == 0 or (PART == 1) == (i >= 7):
                y7 += w7 * value
    return w0, w1, w2, w3, w4, w5, w6, w7, y0, y1, y2, y3, y4, y5, y6, y7


@triton.jit
def _runs(
    source, taps, low, high, group, column,
    P: tl.constexpr, K: tl.constexpr, SIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sums for the eight rows of each run, [BLOCK_R / 8, BLOCK_C] each, as if all saw the rows low .. high - 1.

    Args:
        source: the tile's first row.
        low, high: (BLOCK_R / 8, 1), in the tile's rows.
        group: (BLOCK_R / 8, 1), each run's first row.
    """
    # The tap of step s for a run's first row; the input's gradient has the taps in reverse order.
    before: tl.constexpr = K // 2 if SIGN == 1 else K - 1 - K // 2
    step: tl.constexpr = P if SIGN == 1 else -P
    known: tl.constexpr = 0 if K % 8 == 0 else K
    value_at = source + ((group - before) * P + column[None, :])
    weight_at = taps + ((0 if SIGN == 1 else (K - 1) * P) + column[None, :] + group * 0)
    low, high = low - group + before, high - group + before
    # Where the loop ends, anew: what a loop has carried, the compiler would move between threads before it is used.
    steps: tl.constexpr = (K + 7) // 8 * 8
    last_at, last_low, last_high = value_at + steps * P, low - steps, high - steps
    none = tl.zeros([BLOCK_R // 8, BLOCK_C], tl.float32)
    w0, w1, w2, w3, w4, w5, w6, w7, y0, y1, y2, y3, y4, y5, y6, y7 = _eight_steps(
        value_at, weight_at, 0, low, high, none, none, none, none, none, none, none, none, none, none, none, none, none,
        none, none, none, P, step, known, 1,
    )  # fmt: skip
    for s in tl.range(8, K, 8, loop_unroll_factor=1):
        value_at += 8 * P
        weight_at += 8 * step
        low -= 8
        high -= 8
        w0, w1, w2, w3, w4, w5, w6, w7, y0, y1, y2, y3, y4, y5, y6, y7 = _eight_steps(
            value_at, weight_at, s, low, high, w0, w1, w2, w3, w4, w5, w6, w7, y0, y1, y2, y3, y4, y5, y6, y7,
            P, step, known, 0,
        )  # fmt: skip
    _, _, _, _, _, _, _, _, y0, y1, y2, y3, y4, y5, y6, y7 = _eight_steps(
        last_at, weight_at, 0, last_low, last_high, w0, w1, w2, w3, w4, w5, w6, w7,
        y0, y1, y2, y3, y4, y5, y6, y7, P, step, known, 2,
    )  # fmt: skip
    return y0, y1, y2, y3, y4, y5, y6, y7


@triton.jit
def _convolve(
    source, taps, offset, first, end, result, tile, rows, column,
    P: tl.constexpr, K: tl.constexpr, SIGN: tl.constexpr, SILU: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Store the sum over k of taps[k] * source[row + SIGN * (k - K/2)] within each row's window, for a tile of rows.

    With SILU, the result is SiLU(sum + offset). It is zero at rows that are not real. A run of eight rows is computed
    for one window at a time: for that of its first row and, in a tile where a window begins or ends within a run, for
    those of the others.
    """
    base = tile * BLOCK_R
    left = tl.minimum(rows - base, BLOCK_R).to(tl.int32)
    source += base * P
    result += base * P
    first += base
    end += base
    start = base.to(tl.int32)
    group = (tl.arange(0, BLOCK_R // 8) * 8)[:, None]
    last = tl.minimum(group + 7, left - 1)  # of each run
    low = tl.load(first + group, mask=group < left, other=0)
    high = tl.load(end + group, mask=group < left, other=0)
    mixed = low != tl.load(first + last, mask=group < left, other=0)
    mixed |= high != tl.load(end + last, mask=group < left, other=0)
    # A run's rows as bits, so that the mask of a row takes no load of its own.
    bit = tl.arange(0, 8)[None, :]
    own = tl.load(end + group + bit, mask=group + bit < left, other=0)
    real = tl.sum((own > 0).to(tl.int32) << bit, 1)[:, None]
    zeros = tl.zeros([BLOCK_R // 8, BLOCK_C], result.dtype.element_ty)
    before = tl.zeros_like(high)
    for turn in range(tl.where(tl.max(mixed.to(tl.int32)) > 0, 8, 1)):
        low = tl.load(first + group + turn, mask=group + turn < left, other=0)
        high = tl.load(end + group + turn, mask=group + turn < left, other=0)
        if (turn == 0) | (tl.max(((high != before) & (high > 0)).to(tl.int32)) > 0):
            totals = _runs(source, taps, low - start, high - start, group, column, P, K, SIGN, BLOCK_R, BLOCK_C)
            stored = (group + bit < left) & ((own == high) | ((turn == 0) & (own == 0)))
            stored = tl.sum(stored.to(tl.int32) << bit, 1)[:, None]
            if SILU:
                shift = tl.load(offset + column)[None, :]
            # Row by row, as the threads have them: to store 16 bytes at a time, they would have to exchange rows.
            for i in tl.static_range(8):
                total = totals[i]
                if SILU:
                    total += shift
                    total = gate(total, total, False, result.dtype.element_ty != tl.float32)
                at = result + ((group + i) * P + column[None, :])
                tl.store(at, total.to(result.dtype.element_ty), mask=((stored & real) >> i & 1) != 0)
                tl.store(at, zeros, mask=((stored & ~real) >> i & 1) != 0)
        before = high


@triton.jit
def _tile(P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block's row tile and its channels."""
    tile = (tl.program_id(0) // (P // BLOCK_C)).to(tl.int64)
    return tile, tl.program_id(0) % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit(repr=named("depthwise_silu_forward"), do_not_specialize=["rows"])
def _silu_kernel(
    u, taps, offset, first, end, s, rows,
    P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, column = _tile(P, BLOCK_C)
    _convolve(u, taps, offset, first, end, s, tile, rows, column, P, K, 1, True, BLOCK_R, BLOCK_C)


@triton.jit(repr=named("depthwise_statistics_forward"), do_not_specialize=["rows"])
def _statistics_kernel(
    u, taps, first, end, c, count, partial, rows,
    P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, column = _tile(P, BLOCK_C)
    _convolve(u, taps, taps, first, end, c, tile, rows, column, P, K, 1, False, BLOCK_R, BLOCK_C)
    # The statistics are those of the rounded numbers, which are read again because all of them at once take registers.
    tl.debug_barrier()
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    real = tl.load(end + row, mask=row < rows, other=0) > 0
    value = tl.load(c + row[:, None] * P + column[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    n = tl.sum(real.to(tl.float32), 0)
    mean = tl.sum(value, 0) / tl.maximum(n, 1.0)
    deviation = tl.where(real[:, None], value - mean[None, :], 0.0)
    at = partial + tile * 3 * P + column
    tl.store(count + tile, n, mask=tl.program_id(0) % (P // BLOCK_C) == 0)
    tl.store(at, mean)
    tl.store(at + P, tl.sum(deviation, 0) / tl.maximum(n, 1.0))
    tl.store(at + 2 * P, tl.sum(deviation * deviation, 0))


@triton.jit(repr=named("depthwise_backward_input"), do_not_specialize=["rows"])
def _input_gradient_kernel(
    dc, taps, first, end, du, rows,
    P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, column = _tile(P, BLOCK_C)
    _convolve(dc, taps, taps, first, end, du, tile, rows, column, P, K, -1, False, BLOCK_R, BLOCK_C)


def columns(padded: int, most: int = 64) -> int:
    """The channels of a tile: the largest power of two that divides a half row, so that no lane is idle."""
    return min(padded & -padded, most)


def _config(rows: Tensor) -> Config:
    # A run of eight rows of four channels for each of 128 threads. Its sums, taps and loads take 168 registers, so
    # three blocks share a multiprocessor.
    block = columns(rows.shape[1])
    return Config({"BLOCK_R": 4096 // block, "BLOCK_C": block}, warps=4, stages=1)


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
