"""The gradient of the depthwise convolution's taps: dw[k] = sum_t dc[t] u[t + k - K/2], within windows' real points.

Reads dc and u, half rows: 4 P bytes a row in half precision.

Tensor cores compute it, as they do the convolution (`depthwise.py`), whose tiles these are, too. A tile's 16 rows of dc
times the rows of u in one chunk of 16, summed over tiles, are a matrix of 16 x 16 for each channel, the gradient of the
chunk's bands. A tap's gradient is the sum of its diagonals, which a block takes once, after its last tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.depthwise import blocks_of, chunk_at, place, tile_rows
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.tensors import dot_precision


@triton.jit
def _none(CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sums of no tile."""
    sums = (tl.zeros([BLOCK_C, 16, 16], tl.float32),)
    for _ in tl.static_range(1, CHUNKS):
        sums += (tl.zeros([BLOCK_C, 16, 16], tl.float32),)  # type: ignore[assignment]
    return sums


@triton.jit
def _added(
    sums, dc, u, start, low, high, column, P: tl.constexpr, BEFORE: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums with the products of a step's tiles; all rows are loaded first."""
    upstream = tl.permute(chunk_at(dc, start, low, high, column, 0, P), (2, 1, 0))
    x = (chunk_at(u, start, low, high, column, -16 * BEFORE, P),)
    for chunk in tl.static_range(1, CHUNKS):
        x += (chunk_at(u, start, low, high, column, 16 * (chunk - BEFORE), P),)  # type: ignore[assignment]
    more = (tl.dot(upstream, tl.permute(x[0], (2, 0, 1)), sums[0], input_precision=PRECISION),)
    for chunk in tl.static_range(1, CHUNKS):
        product = tl.dot(upstream, tl.permute(x[chunk], (2, 0, 1)), sums[chunk], input_precision=PRECISION)
        more += (product,)  # type: ignore[assignment]
    return more


@triton.jit(repr=named("depthwise_backward_taps"), do_not_specialize=["number", "each"])
def _kernel(
    dc, u, tiles, first, end, partial, number, each,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    before: tl.constexpr = (K // 2 + 15) // 16
    chunks: tl.constexpr = before + (K - 1 - K // 2 + 15) // 16 + 1
    begin, stop, column = place(P, BLOCK_C, each, number, TILES)
    sums = _none(chunks, BLOCK_C)
    for step in tl.range(begin, stop):
        start, low, high, _ = tile_rows(tiles, first, end, step, number, TILES)
        sums = _added(sums, dc, u, start, low, high, column, P, before, chunks, PRECISION)
    k = tl.arange(0, BLOCK_K)
    # Column j of row i of a chunk's sums belongs to the tap that sees, from row i, the chunk's j-th row.
    ahead = tl.arange(0, 16)[:, None] + (k - K // 2)[None, :]
    total = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
    for chunk in tl.static_range(chunks):
        j = tl.broadcast_to((ahead - 16 * (chunk - before))[None, :, :], [BLOCK_C, 16, BLOCK_K])
        inside = (j >= 0) & (j < 16)
        total += tl.sum(tl.where(inside, tl.gather(sums[chunk], tl.where(inside, j, 0), 2), 0.0), 1)
    block = tl.program_id(0) // (P // BLOCK_C)
    out = partial + (block * D + column[:, None]) * K + k[None, :]
    tl.store(out, total, mask=(column < D)[:, None] & (k < K)[None, :])


# Two channels a warp, whose sums are 48 registers a thread; two blocks share a multiprocessor.
_CONFIG = Config({"TILES": 16, "BLOCK_C": 16}, warps=8, stages=1)


def _outputs(dc: Tensor, tiles: Tensor, width: int, taps: int) -> Tensor:
    return new(dc, blocks_of(dc, tiles, 2), width, taps, dtype=torch.float32)


@kernel_op(_outputs)
def depthwise_tap_gradient(
    dc: Tensor, u: Tensor, tiles: Tensor, first: Tensor, end: Tensor, width: int, taps: int
) -> Tensor:
    """Partial sums (blocks, D, K) float32 whose sum over blocks is the gradient of the module's taps.

    Args:
        dc, u: (N, P) half rows.
        tiles: as in `Segments`.
        first, end: (N,) int32, as in `Segments`.
        width: D.
        taps: K.
    """
    partial = _outputs(dc, tiles, width, taps)
    padded, number, blocks = dc.shape[1], tiles.shape[0], partial.shape[0]
    each = cdiv(cdiv(number, _CONFIG.blocks["TILES"]), blocks) if blocks else 0
    launch(
        _kernel, (blocks * (padded // _CONFIG.blocks["BLOCK_C"]),), dc, u, tiles, first, end, partial, number, each,
        D=width, P=padded, K=taps, BLOCK_K=triton.next_power_of_2(taps), PRECISION=dot_precision(dc), config=_CONFIG,
    )  # fmt: skip
    return partial
