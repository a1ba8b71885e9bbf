"""Dropout without a stored mask: backward draws it again from the same seed."""

import torch
from torch import Tensor

from astroco_fast.kernels.cpu.native import call
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new


def _mask_outputs(seed: Tensor, rows: int, width: int) -> Tensor:
    return new(seed, rows, width, dtype=torch.float32)


@kernel_op(_mask_outputs)
def cpu_dropout_mask(seed: Tensor, salt: int, p: float, rows: int, width: int) -> Tensor:
    """What dropout multiplies rows by, (rows, width) float32; for tests: no op needs it written out."""
    mask = _mask_outputs(seed, rows, width)
    call("dropout_scale", mask, seed, salt, float(p), rows, width)
    return mask
