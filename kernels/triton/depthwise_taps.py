"""The gradient of the depthwise convolution's taps: dw[k] = sum_t dc[t] u[t + k - K/2], within windows' real points.

Reads dc and u, half rows: 4 P bytes a row in half precision.

Tiling: a thread has the sums of eight taps of four channels, and the eight rows of u that these taps have for a row of
dc. The next row of dc needs one new row of u. So a multiply-add in the loop over rows takes 1.55 instructions (sm_90,
bf16), where 4.64 were needed when every tap loaded its tile of u anew.

A block sweeps many rows, window by window, so that its masks are those of one window and few partial sums are left. Two
threads share a window's rows, or a multiprocessor would have too few warps. The sweeps are as many on every GPU, so
that every GPU adds up its partial sums in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.depthwise import columns
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit
def float32(value):
    """The value in float32; bfloat16 by its bits, because the compiler's own conversion takes half as many again."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


# Sweeps at most. At D = 256 and 32 taps a sweep has four blocks, and all blocks run at once on the 132 multiprocessors
# of an H100.
SWEEPS = 128


@triton.jit
def _eight_rows(
    dc_at, u_at, left, low, high, v0, v1, v2, v3, v4, v5, v6, y0, y1, y2, y3, y4, y5, y6, y7, P: tl.constexpr,
):  # fmt: skip
    """Eight rows of dc, each times the rows of u that eight taps have for it.

    vj is the row of u for the j-th tap, yj that tap's sum; the rows of u move on with every row of dc.
    """
    for i in tl.static_range(8):
        v7 = float32(tl.load(u_at + i * P, mask=(low <= i) & (high > i), other=0.0))
        upstream = float32(tl.load(dc_at + i * P, mask=left > i, other=0.0))
        y0 += upstream * v0
        y1 += upstream * v1
        y2 += upstream * v2
        y3 += upstream * v3
        y4 += upstream * v4
        y5 += upstream * v5
        y6 += upstream * v6
        y7 += upstream * v7
        v0, v1, v2, v3, v4, v5, v6 = v1, v2, v3, v4, v5, v6, v7
    return v0, v1, v2, v3, v4, v5, v6, y0, y1, y2, y3, y4, y5, y6, y7


@triton.jit(repr=named("depthwise_backward_taps"), do_not_specialize=["rows", "sweep"])
def _kernel(
    dc, u, first, end, partial, rows, sweep,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    # The taps are the grid's fastest index, so that the blocks that read the same rows run side by side. A block has
    # `eights` groups of eight taps for each of the PARTS parts of the rows at hand.
    tap_blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    eights: tl.constexpr = BLOCK_K // 8
    number = tl.program_id(0) // (tap_blocks * (P // BLOCK_C))
    column = tl.program_id(0) // tap_blocks % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.arange(0, PARTS * eights)[:, None]
    part = group // eights
    ahead = tl.program_id(0) % tap_blocks * BLOCK_K + group % eights * 8 - K // 2
    y0 = tl.zeros([PARTS * eights, BLOCK_C], tl.float32)
    y1, y2, y3, y4, y5, y6, y7 = y0, y0, y0, y0, y0, y0, y0
    at = number * sweep
    stop = tl.minimum(at + sweep, rows)
    while at < stop:  # one window, or what lies between two, at a time
        begin = tl.load(first + at)
        close = tl.load(end + at)
        length = tl.minimum(close, stop) - at  # negative at rows that are not real
        share = tl.maximum(tl.cdiv(length, 8 * PARTS), 0) * 8
        here = part * share
        base = at.to(tl.int64) * P
        dc_at = dc + base + (here * P + column[None, :])
        u_at = u + base + ((here + ahead) * P + column[None, :])
        left = length - here
        low = begin - at - here - ahead
        high = close - at - here - ahead
        v0 = float32(tl.load(u_at, mask=(low <= 0) & (high > 0), other=0.0))
        v1 = float32(tl.load(u_at + P, mask=(low <= 1) & (high > 1), other=0.0))
        v2 = float32(tl.load(u_at + 2 * P, mask=(low <= 2) & (high > 2), other=0.0))
        v3 = float32(tl.load(u_at + 3 * P, mask=(low <= 3) & (high > 3), other=0.0))
        v4 = float32(tl.load(u_at + 4 * P, mask=(low <= 4) & (high > 4), other=0.0))
        v5 = float32(tl.load(u_at + 5 * P, mask=(low <= 5) & (high > 5), other=0.0))
        v6 = float32(tl.load(u_at + 6 * P, mask=(low <= 6) & (high > 6), other=0.0))
        u_at += 7 * P
        low -= 7
        high -= 7
        for _ in tl.range(0, share, 8, loop_unroll_factor=1):
            v0, v1, v2, v3, v4, v5, v6, y0, y1, y2, y3, y4, y5, y6, y7 = _eight_rows(
                dc_at, u_at, left, low, high, v0, v1, v2, v3, v4, v5, v6, y0, y1, y2, y3, y4, y5, y6, y7, P
            )
            dc_at += 8 * P
            u_at += 8 * P
            left -= 8
            low -= 8
            high -= 8
        at = tl.maximum(tl.where(close > 0, close, begin), at + 1)  # which ends, whatever `first` and `end` hold
    fours = tl.join(tl.join(y0, y4), tl.join(y2, y6)), tl.join(tl.join(y1, y5), tl.join(y3, y7))
    total = tl.join(fours[0], fours[1]).reshape([PARTS, eights, BLOCK_C, 8])
    total = tl.sum(total, 0).permute(0, 2, 1).reshape([BLOCK_K, BLOCK_C])
    k = tl.program_id(0) % tap_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    out = partial + number * D * K + column[None, :] * K + k[:, None]
    tl.store(out, total, mask=(k < K)[:, None] & (column < D)[None, :])


def _config(taps: int, padded: int) -> Config:
    # Eight taps of four channels for each thread, up to 32 taps and 64 channels a block.
    block, eights = columns(padded), min(triton.next_power_of_2(cdiv(taps, 8)), 4)
    warps = max(block * eights * 2 // 128, 1)
    return Config({"BLOCK_K": 8 * eights, "PARTS": 2, "BLOCK_C": block}, warps, stages=1)


def _outputs(dc: Tensor, width: int, taps: int) -> Tensor:
    return new(dc, torch.sym_min(SWEEPS, cdiv(dc.shape[0], 32)), width, taps, dtype=torch.float32)


@kernel_op(_outputs)
def depthwise_tap_gradient(dc: Tensor, u: Tensor, first: Tensor, end: Tensor, width: int, taps: int) -> Tensor:
    """Partial sums (sweeps, D, K) float32 whose sum over at most `SWEEPS` sweeps is the gradient of the module's taps.

    Args:
        dc, u: (N, P) half rows.
        first, end: (N,) int32, as in `Segments`.
        width: D.
        taps: K.
    """
    partial = _outputs(dc, width, taps)
    rows, padded = dc.shape
    sweeps, _, count = partial.shape
    config = _config(count, padded)
    blocks = cdiv(count, config.blocks["BLOCK_K"]) * (padded // config.blocks["BLOCK_C"])
    launch(
        _kernel, (sweeps * blocks,), dc, u, first, end, partial, rows, cdiv(rows, sweeps) if sweeps else 0,
        D=width, P=padded, K=count, config=config,
    )  # fmt: skip
    return partial
