"""Losses of a global batch, as functions of sums over it, which no single forward pass sees.

So each pass takes the gradient of its own *part* of a plain sum. With two ranks of three micro-batches each, for
example, the squared error of the global batch is a sum of six parts, one for each pass. The gradients of the parts add
up over micro-batches and ranks, and one factor, known once the sums are reduced, turns their total into the gradient of
the loss:

- "batch" (Astromer's convention): loss = sqrt(S / N), where S is the squared error over the N probed points. The part
  is the micro-batch's share of S, and dloss = dS / (2 sqrt(S N)).
- "curve" (paper, Eq. 3): loss = mean over the W windows with probed points of sqrt(S_w / n_w). The part is the sum of
  these roots over the micro-batch's windows, and dloss = dsum / W.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from astroco_fast import ops
from astroco_fast.data.training import DeviceBatch


class SumIndex:
    """Positions in a vector of sums, (8,) float64, over a micro-batch, a step or several steps.

    The vector holds the squared error by role (3), the number of probed points by role (3), the sum of the windows'
    RMSEs, and the number of windows with probed points.
    """

    SQUARED = slice(0, 3)
    COUNT = slice(3, 6)
    ROOTS = 6
    WINDOWS = 7
    SIZE = 8


def window_roots(squared: Tensor, count: Tensor) -> Tensor:
    """RMSE of each window, (B,), from sums by role (B, 3); zero, with zero gradient, where nothing is probed."""
    total, points = squared.sum(1), count.sum(1)
    usable = total > 0  # sqrt has no gradient at zero
    mean = torch.where(usable, total / points.clamp_min(1), torch.ones_like(total))
    return torch.where(usable, mean.sqrt(), total.detach())  # the total is zero here, or not finite


def part(loss: str, squared: Tensor, count: Tensor) -> Tensor:
    """A micro-batch's part of the sum: the scalar whose gradient it contributes.

    Args:
        loss: "batch" or "curve".
        squared, count: (B, 3) from `masked_loss`.
    """
    return squared.sum() if loss == "batch" else window_roots(squared, count).sum()


def sums(squared: Tensor, count: Tensor) -> Tensor:
    """The vector of sums of a micro-batch, (8,) float64, without a gradient; see `SumIndex`."""
    squared, count = squared.detach().double(), count.double()
    roots = window_roots(squared, count).sum()
    windows = (count.sum(1) > 0).sum().to(roots)
    return torch.cat([squared.sum(0), count.sum(0), roots[None], windows[None]])


def loss_and_factor(loss: str, totals: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the global batch, and the factor that turns the summed parts' gradient into the loss's.

    Args:
        loss: "batch" or "curve".
        totals: (8,) the vector of sums over the global batch, indexed by `SumIndex`.

    Returns:
        Two float64 scalars. Where the loss is zero (nothing probed, or a perfect fit) the factor is zero, not infinite.
    """
    squared, count = totals[SumIndex.SQUARED].sum(), totals[SumIndex.COUNT].sum()
    if loss == "batch":
        value = (squared / count.clamp_min(1)).sqrt()
        inverse = 1 / (2 * (squared * count).sqrt())
    else:
        value = totals[SumIndex.ROOTS] / totals[SumIndex.WINDOWS].clamp_min(1)
        inverse = 1 / totals[SumIndex.WINDOWS]
    return value, torch.where(squared == 0, torch.zeros_like(inverse), inverse)


class Objective(Protocol):
    """A loss whose parts add up over micro-batches and ranks, as this module's description says."""

    def part(self, output: Any, batch: DeviceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """From the model's output on a micro-batch: its part, a scalar with a gradient; its vector of sums, (SIZE,)
        float64; and numbers (B, ...) that are not finite for windows whose own loss is not.

        A CUDA graph repeats it: then the batch's `index` is on the device, and nothing may be read from the device.
        """

    def loss_and_factor(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the factor that turns the parts' gradient into the loss's, from the global batch's sums."""

    def touch(self, output: Any) -> Tensor:
        """A scalar that depends on every parameter to train."""


@dataclass(frozen=True)
class Reconstruction:
    """The loss of pretraining, "batch" or "curve"; see this module's description."""

    loss: str

    def part(self, output: Any, batch: DeviceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """See `Objective`."""
        squared, count = ops.masked_loss(output.reconstruction, batch.target, batch.role)
        return part(self.loss, squared, count), sums(squared, count), squared.detach()

    def loss_and_factor(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        return loss_and_factor(self.loss, totals)

    def touch(self, output: Any) -> Tensor:
        """See `Objective`."""
        return cast(Tensor, output.reconstruction.sum())
