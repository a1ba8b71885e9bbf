"""The depthwise convolution over time: y[t] = sum_k w[k] x[t + k - K/2], within a window's real points.

Three kernels work on half rows (N, P). Bytes a row in half precision:
- Inference, with BatchNorm's scale and offset, then SiLU: reads u, writes s; 4 P.
- Training, with BatchNorm's statistics of c: reads u, writes c; 4 P.
- The gradient of the input, the same sum mirrored: reads dc, writes du; 4 P.

Tensor cores compute it. A channel's 16 outputs are their inputs, in chunks of 16 rows, times matrices whose diagonals
are the taps, its *bands* (`convolution_weights.py`), and 16 runs of 16 outputs make a product. For K = 32 that is three
products of 16 x 16 x 16, of which a third are zeros.

Tiling: a *tile* is 16 rows of one window, or fewer at its end (`Segments.tiles` has the first row of each), so that its
masks are those of one window, and in its loads alone. A block has 16 channels, 32 bytes of a row, and takes 16 tiles at
a time: three loads of 16 x 16 rows, which overlap in the first-level cache. A warp has the products of four channels.
Rows come to it through shared memory; the bands lie in memory as tensor cores want them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.gate import gate
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.tensors import dot_precision


@triton.jit
def tile_rows(tiles, first, end, step, number, TILES: tl.constexpr):
    """The tiles of a step: their first rows; where, from there, their windows begin and end; their rows, if below 16.

    Tiles between windows have no window, and tiles beyond the last one no rows either.
    """
    tile = step * TILES + tl.arange(0, TILES)
    start = tl.load(tiles + tile, mask=tile < number, other=-1)
    low = tl.load(first + start, mask=start >= 0, other=-1) - start
    high = tl.maximum(tl.load(end + start, mask=start >= 0, other=-1) - start, 0)
    return start, low, high, tl.where(high > 0, high, low)


@triton.jit
def chunk_at(source, start, low, high, column, ahead, P: tl.constexpr):
    """The 16 rows that lie `ahead` of the first rows of tiles, [TILES, 16, BLOCK_C], zero beyond their windows."""
    row = ahead + tl.arange(0, 16)[None, :]
    at = source + start.to(tl.int64)[:, None, None] * P + (row[:, :, None] * P + column[None, None, :])
    return tl.load(at, mask=((row >= low[:, None]) & (row < high[:, None]))[:, :, None], other=0.0)


@triton.jit
def _band(bands, column, chunk: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """A chunk's matrix of taps for each channel, [BLOCK_C, 16, 16]: its inputs times its outputs."""
    at = bands + ((column[:, None] * CHUNKS + chunk) * 256 + tl.arange(0, 256)[None, :])
    order = tl.reshape(tl.load(at), [BLOCK_C, 8, 4, 2, 2, 2])
    return tl.reshape(tl.permute(order, (0, 4, 2, 5, 3, 1)), [BLOCK_C, 16, 16])


@triton.jit
def _sums(
    source, bands, start, low, high, column,
    P: tl.constexpr, K: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sum over k of taps[k] * source[row + SIGN * (k - K/2)] for each row of tiles, [BLOCK_C, TILES, 16]."""
    before: tl.constexpr = (K // 2 + 15) // 16
    chunks: tl.constexpr = before + (K - 1 - K // 2 + 15) // 16 + 1
    total = tl.zeros([BLOCK_C, TILES, 16], tl.float32)
    x = (chunk_at(source, start, low, high, column, SIGN * 16 * (0 - before), P),)
    for chunk in tl.static_range(1, chunks):
        x += (chunk_at(source, start, low, high, column, SIGN * 16 * (chunk - before), P),)  # type: ignore[assignment]
    for chunk in tl.static_range(chunks):
        band = _band(bands, column, chunk, chunks, BLOCK_C)
        total = tl.dot(tl.permute(x[chunk], (2, 0, 1)), band, total, input_precision=PRECISION)
    return total


@triton.jit
def _store(result, total, start, length, column, P: tl.constexpr):
    """Store the rows of tiles, [BLOCK_C, TILES, 16]."""
    row = tl.arange(0, 16)[None, :]
    at = result + start.to(tl.int64)[:, None, None] * P + (row[:, :, None] * P + column[None, None, :])
    total = tl.permute(total.to(result.dtype.element_ty), (1, 2, 0))
    tl.store(at, total, mask=(row < length[:, None])[:, :, None])


@triton.jit
def place(P: tl.constexpr, BLOCK_C: tl.constexpr, each, number, TILES: tl.constexpr):
    """The block's first step and the one after its last, and its channels."""
    begin = tl.program_id(0) // (P // BLOCK_C) * each
    column = tl.program_id(0) % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    return begin, tl.minimum(begin + each, tl.cdiv(number, TILES)), column


@triton.jit(repr=named("depthwise_silu_forward"), do_not_specialize=["number", "each"])
def _silu_kernel(
    u, bands, scale, offset, tiles, first, end, s, number, each,
    P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    begin, stop, column = place(P, BLOCK_C, each, number, TILES)
    scales = tl.load(scale + column)[:, None, None]
    offsets = tl.load(offset + column)[:, None, None]
    for step in tl.range(begin, stop):
        start, low, high, length = tile_rows(tiles, first, end, step, number, TILES)
        n = _sums(u, bands, start, low, high, column, P, K, 1, PRECISION, TILES, BLOCK_C)
        n = n * scales + tl.where((high > 0)[None, :, None], offsets, 0.0)  # SiLU(0) = 0 at rows that are not real
        n = gate(n, n, False, s.dtype.element_ty != tl.float32)
        _store(s, n, start, length, column, P)


@triton.jit
def _over_threads(value, BLOCK_C: tl.constexpr):
    """The sums over those rows of 16 tiles that a thread has by itself, [BLOCK_C, 8, 4], on NVIDIA's GPUs."""
    return tl.sum(tl.sum(tl.sum(tl.reshape(value, [BLOCK_C, 2, 8, 2, 4, 2]), 5), 3), 1)


@triton.jit(repr=named("depthwise_statistics_forward"), do_not_specialize=["number", "each"])
def _statistics_kernel(
    u, bands, tiles, first, end, c, count, partial, number, each,
    P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    begin, stop, column = place(P, BLOCK_C, each, number, TILES)
    pivot = tl.zeros([BLOCK_C], tl.float32)
    moves = tl.zeros([BLOCK_C, 8, 4], tl.float32)
    squares = tl.zeros([BLOCK_C, 8, 4], tl.float32)
    n = tl.zeros([TILES], tl.int32)
    for step in tl.range(begin, stop):
        start, low, high, length = tile_rows(tiles, first, end, step, number, TILES)
        total = _sums(u, bands, start, low, high, column, P, K, 1, PRECISION, TILES, BLOCK_C)
        total = total.to(c.dtype.element_ty)
        _store(c, total, start, length, column, P)
        # The statistics are those of the rounded numbers, about the mean of the block's first tiles, lest the squares
        # lose digits where the mean is large. If the block has real rows, those tiles have some: windows come first.
        real = tl.arange(0, 16)[None, :] < high[:, None]
        here = tl.minimum(high, 16)
        if step == begin:
            value = tl.where(real[None, :, :], total.to(tl.float32), 0.0)
            pivot = tl.sum(tl.sum(value, 2), 1) / tl.maximum(tl.sum(here, 0), 1)
        move = tl.where(real[None, :, :], total.to(tl.float32) - pivot[:, None, None], 0.0)
        moves += _over_threads(move, BLOCK_C)
        squares += _over_threads(move * move, BLOCK_C)
        n += here
    many = tl.sum(n, 0).to(tl.float32)
    moved = tl.sum(tl.sum(moves, 2), 1)
    shift = moved / tl.maximum(many, 1.0)
    mean = pivot + shift
    block = tl.program_id(0) // (P // BLOCK_C)
    at = partial + block * 3 * P + column
    tl.store(count + block, many, mask=tl.program_id(0) % (P // BLOCK_C) == 0)
    tl.store(at, mean)
    tl.store(at + P, shift - (mean - pivot))
    tl.store(at + 2 * P, tl.maximum(tl.sum(tl.sum(squares, 2), 1) - moved * shift, 0.0))


@triton.jit(repr=named("depthwise_backward_input"), do_not_specialize=["number", "each"])
def _input_gradient_kernel(
    dc, bands, tiles, first, end, du, number, each,
    P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, TILES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    begin, stop, column = place(P, BLOCK_C, each, number, TILES)
    for step in tl.range(begin, stop):
        start, low, high, length = tile_rows(tiles, first, end, step, number, TILES)
        total = _sums(dc, bands, start, low, high, column, P, K, -1, PRECISION, TILES, BLOCK_C)
        _store(du, total, start, length, column, P)


def columns(padded: int, most: int = 64) -> int:
    """The channels of a tile: the largest power of two that divides a half row, so that no lane is idle."""
    return min(padded & -padded, most)


def config_of(rows: Tensor) -> Config:
    """The tiling: four channels a warp, or two where they are float32."""
    return Config({"TILES": 16, "BLOCK_C": 16}, warps=4 if rows.dtype.itemsize == 2 else 8, stages=1)


def blocks_of(rows: Tensor, tiles: Tensor, resident: int = 3) -> int:
    """The number of blocks that share the rows of 16 channels: all run at once, `resident` a multiprocessor."""
    blocks = config_of(rows).blocks
    most = resident * architecture(rows.device).multiprocessors // (rows.shape[1] // blocks["BLOCK_C"])
    return torch.sym_min(cdiv(tiles.shape[0], blocks["TILES"]), max(most, 1))  # without a guard under torch.compile


def _launch(kernel: Any, source: Tensor, bands: Tensor, taps: int, tiles: Tensor, *others: Tensor) -> None:
    """Launch a kernel; `others` are its tensors after the bands, tiles included."""
    padded, number, config = source.shape[1], tiles.shape[0], config_of(source)
    blocks = blocks_of(source, tiles)
    each = cdiv(cdiv(number, config.blocks["TILES"]), blocks) if blocks else 0
    launch(
        kernel, (blocks * (padded // config.blocks["BLOCK_C"]),), source, bands, *others, number, each,
        P=padded, K=taps, PRECISION=dot_precision(source), config=config,
    )  # fmt: skip


def _silu_outputs(u: Tensor) -> Tensor:
    return new(u, *u.shape)


@kernel_op(_silu_outputs)
def depthwise_silu(
    u: Tensor, bands: Tensor, scale: Tensor, offset: Tensor, tiles: Tensor, first: Tensor, end: Tensor, taps: int
) -> Tensor:
    """SiLU(conv(u) * scale + offset), zero at rows that are not real.

    Args:
        u: (N, P) half rows.
        bands: the taps as from `convolution_weights`, those of the forward pass.
        scale, offset: (P,) float32, BatchNorm, zero in the pitch.
        tiles: as in `Segments`.
        first, end: (N,) int32, as in `Segments`.
        taps: K.

    Returns:
        (N, P) half rows.
    """
    s = _silu_outputs(u)
    _launch(_silu_kernel, u, bands, taps, tiles, scale, offset, tiles, first, end, s)
    return s


def _statistics_outputs(u: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (rows, padded), blocks = u.shape, blocks_of(u, tiles)
    return (
        new(u, rows, padded), new(u, blocks, dtype=torch.float32), new(u, blocks, 3, padded, dtype=torch.float32),
    )  # fmt: skip


@kernel_op(_statistics_outputs)
def depthwise_statistics(
    u: Tensor, bands: Tensor, tiles: Tensor, first: Tensor, end: Tensor, taps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """c = conv(u), and the statistics of c over each block's real rows, as rounded to the stored dtype.

    Args: as for `depthwise_silu`.

    Returns:
        c, (N, P) half rows; the number of real rows of each block, (blocks,) float32; their statistics, (blocks, 3, P)
        float32: the mean, the part of it that float32 lost, and the sum of squared deviations.
    """
    c, count, partial = outputs = _statistics_outputs(u, tiles)
    _launch(_statistics_kernel, u, bands, taps, tiles, tiles, first, end, c, count, partial)
    return outputs


def _input_gradient_outputs(dc: Tensor) -> Tensor:
    return new(dc, *dc.shape)


@kernel_op(_input_gradient_outputs)
def depthwise_input_gradient(dc: Tensor, bands: Tensor, tiles: Tensor, first: Tensor, end: Tensor, taps: int) -> Tensor:
    """The gradient of u from that of c: (N, P) half rows to (N, P) half rows, zero at rows that are not real.

    Args: as for `depthwise_silu`, but the bands of the backward pass.
    """
    du = _input_gradient_outputs(dc)
    _launch(_input_gradient_kernel, dc, bands, taps, tiles, tiles, first, end, du)
    return du
