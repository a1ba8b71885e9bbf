"""The masked loss: squared error at probed points, as sums and counts by role."""

from torch import Tensor

from astroco_fast.kernels import squared_error as shared
from astroco_fast.kernels.triton.loss import squared_error, squared_error_backward


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts of points, (B, 3), of (B, T) tensors; see `reference.loss.masked_loss`."""
    return shared.squared_error(prediction, target, role, squared_error, squared_error_backward)
