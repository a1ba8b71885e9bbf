"""A batch's `Layout` in the form that the kernels read."""

import torch
from torch import Tensor

from astroco_fast.reference.layout import Layout


def windows_of(layout: Layout) -> Tensor:
    """The first row and the number of real points of each window, (2, B) int64; computed once a layout.

    The real points of a window are consecutive rows. A row that belongs to no window is not real.
    """
    if "windows" not in layout.scratch:
        lengths = layout.lengths.clamp(0, layout.length)
        if layout.index is not None:
            first = lengths.cumsum(0) - lengths
        else:
            first = torch.arange(layout.batch, device=lengths.device) * layout.length
        layout.scratch["windows"] = torch.stack([first, lengths])
    return layout.scratch["windows"]
