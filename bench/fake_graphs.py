"""CUDA graphs without a GPU, for tests and counts: a graph that repeats recorded ops on the CPU, as a real one would.

A real graph repeats kernels with the addresses, sizes and numbers of the call that was captured; nothing of Python runs
again. So the fake one records every op that reaches the dispatcher, with its arguments, and a replay calls these ops
with these very tensors and writes the results to where the first ones were. What a capture refuses is refused here,
too: ops that wait for the device, and data from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Ops that wait for the device, or whose result has a size that the device knows, or that bring numbers from the host.
REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "aten.equal", "lift_fresh", "pin_memory")


class FakeGraph(TorchDispatchMode):
    """A graph of the ops that run while the mode is on; then the memory that they wrote to is as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # by address
        self._counted: tuple[Tensor, ...] = ()  # written tensors that count their changes

    def __enter__(self) -> FakeGraph:
        self._random = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_rng_state(self._random)
        with torch.no_grad():
            for tensor, content in self._before.values():
                tensor.detach().copy_(content)
        self._counted = tuple(tensor for tensor, _ in self._before.values() if not tensor.is_inference())
        self._before = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(name in str(func) for name in REFUSED):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        written = (
            x for x, a in zip(args, func._schema.arguments, strict=False) if a.alias_info and a.alias_info.is_write
        )
        for x in tree_leaves(list(written)):
            if isinstance(x, Tensor):
                self._before.setdefault(x.data_ptr(), (x, x.detach().clone()))
        out = func(*args, **kwargs)
        if func.namespace != "profiler":
            self.ops.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        """Run the recorded ops again, on the same memory, whose changes no tensor counts."""
        # Inference mode may write to tensors of either kind. Autocast has had its part when the ops were recorded.
        uncounted = torch.autograd._unsafe_preserve_version_counter(self._counted)
        with uncounted, torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for func, args, kwargs, out in self.ops:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else an argument, or a view
                        old.copy_(new)


class FakeCuda:
    """What `astroco_fast.capture.Cuda` is to a GPU, on the CPU.

    Attributes:
        launches: what the host has launched: copies to a table, and replays.
        graphs: those that are still alive.
        current: the current stream's handle.
        computes: whether a replay computes, and is not only counted.
    """

    def __init__(self, computes: bool = True) -> None:
        self.launches: list[str] = []
        self.graphs: WeakSet[FakeGraph] = WeakSet()
        self.current = 0
        self.computes = computes

    def has(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def stream(self, device: torch.device) -> int:
        return self.current

    def pool(self) -> object:
        return object()

    def upload(self, numbers: NDArray[np.int64], table: Tensor) -> None:
        self.launches.append("copy")
        table.copy_(torch.from_numpy(numbers))

    def capture(self, run: Callable[[], None], device: torch.device, pool: Any) -> Any:
        graph = FakeGraph()
        with graph:
            run()
        self.graphs.add(graph)
        return _Counted(graph, self)


class _Counted:
    """A graph whose replays its device counts."""

    def __init__(self, graph: FakeGraph, device: FakeCuda) -> None:
        self.graph, self._device = graph, device

    def replay(self) -> None:
        self._device.launches.append("replay")
        if self._device.computes:
            self.graph.replay()
