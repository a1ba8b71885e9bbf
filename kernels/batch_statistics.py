"""BatchNorm's statistics between the kernels of a convolution, for every backend.

The statistics of a part of a batch (a tile of rows, a window, a rank) are (3, P) float32: the mean, the part of the
mean that float32 lost, and the sum of squared deviations. A backend's `merge` joins parts and returns (4, P): these
three and 1 / standard deviation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import pitch
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d, statistics_frozen

# Takes (count, partial, running_mean, running_var, batches, momentum, eps); returns the number of rows (1,) and the
# statistics (4, P).
Merge = Callable[..., tuple[Tensor, Tensor]]


class Norm(NamedTuple):
    """BatchNorm's state for one forward pass, besides its weight and bias.

    Attributes:
        running_mean, running_var, batches: the buffers to update; None: the pass updates no buffers.
        momentum, eps: BatchNorm's.
        group: the process group over which training statistics are synchronised; None: they are not synchronised.
        fixed: (4, P), the statistics in evaluation mode; None: they are computed from the batch.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    momentum: float
    eps: float
    group: Any
    fixed: Tensor | None


def norm_of(module: MaskedBatchNorm1d) -> Norm:
    """The module's `Norm` in its present mode."""
    tracked = module.training and module.track_running_stats and not statistics_frozen()
    running = (module.running_mean, module.running_var, module.num_batches_tracked) if tracked else (None, None, None)
    fixed = None if module.training else fixed_statistics(module)
    momentum = 0.0 if module.momentum is None else module.momentum  # in evaluation, which has no use for it
    return Norm(*running, momentum, module.eps, module.group, fixed)


def running_statistics(norm: MaskedBatchNorm1d) -> tuple[Tensor, Tensor]:
    """The running mean and variance (D,), which a module that kernels run has."""
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)


def fixed_statistics(norm: MaskedBatchNorm1d) -> Tensor:
    """The running statistics as `merge` returns them, (4, P); the two rows that evaluation does not read are zero."""
    mean, variance = running_statistics(norm)

    def make() -> Tensor:
        width = mean.shape[0]
        statistics = mean.new_zeros(4, pitch(width))
        statistics[0, :width] = mean
        statistics[3, :width] = torch.rsqrt(variance + norm.eps)
        return statistics

    return prepared(norm, "statistics", (mean, variance), make, (norm.eps,))


def merged(merge: Merge, count: Tensor, partial: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Join the statistics of a batch's parts, over all ranks of the group, and update the running statistics.

    Args:
        merge: the backend's function that joins parts.
        count: (parts,) float32, the number of real rows of each.
        partial: (parts, 3, P) float32, their statistics.
        norm: BatchNorm's state, with the running statistics.

    Returns:
        The number of rows (1,) and the statistics (4, P).
    """
    if norm.group is not None:
        count, local = merge(count, partial, None, None, None, norm.momentum, norm.eps)
        mine = torch.cat([count, local[:3].flatten()])
        ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(norm.group))]
        dist.all_gather(ranks, mine, group=norm.group)
        count = torch.stack([rank[0] for rank in ranks])
        partial = torch.stack([rank[1:].view(3, -1) for rank in ranks])
    return merge(count, partial, norm.running_mean, norm.running_var, norm.batches, norm.momentum, norm.eps)
