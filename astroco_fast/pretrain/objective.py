"""The exact loss over the global batch, whatever the ranks and the accumulation.

The loss is a function of sums over the whole global batch, which no single forward pass sees. So each pass takes the
gradient of its own *part* of a plain sum; gradients of parts add up over micro-batches and ranks, and one factor, known
once the sums are reduced, turns their total into the loss's gradient:

- "batch" (Astromer's convention): loss = sqrt(S / N), S the squared error over the N probed points. Part: the
  micro-batch's share of S. dloss = dS / (2 sqrt(S N)).
- "curve" (paper, Eq. 3): loss = mean over the W windows with probed points of sqrt(S_w / n_w). Part: the sum of these
  roots over the micro-batch's windows. dloss = dsum / W.
"""

import torch
from torch import Tensor


class Sums:
    """Positions in the vector of sums of a step or an interval, all float64.

    squared error by role (3), probed points by role (3), sum of the windows' roots, windows with probed points.
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
    return torch.where(usable, mean.sqrt(), total.detach())  # zero, or what is not finite


def part(loss: str, squared: Tensor, count: Tensor) -> Tensor:
    """The scalar whose gradient a micro-batch contributes.

    Args:
        loss: "batch" or "curve".
        squared, count: (B, 3) from `masked_loss`.
    """
    return squared.sum() if loss == "batch" else window_roots(squared, count).sum()


def sums(squared: Tensor, count: Tensor) -> Tensor:
    """The `Sums` of a micro-batch, (8,) float64, without a gradient."""
    squared, count = squared.detach().double(), count.double()
    roots = window_roots(squared, count).sum()
    windows = (count.sum(1) > 0).sum().to(roots)
    return torch.cat([squared.sum(0), count.sum(0), roots[None], windows[None]])


def loss_and_factor(loss: str, totals: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the global batch, and what turns the summed parts' gradient into the loss's.

    Args:
        loss: "batch" or "curve".
        totals: (8,) `Sums` over the global batch.

    Returns:
        Two float64 scalars. The factor is zero where the loss is (nothing probed, or a perfect fit), not infinite.
    """
    squared, count = totals[Sums.SQUARED].sum(), totals[Sums.COUNT].sum()
    if loss == "batch":
        value = (squared / count.clamp_min(1)).sqrt()
        inverse = 1 / (2 * (squared * count).sqrt())
    else:
        value = totals[Sums.ROOTS] / totals[Sums.WINDOWS].clamp_min(1)
        inverse = 1 / totals[Sums.WINDOWS]
    return value, torch.where(squared == 0, torch.zeros_like(inverse), inverse)
