"""The parts of an optimiser step that is exact over ranks and accumulation. `loop.py` puts them together.

The loss is a function of sums over the whole global batch, which no single forward pass sees. So each pass takes the
gradient of its own *part* of a plain sum. With two ranks of three micro-batches each, for example, the squared error of
the global batch is a sum of six parts, one for each pass. The gradients of the parts add up over micro-batches and
ranks, and one factor, known once the sums are reduced, turns their total into the gradient of the loss:

- "batch" (Astromer's convention): loss = sqrt(S / N), where S is the squared error over the N probed points. The part
  is the micro-batch's share of S, and dloss = dS / (2 sqrt(S N)).
- "curve" (paper, Eq. 3): loss = mean over the W windows with probed points of sqrt(S_w / n_w). The part is the sum of
  these roots over the micro-batch's windows, and dloss = dsum / W.
"""

import copy
import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from astroco_fast import capture, ops
from astroco_fast.data.batches import Batch
from astroco_fast.data.hashing import hash64
from astroco_fast.data.training import DeviceBatch
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step_graphs import StepGraphs
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d

_STREAM = 1000  # of the counter-based random numbers; the data package's streams have small numbers
_FEW = 8  # points of the dummy window


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


class Requests(NamedTuple):
    """What a rank asks for after the step; once reduced, what any rank asks for."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Outcome:
    """The results of a step, reduced over all ranks and the same on every rank.

    Attributes:
        loss: the loss of the global batch.
        sums: (8,) its vector of sums, indexed by `SumIndex`.
        grad_norm: the gradient's norm before clipping.
        factor: turns the accumulated gradients into the loss's clipped gradient; a float64 scalar on the device.
        points: the number of real points in the global batch.
        attention_pairs: the sum over windows of the squared number of real points (the work of attention).
        requests: what any rank asks for.
    """

    loss: float
    sums: list[float]
    grad_norm: float
    factor: Tensor
    points: float
    attention_pairs: float
    requests: Requests

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient are finite, so that the step can be applied."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Trainer:
    """The model, its optimiser and the average of its weights.

    A step calls `begin`, `forward_backward` for each micro-batch and `reduce`. It ends either with the optimiser's step
    and `update_average`, or with `undo`.

    Attributes:
        model: the encoder being trained.
        average: the exponential moving average of its weights and buffers; None if there is none.
        optimizer: AdamW.
        ranks: this process's place among the ranks.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, ranks: Ranks, seed: int, objective: Objective | None = None
    ) -> None:
        """Prepare the model for training.

        Args:
            model: the encoder, with the same weights on every rank.
            config: the settings, with their defaults filled in.
            ranks: this process's place among the ranks.
            seed: the run's seed.
            objective: the loss; None: pretraining's.
        """
        self.model = model.to(ranks.device)
        self.config, self.ranks, self.seed = config, ranks, seed
        self.objective = objective or Reconstruction(cast(str, config.loss))
        self.average = copy.deepcopy(model).requires_grad_(False) if config.ema_decay else None
        if config.sync_batchnorm and ranks.world > 1:
            for module in model.modules():
                if isinstance(module, MaskedBatchNorm1d):
                    module.group = dist.group.WORLD
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]  # at the beginning of a step
        # Synchronised running statistics are the same on every rank already.
        averaged = [] if config.sync_batchnorm or ranks.world == 1 else self._buffers
        self._averaged_buffers = [b for b in averaged if b.is_floating_point()]
        self._forward: nn.Module = model
        if ranks.world > 1:
            self._forward = _data_parallel(model)
            self._settle_buckets()
        # Ranks meet in DDP's backward pass, and other objectives read a batch's places on the host.
        by_graphs = ranks.world == 1 and isinstance(self.objective, Reconstruction)
        self._graphs = StepGraphs(model, self.parameters, self.objective.part, self.autocast) if by_graphs else None
        self.learning_rate, self.warmup_steps = cast(float, config.learning_rate), cast(int, config.warmup_steps)
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=self.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and to give to users: the average if there is one."""
        return self.average if self.average is not None else self.model

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision as configured."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step (from 0): a linear rise, constant, and a linear fall to zero if there is one."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.config.decay_steps and self.config.max_steps is not None:
            rate *= min(1.0, max(0, self.config.max_steps - step) / self.config.decay_steps)
        return rate

    def begin(self, step: int) -> None:
        """Begin a step (from 0). Dropout is seeded by its number, so that it does not depend on the steps before."""
        torch.manual_seed(_step_seed(self.seed, step, self.ranks.rank))
        self._forward.train()
        _copy(self._buffers, self._before)
        self._sums = torch.zeros(SumIndex.SIZE, dtype=torch.float64, device=self.ranks.device)
        self._by_window: list[Tensor] = []  # by micro-batch
        self._points = self._attention_pairs = 0.0

    def forward_backward(self, batch: DeviceBatch, *, is_last: bool) -> None:
        """Add a micro-batch's part to the gradients and sums. The ranks' gradients meet in the last micro-batch."""
        parts = self._graphs.run(batch) if self._graphs is not None and capture.enabled else None
        added, by_window = self._one_by_one(batch, is_last) if parts is None else parts
        lengths = batch.lengths.numpy()
        self._sums += added
        self._by_window.append(by_window)
        self._points += float(lengths.sum())
        self._attention_pairs += float(np.square(lengths).sum())

    def _one_by_one(self, batch: DeviceBatch, is_last: bool) -> tuple[Tensor, Tensor]:
        """The passes of `forward_backward`, op by op; the micro-batch's vector of sums and its numbers by window."""
        positional, keywords = batch.inputs()
        is_local = not is_last and isinstance(self._forward, DistributedDataParallel)
        with self._forward.no_sync() if is_local else nullcontext():  # type: ignore[operator]
            with self.autocast():
                output = self._forward(*positional, **keywords)
            value, added, by_window = self.objective.part(output, batch)
            value.backward()
        return added, by_window

    def reduce(self, requests: Requests) -> Outcome:
        """Sum over ranks everything that they must agree on; the step's one wait for the device."""
        mine = torch.tensor([self._points, self._attention_pairs, *map(float, requests)], dtype=torch.float64)
        reduced = self._sum_over_ranks(torch.cat([self._sums, mine.to(self.ranks.device, non_blocking=True)]))
        loss, factor = self.objective.loss_and_factor(reduced[: SumIndex.SIZE])
        factor = factor * self.ranks.world  # DDP has averaged over ranks
        norm = get_total_norm(self._gradients()).double() * factor
        if self.config.clip_norm is not None:
            factor = factor * (self.config.clip_norm / (norm + 1e-12)).clamp_max(1)
        on_host = torch.cat([loss[None], norm[None], reduced]).tolist()
        (loss_value, norm_value), (points, attention_pairs, *votes) = on_host[:2], on_host[2 + SumIndex.SIZE :]
        return Outcome(
            loss=loss_value,
            sums=on_host[2 : 2 + SumIndex.SIZE],
            grad_norm=norm_value,
            factor=factor,
            points=points,
            attention_pairs=attention_pairs,
            requests=Requests(*(vote > 0 for vote in votes)),
        )

    def scale_gradients(self, factor: Tensor) -> None:
        """Turn the accumulated gradients into the loss's, by `Outcome.factor`."""
        gradients = self._gradients()
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))

    def set_learning_rate(self, step: int) -> None:
        """Give the optimiser the learning rate of a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_at(step)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the average of weights and buffers, if there is one, towards the model's."""
        if self.average is None:
            return
        # Early on the random start would dominate the average, so it follows faster then.
        decay = min(cast(float, self.config.ema_decay), (1 + step) / (10 + step))
        pairs = list(zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True))
        means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(means, values, 1 - decay)
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        _copy([value for _, value in counters], [counter for counter, _ in counters])

    def undo(self) -> None:
        """Undo what the step has changed so far: gradients and running statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        _copy(self._before, self._buffers)

    def suspects(self, batches: list[Batch]) -> list[int]:
        """Windows of this rank's micro-batches in the step whose own loss is not finite."""
        bad = [~torch.isfinite(values).all(1).cpu().numpy() for values in self._by_window]
        return [int(i) for batch, is_bad in zip(batches, bad, strict=True) for i in batch.index[is_bad] if i >= 0]

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        """The ranks' values summed, (n,) float64; in the same collective, running statistics become the ranks' mean."""
        size, buffers = values.numel(), self._averaged_buffers
        everything = self.ranks.sum(torch.cat([values, *(b.double().flatten() for b in buffers)]))
        means = (everything[size:] / self.ranks.world).split([b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))
        return everything[:size]

    def _settle_buckets(self) -> None:
        """Run a dummy backward pass, so that DDP fixes its bucket order before step 0.

        After its first backward pass DDP sorts gradients into new buckets, by the order of their arrival. From three
        ranks on, the place of a gradient decides the order in which the ranks' shares are added, and so the last bits
        of the sum. A resumed run has fresh buckets: if its first step were unlike the others, the result would depend
        on where the run was stopped. Running statistics and gradients are put back; `begin` seeds random numbers.
        """
        before = [buffer.clone() for buffer in self._buffers]
        points = torch.zeros(1, _FEW, device=self.ranks.device)
        flags, lengths = torch.zeros_like(points, dtype=torch.bool), torch.full((1,), _FEW)
        self._forward.train()
        with self.autocast():
            keywords = {"hidden": flags, "centered": True, "lengths": lengths}
            # The model's first use, on all ranks at once: a backend that is missing is reported once.
            output = self.ranks.on_all_ranks(lambda: self._forward(points, points, points, **keywords))
        self.objective.touch(output).backward()
        for parameter in self.parameters:
            parameter.grad = None
        _copy(before, self._buffers)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups: weight decay is for matrices, not for biases, scales and mixing weights."""
        matrices = [p for p in self.parameters if p.dim() > 1]
        others = [p for p in self.parameters if p.dim() <= 1]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def _data_parallel(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # PyTorch 2.13 renames the argument; earlier versions do not know its new name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy tensors to others of their dtypes, by one launch a dtype."""
    for dtype in {source.dtype for source in sources}:
        pairs = [(x, y) for x, y in zip(sources, targets, strict=True) if x.dtype == dtype]
        torch._foreach_copy_([y for _, y in pairs], [x for x, _ in pairs])


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(hash64(_STREAM, seed, step, rank)) >> 1  # torch takes signed 64-bit seeds
