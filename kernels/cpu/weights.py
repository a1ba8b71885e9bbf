"""Parameters in the form that the CPU's kernels read, and their gradients.

A matrix is packed: panels of columns, each read front to back (csrc/gemm.h). A vector is float32, padded to the pitch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new, pitch

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


def symbol(name: str, dtype: torch.dtype) -> str:
    """The C function `name` for this compute dtype."""
    return f"{name}_{_SUFFIX[dtype]}"


def padded(vector: Tensor) -> Tensor:
    """(F,) to (pitch(F),), zeros at the end."""
    missing = pitch(vector.shape[0]) - vector.shape[0]
    return F.pad(vector, (0, missing)) if missing else vector


def _new_packed(weight: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    n, k = weight.shape[::-1] if transposed else weight.shape
    return new(weight, pitch(n) * (k + k % 2), dtype=dtype)


@kernel_op(_new_packed)
def cpu_pack(weight: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    """The right factor (k, n) of a product, packed, from a float32 matrix (n, k), or (k, n) where `transposed`."""
    packed = _new_packed(weight, transposed, dtype)
    n, k = weight.shape[::-1] if transposed else weight.shape
    native.call(symbol("pack_weight", dtype), packed, weight.contiguous(), k, n, transposed)
    return packed


def _new_gradient(y: Tensor, n: int, k: int) -> Tensor:
    return new(y, n, k, dtype=torch.float32)


@kernel_op(_new_gradient)
def cpu_weight_gradient(y: Tensor, x: Tensor, n: int, k: int, windows: Tensor) -> Tensor:
    """y^T x over real rows, (n, k) float32.

    Args:
        y: (N, n or more), in the compute dtype; its row stride may be wider, columns from n on are left out.
        x: (N, k or more), in the compute dtype or float32.
        windows: (2, B), see `windows.windows`.
    """
    out = _new_gradient(y, n, k)
    native.call(
        symbol("weight_gradient", y.dtype), out, y, y.stride(0), x, x.stride(0), x.dtype == torch.float32, windows,
        windows.shape[1], y.shape[0], n, k,
    )  # fmt: skip
    return out
