"""BatchNorm over the real points of a batch (paper, section 3: BatchNorm1d in the convolutional sublayer)."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# The number of passes being repeated: in all threads, and in this thread (backward has one for each GPU).
_repeats = 0
_lock = threading.Lock()
_here = threading.local()


@contextlib.contextmanager
def frozen_statistics() -> Iterator[None]:
    """Keep running statistics as they are: a forward pass that backward repeats must not count twice.

    It holds for the thread that enters it, and for code that torch.compile traces meanwhile.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def statistics_frozen() -> bool:
    """Whether `frozen_statistics` is in force, or a backward pass, which runs a forward pass only to repeat it."""
    # torch.compile notices when a global changes, but not what belongs to a thread.
    if torch.compiler.is_compiling():
        return _repeats > 0
    return getattr(_here, "repeats", 0) > 0 or torch._C._current_graph_task_id() != -1


def _count(step: int) -> None:
    global _repeats
    with _lock:
        _repeats += step
    _here.repeats = getattr(_here, "repeats", 0) + step


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose statistics leave out padding, as if only the real rows had been given.

    The state_dict and settings are those of `nn.BatchNorm1d`; `momentum=None` averages over all batches, and without
    running statistics the batch's own are taken in evaluation, too. A batch with a single real row updates the running
    variance with the biased (zero) variance, where PyTorch raises; a batch with none updates nothing.

    Attributes:
        group: the process group over which training statistics are synchronised; None keeps them local.
    """

    group: Any = None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise rows.

        Args:
            x: (N, D), floating point.
            valid: (N,) bool, True at real rows; None: all are. The other rows' values have no effect.

        Returns:
            (N, D), float32 (float64 if x is); rows that are not real are undefined.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if valid is not None:
            x = x.masked_fill(~valid[:, None], 0)
        mean, var = self.running_mean, self.running_var
        if self.training or mean is None or var is None:
            mean, var = self._batch_statistics(x, valid)
        normalised = (x - mean) * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            normalised = normalised * self.weight
        return normalised if self.bias is None else normalised + self.bias

    def _batch_statistics(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (D,) over the real rows; in training, updates the running statistics."""
        real = x.new_full((), x.shape[0]) if valid is None else valid.sum().to(x.dtype)
        total = self._all_ranks(torch.cat([x.sum(0), real[None]]))
        count = total[-1].detach().clamp_min(1)
        mean = total[:-1] / count
        deviation = x - mean  # two passes: E[x^2] - E[x]^2 would cancel
        if valid is not None:
            deviation = deviation.masked_fill(~valid[:, None], 0)
        var = self._all_ranks(deviation.square().sum(0)) / count
        if self.training and not statistics_frozen():
            self._update_running(total[-1].detach(), mean.detach(), var.detach())
        return mean, var

    @torch.no_grad()
    def _update_running(self, real: Tensor, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or not self.track_running_stats:
            return
        share: float | Tensor | None = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # the mean over all batches so far
                share = 1 / self.num_batches_tracked.to(mean.dtype)
        step = (0.0 if share is None else share) * (real > 0).to(mean.dtype)
        unbiased = var * (real / (real - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step.to(self.running_mean.dtype))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), step.to(self.running_var.dtype))

    def _all_ranks(self, local: Tensor) -> Tensor:
        return local if self.group is None else _SumOverRanks.apply(local, self.group)


class _SumOverRanks(torch.autograd.Function):
    """The sum over a group's ranks.

    Its gradient is summed too, because every rank's output depends on every rank's input.
    """

    @staticmethod
    def forward(ctx, local, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        total = local.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
