"""A batch's `Layout` in the form that kernels read, made once a batch without waiting for the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from astroco_fast.reference.layout import Layout


class Segments(NamedTuple):
    """Which window each row belongs to.

    Attributes:
        first: (N,) int32, the first row of the row's window.
        end: (N,) int32, the row after the last real one of the row's window; 0 at rows that are not real points.
        offsets: (S + 1,) int32, where runs of rows start, and N: the real rows of each window, and the rows between
            them, which attend to each other only, so that attention leaves no row undefined.
        longest: no run is longer.
        start: (B,) int32, the first row of each window.
        lengths: (B,) int32, its real points.
    """

    first: Tensor
    end: Tensor
    offsets: Tensor
    longest: int
    start: Tensor
    lengths: Tensor


def segments(layout: Layout) -> Segments:
    """The batch's segments, made at the first call and kept with the layout."""
    if "segments" not in layout.scratch:
        layout.scratch["segments"] = _packed(layout) if layout.index is not None else _padded(layout)
    return layout.scratch["segments"]


def _padded(layout: Layout) -> Segments:
    batch, length = layout.batch, layout.length
    lengths = layout.lengths.to(torch.int32)
    start = torch.arange(batch, dtype=torch.int32, device=lengths.device) * length
    first = start.repeat_interleave(length, output_size=layout.rows)
    end = torch.where(layout.positions, (start + lengths)[:, None], 0).flatten()
    if layout.full:
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=lengths.device) * length
    else:
        runs = torch.stack([start, start + lengths], dim=1).flatten()
        offsets = torch.cat([runs, runs.new_full((1,), layout.rows)])
    return Segments(first, end, offsets, length, start, lengths)


def _packed(layout: Layout) -> Segments:
    assert layout.index is not None
    lengths = layout.lengths.to(torch.int32)
    ends = lengths.cumsum(0, dtype=torch.int32)
    start = ends - lengths
    window = layout.index // layout.length
    filler = layout.rows - layout.index.shape[0]
    first = torch.cat([start[window], start.new_zeros(filler)])
    end = torch.cat([ends[window], start.new_zeros(filler)])
    offsets = torch.cat([start.new_zeros(1), ends, start.new_full((1,), layout.rows)])
    return Segments(first, end, offsets, max(layout.length, filler), start, lengths)
