"""Parameters in the form that the kernels read, and the gradient of a matrix.

A packed matrix is panels of columns, each read front to back (csrc/gemm.h). A vector is float32, padded to the pitch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.tensors import new, pitch


def padded(vector: Tensor) -> Tensor:
    """(F,) to (pitch(F),), zeros at the end."""
    missing = pitch(vector.shape[0]) - vector.shape[0]
    return F.pad(vector, (0, missing)) if missing else vector


def pack(weight: Tensor, dtype: torch.dtype, transposed: bool = False) -> Tensor:
    """The right factor (k, n) of a product, packed.

    Args:
        weight: (n, k) float32, or where `transposed` (k, n).
        dtype: the compute dtype.
    """
    return cpu_pack(weight.detach().contiguous(), transposed, dtype)


@native_op("packed")
def cpu_pack(weight: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    """See `pack`."""
    n, k = weight.shape[::-1] if transposed else weight.shape
    size = -(-k // 64) * 64 + 8 if dtype is torch.int8 else k + k % 2  # as csrc/gemm.h has it
    return new(weight, pitch(n) * size, dtype=dtype)


@native_op("d_weight")
def cpu_weight_gradient(y: Tensor, x: Tensor, n: int, k: int, windows: Tensor) -> Tensor:
    """y^T x over the real rows, (n, k) float32.

    Args:
        y, x: (N, pitch(n)) and (N, pitch(k)), half rows.
        windows: (2, B), see `windows.windows_of`.
    """
    return new(y, n, k, dtype=torch.float32)
