"""Shapes and strides of the tensors that kernels exchange.

- *Rows*, between ops: (N, D) float32, contiguous. At D = 276 a row has 1104 bytes, a multiple of 16.
- *Half rows*, inside ops: (N, P) in the compute dtype, contiguous, P = `pitch(D)`; the columns from D on are zero. So
  every row starts at a multiple of 16 bytes and loads stay 16 bytes wide: with 276 columns, a bfloat16 row would start
  at a multiple of 8 only.

Rows that are not real points are zero in every output.
"""

import torch
from torch import Tensor, nn

# 32 columns are 64 bytes in half precision: whole memory sectors or cache lines, and a depth that every tensor core
# supports.
PITCH = 32


def pitch(width: int) -> int:
    """The number of columns of a half row that holds `width` channels."""
    return -(-width // PITCH) * PITCH


def new(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised contiguous tensor on like's device, of like's dtype unless another is given."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's, or without autocast x's own."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def rows_of(x: Tensor) -> Tensor:
    """x contiguous, as kernels take rows: sliced rows, and gradients expanded with stride 0, are copied."""
    return x.contiguous()


def wants_gradient(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether autograd may ask for a gradient of what `module` computes from `inputs`."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *module.parameters()))


def no_autocast(x: Tensor) -> torch.autocast:
    """A context without autocast on x's device; for a tensor without data (meta), on the CPU."""
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)
