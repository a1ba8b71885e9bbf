"""A batch's `Layout` in the form that kernels read; it is made once a batch, without waiting for the device.

One launch makes what rows and tiles are told. Tiling: a block has 32 tiles and their rows. It adds up the tiles of all
runs, 512 runs at a time, and compares the sums with each of its own tiles, to find the run that the tile lies in. So
blocks need nothing of one another, and there is no search, whose steps would wait for memory.
"""

from typing import NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.reference.layout import Layout


class Segments(NamedTuple):
    """The window of each row, and the rows of each window.

    Attributes:
        first: (N,) int32, the first row of the row's window; at rows that are not real points the next window's, or N,
            so that a kernel that follows windows row by row can pass over such rows at once.
        end: (N,) int32, the row after the last real one of the row's window; 0 at rows that are not real points.
        offsets: (S + 1,) int32, the first row of each run of rows, and N. A run is a window's real rows, or the rows
            between two windows. Rows attend within their run only; rows that are not real have runs too, so that
            attention's output is defined in every row.
        longest: an upper bound of a run's length.
        start: (B,) int32, the first row of each window.
        lengths: (B,) int32, the real points of each window. Where only the device knows how many filler rows there are,
            `start` and `lengths` have empty windows after the batch's, one for each run of filler, so that kernels with
            a block for each window share the filler among many.
        tiles: (M,) int32, the first rows of tiles of at most 16 rows: those into which windows are cut, each from its
            beginning, then those into which the rows between windows are cut, then -1.
    """

    first: Tensor
    end: Tensor
    offsets: Tensor
    longest: int
    start: Tensor
    lengths: Tensor
    tiles: Tensor


def segments(layout: Layout) -> Segments:
    """The batch's segments; the first call makes them and caches them in the layout."""
    if "segments" not in layout.scratch:
        make = _padded if layout.index is None else _packed if layout.filler is None else _on_device
        layout.scratch["segments"] = make(layout)
    return layout.scratch["segments"]


def _padded(layout: Layout) -> Segments:
    batch, length, rows = layout.batch, layout.length, layout.rows
    lengths = layout.lengths.to(torch.int32)
    start = torch.arange(batch, dtype=torch.int32, device=lengths.device) * length
    if layout.full:
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=lengths.device) * length
    else:
        runs = torch.stack([start, start + lengths], dim=1).flatten()
        offsets = torch.cat([runs, runs.new_full((1,), rows)])
    first, end, tiles = rows_and_tiles(offsets, rows, batch, 1 if layout.full else 2)
    return Segments(first, end, offsets, length, start, lengths, tiles)


def _packed(layout: Layout) -> Segments:
    lengths, rows = layout.lengths.to(torch.int32), layout.rows
    ends = lengths.cumsum(0, dtype=torch.int32)
    offsets = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), rows)])
    first, end, tiles = rows_and_tiles(offsets, rows, layout.batch, 1)
    longest = max(layout.length, rows - cast(Tensor, layout.index).shape[0])
    return Segments(first, end, offsets, longest, ends - lengths, lengths, tiles)


def _on_device(layout: Layout) -> Segments:
    """Filler is cut into runs no longer than a window: in one run, its rows would attend to thousands of others."""
    length, rows = layout.length, layout.rows
    lengths = layout.lengths.to(torch.int32)
    ends = lengths.cumsum(0, dtype=torch.int32)
    runs = cdiv(cast(int, layout.filler), length)
    filler = ends[-1] + length * torch.arange(runs, dtype=torch.int32, device=ends.device)
    filler = filler.clamp_max(rows)
    offsets = torch.cat([ends.new_zeros(1), ends, filler[1:], ends.new_full((1,), rows)])
    start, lengths = torch.cat([ends - lengths, filler]), torch.cat([lengths, lengths.new_zeros(runs)])
    first, end, tiles = rows_and_tiles(offsets, rows, layout.batch, 1)
    return Segments(first, end, offsets, length, start, lengths, tiles)


@triton.jit(repr=named("segments"), do_not_specialize=["runs", "windows", "kinds", "rows", "number"])
def _kernel(
    offsets, first, end, tiles, runs, windows, kinds, rows, number, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr
):
    tile = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    each, total = runs // kinds, 0
    run = tl.zeros([BLOCK_T], tl.int32)  # that a tile lies in, with all windows first
    before = tl.zeros([BLOCK_T], tl.int32)  # the tiles of the runs before it
    for chunk in range(0, runs, BLOCK_R):
        other = chunk + tl.arange(0, BLOCK_R)
        place = offsets + other % each * kinds + other // each
        begin = tl.load(place, mask=other < runs, other=0)
        count = (tl.load(place + 1, mask=other < runs, other=0) - begin + 15) // 16
        ends = total + tl.cumsum(count, 0)
        total += tl.sum(count, 0)
        passed = ends[:, None] <= tile[None, :]
        run += tl.sum(passed.to(tl.int32), 0)
        before = tl.maximum(before, tl.max(tl.where(passed, ends[:, None], 0), 0))
    place = offsets + run % each * kinds + run // each
    begin = tl.load(place, mask=run < runs, other=-1)
    stop = tl.load(place + 1, mask=run < runs, other=-1)
    start = tl.where(run < runs, begin + 16 * (tile - before), -1)
    tl.store(tiles + tile, start, mask=tile < number)
    # Of a run of filler that another one follows, rows beyond its end are written too: the same numbers as by that one.
    low = tl.where(run < windows, begin, tl.where(kinds > 1, stop, rows))
    high = tl.where(run < windows, stop, 0)
    row = start[:, None] + tl.arange(0, 16)[None, :]
    inside = (start >= 0)[:, None] & (row < tl.maximum(low, high)[:, None])
    tl.store(first + row, tl.broadcast_to(low[:, None], row.shape), mask=inside)
    tl.store(end + row, tl.broadcast_to(high[:, None], row.shape), mask=inside)


_CONFIG = Config({"BLOCK_T": 32, "BLOCK_R": 512}, warps=4, stages=1)


def _outputs(offsets: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    # How many tiles there are, only the device knows: a run has one more than its rows fill, or none.
    return new(offsets, rows), new(offsets, rows), new(offsets, rows // 16 + offsets.shape[0] - 1)


@kernel_op(_outputs)
def rows_and_tiles(offsets: Tensor, rows: int, windows: int, kinds: int) -> tuple[Tensor, Tensor, Tensor]:
    """`first`, `end` and `tiles` of `Segments`.

    Args:
        offsets: as in `Segments`.
        rows: N.
        windows: B.
        kinds: 1 if the runs of all windows come first, and 2 if each is followed by the rows up to the next one.
    """
    first, end, tiles = outputs = _outputs(offsets, rows)
    runs, number = offsets.shape[0] - 1, tiles.shape[0]
    grid = (cdiv(number, _CONFIG.blocks["BLOCK_T"]),)
    launch(_kernel, grid, offsets, first, end, tiles, runs, windows, kinds, rows, number, config=_CONFIG)
    return outputs
