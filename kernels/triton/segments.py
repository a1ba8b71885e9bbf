"""A batch's `Layout` in the form that kernels read; it is made once a batch, without waiting for the device."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from astroco_fast.kernels.tensors import cdiv
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
    batch, length = layout.batch, layout.length
    lengths = layout.lengths.to(torch.int32)
    start = torch.arange(batch, dtype=torch.int32, device=lengths.device) * length
    real = layout.positions
    first = torch.where(real, start[:, None], (start + length)[:, None]).flatten()
    end = torch.where(real, (start + lengths)[:, None], 0).flatten()
    if layout.full:
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=lengths.device) * length
    else:
        runs = torch.stack([start, start + lengths], dim=1).flatten()
        offsets = torch.cat([runs, runs.new_full((1,), layout.rows)])
    return Segments(first, end, offsets, length, start, lengths, _tiles(offsets, layout.rows, 1 if layout.full else 2))


def _packed(layout: Layout) -> Segments:
    index = cast(Tensor, layout.index)
    lengths = layout.lengths.to(torch.int32)
    ends = lengths.cumsum(0, dtype=torch.int32)
    start = ends - lengths
    window = index // layout.length
    filler = layout.rows - index.shape[0]
    first = torch.cat([start[window], start.new_full((filler,), layout.rows)])
    end = torch.cat([ends[window], start.new_zeros(filler)])
    offsets = torch.cat([start.new_zeros(1), ends, start.new_full((1,), layout.rows)])
    tiles = _tiles(offsets, layout.rows)
    return Segments(first, end, offsets, max(layout.length, filler), start, lengths, tiles)


def _on_device(layout: Layout) -> Segments:
    """Filler is cut into runs no longer than a window: in one run, its rows would attend to thousands of others."""
    index, length = cast(Tensor, layout.index), layout.length
    lengths = layout.lengths.to(torch.int32)
    ends = lengths.cumsum(0, dtype=torch.int32)
    start, none = ends - lengths, ends.new_zeros(1)
    window = index // length  # B at filler rows
    first = torch.cat([start, ends.new_full((1,), layout.rows)])[window]
    end = torch.cat([ends, none])[window]
    runs = cdiv(cast(int, layout.filler), length)
    filler = ends[-1] + length * torch.arange(runs, dtype=torch.int32, device=ends.device)
    filler = filler.clamp_max(layout.rows)
    offsets = torch.cat([none, ends, filler[1:], ends.new_full((1,), layout.rows)])
    start, lengths = torch.cat([start, filler]), torch.cat([lengths, lengths.new_zeros(runs)])
    return Segments(first, end, offsets, length, start, lengths, _tiles(offsets, layout.rows))


def _tiles(offsets: Tensor, rows: int, kinds: int = 1) -> Tensor:
    """`Segments.tiles`; with two kinds of runs, each window's is followed by one of the rows after it."""
    begin, sizes = offsets[:-1], offsets[1:] - offsets[:-1]
    if kinds > 1:  # windows first
        begin, sizes = (part.view(-1, kinds).t().reshape(-1) for part in (begin, sizes))
    sizes = (sizes + 15).bitwise_and_(-16)
    ends = sizes.cumsum(0, dtype=torch.int32)
    at = torch.arange(0, rows // 16 * 16 + 16 * sizes.shape[0], 16, dtype=torch.int32, device=offsets.device)
    run = torch.searchsorted(ends, at, right=True, out_int32=True).clamp_(max=sizes.shape[0] - 1)
    tiles = (begin + sizes - ends)[run] + at
    return tiles.masked_fill_(at >= ends[-1:], -1)  # how many tiles there are, only the device knows
