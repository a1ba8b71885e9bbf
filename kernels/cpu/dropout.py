"""The dropout mask as a tensor. The other kernels draw it row by row (csrc/rows.h), and again in backward."""

import torch
from torch import Tensor

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.tensors import new


@native_op("mask")
def cpu_dropout_mask(seed: Tensor, salt: int, p: float, rows: int, width: int) -> Tensor:
    """The factors by which dropout multiplies rows, (N, D) float32: 0 or 1 / (1 - p). For tests and self-checks."""
    return new(seed, rows, width, dtype=torch.float32)
