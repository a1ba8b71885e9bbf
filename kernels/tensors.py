"""Shapes and strides that all kernels agree on.

- *Rows*, between ops: (N, D) float32, contiguous. D = 276 has a row of 1104 bytes, a multiple of 16.
- *Half rows*, inside ops: (N, P) in the compute dtype, contiguous, P = `pitch(D)`; the columns from D on are zero. So
  every row starts at a multiple of 16 bytes and loads stay 16 bytes wide: at a pitch of 276 a bfloat16 row would start
  at a multiple of 8 only.

Rows that are not real points are zero in every output.
"""

import torch
from torch import Tensor, nn

# 32 columns are 64 bytes of half precision: whole memory sectors or cache lines, and a depth that every tensor core
# takes.
PITCH = 32


def pitch(width: int) -> int:
    """The columns that a half row of `width` channels takes up."""
    return -(-width // PITCH) * PITCH


def new(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An output to be, contiguous, not initialised, on like's device; default like's dtype."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products are computed in: the autocast dtype, else x's own."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def rows_of(x: Tensor) -> Tensor:
    """Rows as kernels take them: copied where they are sliced, or where a gradient arrives expanded, with stride 0."""
    return x.contiguous()


def wants_gradient(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether a gradient may be asked for what `module` makes of `inputs`."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *module.parameters()))


def no_autocast(x: Tensor) -> torch.autocast:
    """Switches autocast off on x's device; tensors without data have none, and stand for any."""
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)
