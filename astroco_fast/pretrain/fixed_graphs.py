"""Parts of a training step whose tensors stay in their places, by CUDA graphs (`astroco_fast.capture`).

Micro-batches differ in size, and have graphs by buckets of sizes (`step_graphs.py`). What precedes and follows them
reads and writes the same memory in every step: gradients, running statistics, the optimiser's state, the average. So
each such part has one graph, which holds as long as these tensors and settings are the same.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from astroco_fast import capture
from astroco_fast.capture import CaptureError

T = TypeVar("T")


@dataclass
class _Part:
    """A part of the step, and what it was like when it ran last.

    Attributes:
        key: its tensors' addresses, its settings, and torch's.
        tensors: kept alive, because another tensor could else come to have the address of one.
        captured: with a `replay`; None: not yet.
        result: the graph's own, which each replay overwrites.
    """

    key: tuple[Any, ...]
    tensors: list[Tensor]
    captured: Any = None
    result: Any = None


class FixedGraphs:
    """The graphs of a step's parts, by name.

    A part that is new, or whose tensors or settings have changed, runs op by op; the second time it is captured, and
    from the third time on it is replayed.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[str, _Part] = {}
        self._pool: Any = None
        self._refused = False

    def run(self, name: str, function: Callable[[], T], tensors: Iterable[Tensor], settings: Iterable[Any] = ()) -> T:
        """The result of `function()`, by a graph where there is one.

        Args:
            name: of the part.
            function: computes the part; it neither reads nor writes other tensors than these.
            tensors: what it reads and writes.
            settings: the numbers on the host that it depends on.
        """
        if self._refused or capture.watched() or not capture.driver.has(self._device):
            return function()
        held = list(tensors)
        key = [*map(Tensor.data_ptr, held)], [*settings], capture.surroundings(self._device)
        part = self._parts.get(name)
        if part is None or part.key != key:
            self._parts[name] = _Part(key, held)
            return function()
        if part.captured is not None:
            part.captured.replay()
            return part.result
        result = function()
        try:
            if self._pool is None:
                self._pool = capture.driver.pool()
            part.captured, _, part.result = capture.capture(function, self._device, self._pool)
        except CaptureError as error:
            self._refused = True
            self._parts.clear()
            told = f"no CUDA graphs around training's passes, whose ops run one by one: {error.reason()}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        return result
