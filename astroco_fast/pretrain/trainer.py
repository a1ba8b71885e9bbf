"""One optimiser step, exact over ranks and accumulation, or no step at all."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from astroco_fast import ops
from astroco_fast.data.batches import Batch
from astroco_fast.data.hashing import hash64
from astroco_fast.data.training import DeviceBatch, StepBatches, upload
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.objective import Sums, loss_and_factor, part, sums
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d

_STREAM = 1000  # of the counter-based generator; the data's streams have small numbers
_FEW = 8  # points of a window that nothing is learnt from


@dataclass(frozen=True)
class StepResult:
    """What came of a step; the same on every rank, times aside.

    Attributes:
        applied: False if the loss or the gradient was not finite on some rank: nothing has changed.
        loss: of the global batch.
        sums: its `Sums`.
        grad_norm: before clipping.
        learning_rate: of this step.
        votes: for each of the ranks' wishes, whether any rank had it.
        work: real points, and real points squared by window, of the global batch.
        suspects: windows of this rank whose own loss is not finite.
        data_seconds, model_seconds, optimizer_seconds: this rank's time.
    """

    applied: bool
    loss: float
    sums: list[float]
    grad_norm: float
    learning_rate: float
    votes: list[bool]
    work: tuple[float, float]
    suspects: list[int]
    data_seconds: float
    model_seconds: float
    optimizer_seconds: float


class Trainer:
    """The model, its optimiser and the average of its weights.

    Attributes:
        model: the encoder being trained.
        average: the exponential moving average of its weights and buffers, if asked for.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, ranks: Ranks, seed: int) -> None:
        """Args: a model built alike on every rank, settings with defaults filled in, the ranks, the run's seed."""
        self.model = model.to(ranks.device)
        self.config, self.ranks, self.seed = config, ranks, seed
        self.average = copy.deepcopy(model).requires_grad_(False) if config.ema_decay else None
        if config.sync_batchnorm and ranks.world > 1:
            for module in model.modules():
                if isinstance(module, MaskedBatchNorm1d):
                    module.group = dist.group.WORLD
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        # Synchronised running statistics are the same on every rank already.
        averaged = [] if config.sync_batchnorm or ranks.world == 1 else self._buffers
        self._averaged_buffers = [b for b in averaged if b.is_floating_point()]
        self._forward: nn.Module = model
        if ranks.world > 1:
            self._forward = _data_parallel(model)
            self._settle_buckets()
        assert config.learning_rate is not None
        assert config.warmup_steps is not None
        self.learning_rate, self.warmup_steps = config.learning_rate, config.warmup_steps
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=self.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and to give to users: the average where there is one."""
        return self.average if self.average is not None else self.model

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision as configured."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def step(
        self, batches: StepBatches, step: int, *, wishes: list[bool], stop: Callable[[], bool] = lambda: False
    ) -> StepResult | None:
        """Take step number `step` (from 0).

        Args:
            batches: the windows.
            step: steps taken before this one.
            wishes: flags of this rank; the result says for each whether any rank raised it.
            stop: whether this rank was asked to stop. On CPUs, where a step may take a minute, it is looked at between
                forward passes.

        Returns:
            None if stopped in between: then nothing has changed.
        """
        torch.manual_seed(_step_seed(self.seed, step, self.ranks.rank))  # dropout depends on the step, not on the past
        self._forward.train()
        saved = [buffer.clone() for buffer in self._buffers]
        start, data_seconds = time.perf_counter(), 0.0
        totals = torch.zeros(Sums.SIZE, dtype=torch.float64, device=self.ranks.device)
        by_window: list[Tensor] = []
        for i, micro in enumerate(batches.micro):
            if i > 0 and self.ranks.device.type == "cpu" and self.ranks.any(stop()):
                self._abandon(saved)
                return None
            before = time.perf_counter()
            on_device = upload(micro, self.ranks.device)
            data_seconds += time.perf_counter() - before
            squared, count = self._forward_backward(on_device, is_last=i == len(batches.micro) - 1)
            totals += sums(squared, count)
            by_window.append(squared)
        reduced = self._reduce(totals, wishes, _work(batches.micro))
        outcome, factor = self._outcome(reduced)
        model_seconds = time.perf_counter() - start - data_seconds
        loss, grad_norm, *rest = outcome
        applied = bool(np.isfinite([loss, grad_norm]).all())
        if applied:
            self._apply(factor, step)
        else:
            self._abandon(saved)
        return StepResult(
            applied=applied,
            loss=loss,
            sums=rest[: Sums.SIZE],
            grad_norm=grad_norm,
            learning_rate=self._learning_rate(step),
            votes=[vote > 0 for vote in rest[Sums.SIZE + 2 :]],
            work=(rest[Sums.SIZE], rest[Sums.SIZE + 1]),
            suspects=[] if applied else _suspects(batches.micro, by_window),
            data_seconds=data_seconds,
            model_seconds=model_seconds,
            optimizer_seconds=time.perf_counter() - start - data_seconds - model_seconds,
        )

    def _settle_buckets(self) -> None:
        """Have DDP choose its buckets before the first step, which a run that goes on takes with fresh buckets.

        DDP sorts gradients into new buckets, by the order of their arrival, after its first backward pass. From three
        ranks on, where a gradient lies decides in which order the ranks' shares are added, and so the sum's last bits:
        a first step unlike the others would make a run depend on where it was stopped. So the first backward pass is
        one of no account. Running statistics and gradients are put back; `step` seeds the random numbers.
        """
        saved = [buffer.clone() for buffer in self._buffers]
        points = torch.zeros(1, _FEW, device=self.ranks.device)
        flags, lengths = torch.zeros_like(points, dtype=torch.bool), torch.full((1,), _FEW)
        self._forward.train()
        with self.autocast():
            keywords = {"hidden": flags, "centered": True, "lengths": lengths}
            # The model's first use: a backend that is not there is told once, for all ranks.
            output = self.ranks.everywhere(lambda: self._forward(points, points, points, **keywords))
        output.reconstruction.sum().backward()
        for parameter in self.parameters:
            parameter.grad = None
        self._restore(saved)

    def _forward_backward(self, batch: DeviceBatch, is_last: bool) -> tuple[Tensor, Tensor]:
        """Add the gradient of a micro-batch's part; its sums and counts (B, 3). Ranks meet in the last one only."""
        positional, keywords = batch.inputs()
        with self._accumulating(not is_last):
            with self.autocast():
                prediction = self._forward(*positional, **keywords).reconstruction
            squared, count = ops.masked_loss(prediction, batch.target, batch.role)
            part(self.config.loss, squared, count).backward()
        return squared.detach(), count

    @contextmanager
    def _accumulating(self, accumulate: bool) -> Iterator[None]:
        if accumulate and isinstance(self._forward, DistributedDataParallel):
            with self._forward.no_sync():
                yield
        else:
            yield

    def _reduce(self, totals: Tensor, wishes: list[bool], work: tuple[float, float]) -> Tensor:
        """One sum over ranks of everything that they must agree on; running statistics become the ranks' mean."""
        mine = torch.tensor([*work, *map(float, wishes)], dtype=torch.float64).to(totals.device, non_blocking=True)
        everything = torch.cat([totals, mine])
        size, buffers = everything.numel(), self._averaged_buffers
        everything = self.ranks.sum(torch.cat([everything, *(b.double().flatten() for b in buffers)]))
        means = (everything[size:] / self.ranks.world).split([b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))
        return everything[:size]

    def _outcome(self, reduced: Tensor) -> tuple[list[float], Tensor]:
        """[loss, gradient norm, *reduced] on the host (the step's one wait for the device); the gradients' factor."""
        loss, factor = loss_and_factor(self.config.loss, reduced[: Sums.SIZE])
        factor = factor * self.ranks.world  # DDP has averaged over ranks
        norm = get_total_norm(self._gradients()).double() * factor
        if self.config.clip_norm is not None:
            factor = factor * (self.config.clip_norm / (norm + 1e-12)).clamp_max(1)
        return torch.cat([loss[None], norm[None], reduced]).tolist(), factor

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _apply(self, factor: Tensor, step: int) -> None:
        gradients = self._gradients()
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._update_average(step)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        assert self.average is not None
        assert self.config.ema_decay is not None
        # Early on the average would be dominated by the random start: let it follow faster.
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        pairs = list(zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True))
        means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(means, values, 1 - decay)
        for counter, value in pairs:
            if not counter.is_floating_point():
                counter.copy_(value)

    def _abandon(self, saved: list[Tensor]) -> None:
        """Undo what a step has done so far: gradients and running statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        self._restore(saved)

    def _restore(self, saved: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, saved, strict=True):
            buffer.copy_(value)

    def _learning_rate(self, step: int) -> float:
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay pulls weights towards zero: meant for matrices, not for scales, shifts and mixing weights."""
        matrices = [p for p in self.parameters if p.dim() > 1]
        others = [p for p in self.parameters if p.dim() <= 1]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def _data_parallel(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # PyTorch 2.13 renames the argument; its new name does not exist in those before.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(hash64(_STREAM, seed, step, rank)) >> 1  # torch takes signed 64-bit seeds


def _work(batches: list[Batch]) -> tuple[float, float]:
    """Real points, and the sum over windows of their points squared."""
    lengths = np.concatenate([batch.lengths for batch in batches]).astype(np.float64)
    return float(lengths.sum()), float(np.square(lengths).sum())


def _suspects(batches: list[Batch], squared: list[Tensor]) -> list[int]:
    """Windows whose own squared error, (B, 3) by batch, is not finite."""
    bad = [~torch.isfinite(by_role).all(1).cpu().numpy() for by_role in squared]
    return [int(i) for batch, is_bad in zip(batches, bad, strict=True) for i in batch.index[is_bad] if i >= 0]
