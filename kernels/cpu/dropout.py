"""The dropout mask, written out. The other kernels draw it row by row (csrc/rows.h), and again in backward."""

import torch
from torch import Tensor

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.tensors import new


@native_op("mask")
def cpu_dropout_mask(seed: Tensor, salt: int, p: float, rows: int, width: int) -> Tensor:
    """What dropout multiplies rows by, (N, D) float32: 0 or 1 / (1 - p). For tests and self-checks."""
    return new(seed, rows, width, dtype=torch.float32)
