"""What a CUDA graph is captured for: a call of an encoder, and the bucket of sizes that the call falls in."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from astroco_fast.reference.layout import ROW_MULTIPLE


class Call(NamedTuple):
    """The arguments of an encoder's call, as of `Encoder.forward`."""

    time: Tensor
    mag: Tensor
    err: Tensor
    mask: Tensor | None
    hidden: Tensor | None
    centered: bool
    lengths: Tensor | None

    def prefix(self) -> np.ndarray | None:
        """The numbers of real points (B,), which come first in each window; None: no graph can take the call.

        A mask is copied to the host, as it is without graphs.
        """
        batch, length = self.time.shape
        if self.mask is not None:
            if self.lengths is not None or self.mask.dtype is not torch.bool:
                return None
            mask = self.mask.cpu().numpy()
            lengths = mask.sum(1)
            return lengths if np.array_equal(mask, np.arange(length) < lengths[:, None]) else None
        if self.lengths is None:
            return np.full(batch, length)
        given = self.lengths
        if not isinstance(given, Tensor) or given.shape != (batch,) or not given.is_cpu:
            return None
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            return None
        lengths = given.numpy().astype(np.int64)
        return lengths if (lengths >= 0).all() and (lengths <= length).all() else None

    def inputs(self) -> list[Tensor]:
        """The tensors to fetch."""
        given = [self.time, self.mag, self.err]
        if self.hidden is not None:
            given.append(self.hidden.view(torch.uint8))
        return [x.contiguous() for x in given]

    def fits(self) -> bool:
        """Whether the tensors are such as graphs fetch; what is wrong with others is said by the call one by one."""
        points = (self.time, self.mag, self.err)
        given = [x for x in (*points, self.mask, self.hidden) if x is not None]
        if not all(type(x) is Tensor and x.shape == self.time.shape and not x.requires_grad for x in given):
            return False
        if self.time.dim() != 2 or not self.time.numel() or any(x.device != self.time.device for x in given):
            return False
        flags = self.hidden is None or self.hidden.dtype is torch.bool
        return flags and all(x.dtype in (torch.float32, torch.float64) for x in points)


class Bucket(NamedTuple):
    """The sizes that a graph is captured for: (W,) windows of T positions, N rows, at most `filler` of them filler."""

    windows: int
    length: int
    rows: int
    filler: int

    @staticmethod
    def of(lengths: np.ndarray, length: int) -> "Bucket":
        """The smallest bucket for a batch: windows by powers of two, rows by eighths of one, 12 % filler at most."""
        windows = 1 << (len(lengths) - 1).bit_length()
        real = max(int(lengths.sum()), 1)
        step = max(ROW_MULTIPLE, 1 << max(0, (real - 1).bit_length() - 4))
        rows = min(-(-real // step) * step, windows * length)
        return Bucket(windows, length, rows, min(step, rows))
