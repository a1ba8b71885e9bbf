"""The parts of an optimiser step that is exact over ranks and accumulation. `loop.py` puts them together.

`objective.py` says how the loss of the global batch is a function of sums, and its gradient a sum of parts.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from astroco_fast import capture
from astroco_fast.data.batches import Batch
from astroco_fast.data.hashing import hash64
from astroco_fast.data.training import DeviceBatch
from astroco_fast.kernels import prepared
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.fixed_graphs import FixedGraphs
from astroco_fast.pretrain.objective import Objective, Reconstruction, SumIndex
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step_graphs import StepGraphs
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d

T = TypeVar("T")

_STREAM = 1000  # of the counter-based random numbers; the data package's streams have small numbers
_FEW = 8  # points of the dummy window


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

    A step calls `begin`, `forward_backward` for each micro-batch and `reduce`. It ends with either `apply` or `undo`.

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
        self._modules, self._training = list(model.modules()), list[bool]()
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]  # at the beginning of a step
        both = [model] if self.average is None else [model, self.average]
        self._held = [tensor for module in both for tensor in (*module.parameters(), *module.buffers())]
        # Synchronised running statistics are the same on every rank already.
        averaged = [] if config.sync_batchnorm or ranks.world == 1 else self._buffers
        self._averaged_buffers = [b for b in averaged if b.is_floating_point()]
        by_graphs = capture.enabled and capture.driver.has(ranks.device)
        # Ranks add up their gradients in DDP's backward pass, or, by graphs, of which each rank has others, after it.
        self._meet_late = ranks.world > 1 and not ranks.any(not by_graphs)
        self._forward: nn.Module = model
        if ranks.world > 1 and not self._meet_late:
            self._forward = _data_parallel(model)
            self._settle_buckets()
        # The step's vector of sums, and what the ranks count and ask for.
        self._totals = torch.zeros(SumIndex.SIZE + 2 + len(Requests()), dtype=torch.float64, device=ranks.device)
        self._sums = self._totals[: SumIndex.SIZE]
        self._by_graphs = False  # in this step
        self._fixed = FixedGraphs(ranks.device)
        passes = (model, self.parameters, self.objective.part, self.autocast, self._sums)
        # Synchronised BatchNorms meet in the passes.
        possible = hasattr(model, "encode_windows") and not (config.sync_batchnorm and ranks.world > 1)
        self._graphs = StepGraphs(*passes) if possible else None
        self._rates = torch.zeros(2, device=ranks.device)  # by graphs: the learning rate, and the average's decay
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
        if self._modes() != self._training:  # else `train`, which visits all modules, would do nothing
            self._forward.train()
            self._training = self._modes()
        by_graphs = capture.enabled and capture.driver.has(self.ranks.device)
        self._by_graphs = self._meet_late if self.ranks.world > 1 else by_graphs
        written = [*self._before, self._totals, *self._gradients()]
        self._part("beginning", self._clear, [*self._buffers, *written])
        self._by_window: list[Tensor] = []  # by micro-batch
        self._points = self._attention_pairs = 0.0

    def forward_backward(self, batch: DeviceBatch, *, is_last: bool) -> None:
        """Add a micro-batch's part to the gradients and sums. The ranks' gradients meet in the last micro-batch."""
        by_window = self._graphs.run(batch) if self._graphs is not None and self._by_graphs else None
        self._by_window.append(self._one_by_one(batch, is_last) if by_window is None else by_window)
        lengths = batch.lengths.numpy()
        self._points += float(lengths.sum())
        self._attention_pairs += float(np.square(lengths).sum())

    def _one_by_one(self, batch: DeviceBatch, is_last: bool) -> Tensor:
        """The passes of `forward_backward`, op by op; the micro-batch's numbers by window."""
        positional, keywords = batch.inputs()
        is_local = not is_last and isinstance(self._forward, DistributedDataParallel)
        with self._forward.no_sync() if is_local else nullcontext():  # type: ignore[operator]
            with self.autocast():
                output = self._forward(*positional, **keywords)
            value, added, by_window = self.objective.part(output, batch)
            value.backward()
        self._sums += added
        return by_window

    def reduce(self, requests: Requests) -> Outcome:
        """Sum over ranks everything that they must agree on; the step's one wait for the device."""
        mine = [self._points, self._attention_pairs, *map(float, requests)]
        held = [self._totals, *self._averaged_buffers, *self._gradients()]
        shared: list[Tensor] = []
        if self.ranks.world > 1:
            self._totals[SumIndex.SIZE :] = torch.tensor(mine, dtype=torch.float64)
            shared = self._part("sharing", self._shared, held)
            for values in shared:
                self.ranks.sum(values)
        results, factor = self._part("norm", lambda: self._judged(shared), [*shared, *held], [self.config.clip_norm])
        loss, norm, *totals = results.tolist()
        points, attention_pairs, *votes = totals[SumIndex.SIZE :] if self.ranks.world > 1 else mine
        return Outcome(
            loss=loss,
            sums=totals[: SumIndex.SIZE],
            grad_norm=norm,
            factor=factor,
            points=points,
            attention_pairs=attention_pairs,
            requests=Requests(*(vote > 0 for vote in votes)),
        )

    def apply(self, factor: Tensor, step: int) -> None:
        """Apply the gradient of a step (from 0): the optimiser's step and the average's.

        Args:
            factor: `Outcome.factor`.
            step: the number of steps taken before this one.
        """
        rate: float | Tensor = self.learning_rate_at(step)
        # Early on the random start would dominate the average, so it follows faster then.
        decay: float | Tensor = min(self.config.ema_decay or 0.0, (1 + step) / (10 + step))
        if self._by_graphs:
            capture.driver.upload(np.array([rate, decay], dtype=np.float32), self._rates)
            rate, decay = self._rates.unbind()
        for group in self.optimizer.param_groups:
            group.update(lr=rate, capturable=self._by_graphs)
        self._part("update", lambda: self._apply(factor, decay), [factor, *self._kept()], self._settings())
        if self._by_graphs:  # a replay counts no changes
            prepared.count_step()
            torch.autograd.graph.increment_version(self._held)

    def undo(self) -> None:
        """Undo what the step has changed so far: gradients and running statistics."""
        self._forget_gradients()
        _copy(self._before, self._buffers)

    def suspects(self, batches: list[Batch]) -> list[int]:
        """Windows of this rank's micro-batches in the step whose own loss is not finite."""
        bad = [~torch.isfinite(values).all(1).cpu().numpy() for values in self._by_window]
        return [int(i) for batch, is_bad in zip(batches, bad, strict=True) for i in batch.index[is_bad] if i >= 0]

    def _part(self, name: str, function: Callable[[], T], tensors: Iterable[Tensor], settings: Iterable[Any] = ()) -> T:
        """A part of the step that is the same in all steps, by a graph if this step runs by graphs."""
        return self._fixed.run(name, function, tensors, settings) if self._by_graphs else function()

    def _clear(self) -> None:
        """Remember the running statistics, and let sums and gradients begin at zero."""
        _copy(self._buffers, self._before)
        self._totals.zero_()
        if gradients := self._gradients():
            torch._foreach_zero_(gradients)

    def _shared(self) -> list[Tensor]:
        """What to sum over ranks: totals and running statistics, in float64; gradients, unless DDP has done so."""
        numbers = torch.cat([self._totals, *(b.double().flatten() for b in self._averaged_buffers)])
        return [numbers, torch.cat([g.flatten() for g in self._gradients()])] if self._meet_late else [numbers]

    def _judged(self, shared: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The loss, the gradient's norm and the totals in one tensor, and the factor; see `Outcome`.

        Args:
            shared: summed over ranks; the running statistics become the ranks' mean.
        """
        if shared:
            size = len(self._totals)
            _spread(shared[0][:size], [self._totals])
            _spread(shared[0][size:] / self.ranks.world, self._averaged_buffers)
        if self._meet_late:
            _spread(shared[1], self._gradients())
        loss, factor = self.objective.loss_and_factor(self._sums)
        if not self._meet_late:
            factor = factor * self.ranks.world  # DDP has averaged over ranks
        norm = get_total_norm(self._gradients()).double() * factor
        if self.config.clip_norm is not None:
            factor = factor * (self.config.clip_norm / (norm + 1e-12)).clamp_max(1)
        return torch.cat([loss[None], norm[None], self._totals]), factor

    def _apply(self, factor: Tensor, decay: float | Tensor) -> None:
        gradients = self._gradients()
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        self.optimizer.step()
        self._forget_gradients()
        self._update_average(decay)

    def _forget_gradients(self) -> None:
        if not self._by_graphs:  # else they stay where they are, and the next step sets them to zero
            self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _update_average(self, decay: float | Tensor) -> None:
        """Move the average of weights and buffers, if there is one, towards the model's."""
        if self.average is None:
            return
        pairs = list(zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True))
        means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        if isinstance(decay, Tensor):  # by one launch each; `_foreach_lerp_` takes no number on the device
            torch._foreach_sub_(means, values)
            torch._foreach_mul_(means, decay)
            torch._foreach_add_(means, values)
        else:
            torch._foreach_lerp_(means, values, 1 - decay)
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        _copy([value for _, value in counters], [counter for counter, _ in counters])

    def _kept(self) -> Iterator[Tensor]:
        """All tensors that `_apply` reads and writes, except the factor."""
        yield from (self._rates, *self._held)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter.grad
                yield from self.optimizer.state.get(parameter, {}).values()

    def _settings(self) -> Iterator[Any]:
        """What the optimiser reads on the host, but the learning rate."""
        for group in self.optimizer.param_groups:
            yield from (value for key, value in group.items() if key not in ("params", "lr"))

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

    def _modes(self) -> list[bool]:
        """Whether the model's modules are in training mode."""
        return [module.training for module in self._modules]

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


def _spread(values: Tensor, targets: list[Tensor]) -> None:
    """Copy the values, (n,), to tensors that have n numbers together."""
    if targets:
        parts = values.split([target.numel() for target in targets])
        torch._foreach_copy_(targets, [part.view_as(target) for part, target in zip(parts, targets, strict=True)])


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(hash64(_STREAM, seed, step, rank)) >> 1  # torch takes signed 64-bit seeds
