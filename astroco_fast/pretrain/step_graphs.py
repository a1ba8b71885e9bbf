"""Forward and backward passes of training by CUDA graphs, if they are switched on (`astroco_fast.capture`).

A graph takes a micro-batch from the copy of its points to the sum of its gradients: the loss's part, dropout, which
draws from torch's generator as the generator stands at the replay, the update of BatchNorm's running statistics, and
the casts of the weights. It adds the gradients to buffers that all graphs share and that are the parameters' `.grad`,
and its vector of sums to the step's. `fixed_graphs.py` has the rest of the step.

A micro-batch whose bucket has no graph yet runs op by op on the bucket's number of windows and rows. So the bits of a
step do not depend on what came before it, such as a checkpoint.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from astroco_fast import capture
from astroco_fast.buckets import Bucket
from astroco_fast.capture import CaptureError, Store, Table
from astroco_fast.data.masking import HIDDEN
from astroco_fast.data.training import EMPTY, DeviceBatch
from astroco_fast.kernels.snapshot import Snapshot


@dataclass
class _Graph:
    """A captured micro-batch.

    Attributes:
        captured: with a `replay`.
        table: what the host writes before.
        like: the numbers of W windows, which are delivered.
        forms: the prepared weights that it writes and reads, kept alive.
    """

    captured: Any
    table: Table
    like: Tensor
    forms: list[Any]


class StepGraphs:
    """The graphs of a model's micro-batches.

    Args:
        model: has `encode_windows`, as encoders have; in training mode when it is used.
        parameters: those to train.
        part: the part of the loss, the vector of sums and the numbers by window; see `Objective.part`. The batch's
            `index` is on the device.
        autocast: mixed precision as configured.
        sums: the step's vector of sums, to add to.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        part: Callable[[Any, DeviceBatch], tuple[Tensor, Tensor, Tensor]],
        autocast: Callable[[], AbstractContextManager[None]],
        sums: Tensor,
    ) -> None:
        self._model, self._parameters, self._part, self._autocast = model, list(parameters), part, autocast
        self._sums = sums
        self._snapshot: Snapshot | None = None
        self._buffers: list[Tensor] = []
        self._store: Store[_Graph] = Store()
        self._gradients: list[Tensor] = []
        self._refused = False

    def run(self, batch: DeviceBatch) -> Tensor | None:
        """Add a micro-batch's gradients to the parameters', and its sums to the step's; return its numbers by window.

        None: nothing was done, and the ops of the model have to be called.
        """
        lengths = batch.lengths.numpy()
        if self._refused or not self._may_run(batch.time.device):
            return None
        bucket = Bucket.of(lengths, batch.time.shape[1])
        with self._autocast():
            key = (bucket, *capture.surroundings(batch.time.device))
        graph = self._store.get(key)
        if graph is None:
            return self._run_first(batch, bucket, key)
        by_window = graph.like.new_empty((len(lengths), *graph.like.shape[1:]))
        graph.table.write(_inputs(batch), [by_window], *_columns(batch))
        self._attach()
        graph.captured.replay()
        torch.autograd.graph.increment_version(self._buffers)  # a replay counts no changes
        return by_window

    def _may_run(self, device: torch.device) -> bool:
        """Whether the model is as it is in the graphs, and nobody watches; of another model they are dropped."""
        hooked = any(getattr(self._model, name) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
        recomputes = any(getattr(model, "recompute", False) for model in (self._model, *self._model.children()))
        if hooked or recomputes or capture.watched() or not capture.driver.has(device):
            return False
        if self._snapshot is None or not self._snapshot.stands():
            self._store.clear()
            self._snapshot, self._buffers = Snapshot.of(self._model), list(self._model.buffers())
        return self._snapshot is not None

    def _attach(self) -> None:
        """Make the buffers the parameters' gradients, with what these have, or zero."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        pairs = list(zip(self._parameters, self._gradients, strict=True))
        if fresh := [gradient for parameter, gradient in pairs if parameter.grad is None]:
            torch._foreach_zero_(fresh)
        if others := [(g, p.grad) for p, g in pairs if p.grad is not None and p.grad is not g]:
            torch._foreach_copy_([g for g, _ in others], [x for _, x in others])
        for parameter, gradient in pairs:
            parameter.grad = gradient

    def _run_first(self, batch: DeviceBatch, bucket: Bucket, key: tuple[Any, ...]) -> Tensor | None:
        """Run a micro-batch as a graph would, and capture the graph if the bucket has come before."""
        model: Any = self._model
        device, inputs, columns = batch.time.device, _inputs(batch), _columns(batch)
        table = Table(bucket, [x.dtype for x in inputs], 1, device, len(columns))

        def compute() -> Tensor:
            time, mag, err, target, role = table.inputs()
            index = table.column(1) + EMPTY
            still = DeviceBatch(time, mag, err, target, role, lengths=batch.lengths, index=index)
            with self._autocast():
                output = model.encode_windows(time, mag, err, role == HIDDEN, True, table.layout())
            value, added, by_window = self._part(output, still)
            torch._foreach_add_(self._gradients, torch.autograd.grad(value, self._parameters))
            self._sums.add_(added)
            return by_window

        def compute_and_deliver() -> Tensor:
            by_window = compute()
            table.deliver([by_window])
            return by_window

        before = [(tensor, tensor.clone()) for tensor in (*model.buffers(), self._sums)]
        gradients = [(parameter, parameter.grad) for parameter in self._parameters]
        done: Tensor | None = None
        try:
            with capture.no_cached_casts():
                with capture.attempt():
                    table.write(inputs, [self._sums], *columns)  # nothing is delivered yet
                    self._attach()
                    done = compute()[: len(batch.lengths)]
                if self._store.comes_again(key):
                    again = torch.empty_like(done)
                    table.write(inputs, [again], *columns)
                    pool = self._store.pool(capture.driver.stream(device))
                    # What eval mode folds into weights, as BatchNorm in fine-tuning, is made anew in each replay.
                    graph, forms, like = capture.capture(compute_and_deliver, device, pool, anew=True)
                    self._store.put(key, _Graph(graph, table, like, forms))
        except CaptureError as error:
            self._refused = True
            self._store.clear()
            told = f"no CUDA graphs in training, whose ops run one by one: {error.reason()}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            if done is None:  # as if nothing had been tried
                for tensor, content in before:
                    tensor.copy_(content)
                for parameter, gradient in gradients:
                    parameter.grad = gradient
        return done


def _inputs(batch: DeviceBatch) -> list[Tensor]:
    return [x.contiguous() for x in (batch.time, batch.mag, batch.err, batch.target, batch.role)]


def _columns(batch: DeviceBatch) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of windows: lengths, and places such that zero, as beyond the batch, is an empty slot."""
    return batch.lengths.numpy(), batch.index.numpy() - EMPTY
