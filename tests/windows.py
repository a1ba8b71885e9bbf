"""Random windows for tests of the model."""

from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """A user's (B, T) float64 tensors, bool masks, and (B,) lengths; padding is NaN."""

    time: Tensor
    mag: Tensor
    err: Tensor
    mask: Tensor
    hidden: Tensor
    lengths: Tensor


def make_windows(lengths: list[int], size: int, seed: int = 0) -> Windows:
    """Windows with the given numbers of real points before the padding; a third of the points is hidden."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), size)
    time = 58000 + 900 * torch.rand(shape, generator=generator, dtype=torch.float64)
    mag = 17 + torch.randn(shape, generator=generator, dtype=torch.float64)
    err = 0.02 + 0.1 * torch.rand(shape, generator=generator, dtype=torch.float64)
    real = torch.arange(size) < torch.tensor(lengths)[:, None]
    hidden = real & (torch.rand(shape, generator=generator) < 1 / 3)
    poisoned = [values.masked_fill(~real, float("nan")) for values in (time, mag, err)]
    return Windows(*poisoned, real, hidden, torch.tensor(lengths))
