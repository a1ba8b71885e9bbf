"""The reconstruction error (paper, Eq. 3), before it is reduced over windows and ranks."""

import torch
from torch import Tensor

ROLES = ("hidden", "random", "unchanged")


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error at the probed points of each window, by role.

    Args:
        prediction: (B, T) magnitudes, zero-mean per window.
        target: (B, T) the true ones.
        role: (B, T) integers; 0 not probed, 1 hidden, 2 random, 3 unchanged. Values at points that are not probed have
            no effect.

    Returns:
        The sums of squared error and the counts, (B, 3) each, columns as in `ROLES`; float32 (float64 if prediction
        is).
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    # The error is masked before it is squared, so that a NaN at a point that is not probed does not reach the gradient.
    error = (prediction.to(dtype) - target.to(dtype)).masked_fill(role == 0, 0)
    is_role = torch.stack([role == code for code in (1, 2, 3)], dim=-1).to(dtype)  # (B, T, 3)
    squared = error.double().square()  # sums of float32 numbers would lose digits
    return (squared[..., None] * is_role).sum(1).to(dtype), is_role.sum(1)
