"""Inference of some windows at a time, all of an encoder's kernels in one native call.

Between two kernels Python checks the module, looks up its prepared weights, allocates the result and fills the struct,
which for a single window takes a third of the whole time. And where each kernel takes a large batch, every state is
written to memory and read again by the next one. A plan keeps the structs of all of an encoder's kernels, as they were
filled in one call that was recorded; for other inputs it replaces their sizes and the pointers to inputs and outputs,
and runs the kernels one after another (csrc/plan.h). A large batch is done in parts whose states stay in the cores'
caches. The results are the same bit for bit.

A plan holds as long as nothing has changed that Python would have looked at: the modules' attributes, parameters and
hooks, the weights' numbers as far as `prepared` compares them, and the settings in its key. Otherwise, and where a part
of the encoder runs elsewhere, the ops are called one by one.
"""

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from astroco_fast.kernels import prepared
from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.arguments import Recorded, recording
from astroco_fast.kernels.cpu.windows import windows_of
from astroco_fast.kernels.snapshot import Snapshot, watched
from astroco_fast.kernels.tensors import compute_dtype
from astroco_fast.reference.layout import Layout

MOST_ROWS = 1024  # of a part, for each thread; 0: no plans
_MOST_PLANS = 4  # of one encoder, each with scratch memory for a part

# What an op reads that changes from call to call, by field: a result of a call before it, or an input of the encoder.
_FLOW = ("x", "states", "mixed")
_INPUTS = ("time", "mag", "err", "hidden", "windows")

_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
)  # run_plan in csrc/plan.h
Points = tuple[Tensor, Tensor, Tensor, Tensor | None]
Run = Callable[[Points, Layout], tuple[Tensor, ...]]


def planned(model: nn.Module, points: Points, layout: Layout, settings: Hashable, run: Run) -> Any:
    """The outputs of `run`, by a plan where there is one.

    The first call with a model's weights only looks at them, and the second records a plan, so that a model that
    changes from call to call costs no recording.

    Args:
        model: the encoder.
        points: time, mag, err, rows (N,) float32, and hidden, (N,) bool or None.
        layout: the batch's layout.
        settings: of the caller: what else decides which backend runs an op.
        run: calls the ops one by one, on such points and their layout.
    """
    if torch.compiler.is_compiling() or not _fits(model, points, layout):
        return run(points, layout)
    planner = _planners.get(model)
    if planner is None or not planner.snapshot.holds():
        if (snapshot := Snapshot.of(model)) is not None:
            _planners[model] = Planner(snapshot)
        return run(points, layout)
    if planner.snapshot.training() or (torch.is_grad_enabled() and planner.snapshot.wants_gradient()):
        return run(points, layout)  # a part in training by itself draws at random, and keeps sums by window
    key = (compute_dtype(points[0]), torch.get_num_threads(), settings)
    return planner.run(key, points, layout, run)


def _fits(model: nn.Module, points: Points, layout: Layout) -> bool:
    """Whether a call is one of those that plans are made for."""
    if model.training or not MOST_ROWS or not layout.rows or not layout.batch:
        return False
    for values, dtype in zip(points, (torch.float32, torch.float32, torch.float32, torch.bool), strict=True):
        if values is None:
            continue
        if not values.is_cpu or type(values) is not Tensor or not values.is_contiguous() or values.requires_grad:
            return False
        if values.dtype is not dtype or values.shape != (layout.rows,):  # which the ops refuse with their reasons
            return False
    return not watched()


class Part(NamedTuple):
    """Consecutive windows of a batch, and all rows up to the next part's."""

    rows: slice
    batch: slice
    windows: Tensor  # (2, B), as `windows_of`, from the part's first row on

    def many(self) -> int:
        return self.rows.stop - self.rows.start

    def points_of(self, points: Points) -> Points:
        time, mag, err, hidden = points
        return time[self.rows], mag[self.rows], err[self.rows], None if hidden is None else hidden[self.rows]

    def layout_of(self, layout: Layout) -> Layout:
        lengths = self.windows[1]
        if layout.index is None and not layout.full:
            return Layout.padded(lengths, layout.length)
        return Layout.packed(lengths, layout.length, capacity=self.many())


def _parts(layout: Layout, most: int) -> list[Part]:
    """The batch in parts of at most `most` rows, or one window."""
    windows = windows_of(layout)
    starts = [*windows[0].tolist(), layout.rows]
    starts[0] = 0
    cuts = [0]
    for window in range(1, layout.batch):
        if starts[window + 1] - starts[cuts[-1]] > most:
            cuts.append(window)
    parts = []
    for first, last in pairwise([*cuts, layout.batch]):
        own = windows[:, first:last].contiguous().clone()
        own[0] -= starts[first]
        parts.append(Part(slice(starts[first], starts[last]), slice(first, last), own))
    return parts


class Planner:
    """The plans of one encoder, by settings; None: no plan can be made."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._plans: dict[Hashable, Plan | None] = {}
        self._lock = threading.Lock()  # a plan's structs and memory serve one call at a time

    def run(self, key: Hashable, points: Points, layout: Layout, run: Run) -> tuple[Tensor, ...]:
        if not self._lock.acquire(blocking=False):
            return run(points, layout)
        try:
            parts = _parts(layout, MOST_ROWS * torch.get_num_threads())
            largest = max(parts, key=Part.many)
            plan = self._plans.get(key)
            if key not in self._plans or (plan is not None and plan.rows < largest.many()):
                if len(parts) == 1:
                    return self._record(key, points, layout, run)
                self._record(key, largest.points_of(points), largest.layout_of(layout), run)
                plan = self._plans[key]
            if plan is not None and (outputs := plan(points, layout, parts)) is not None:
                return outputs
            if plan is not None:  # its weights have changed
                del self._plans[key]
        finally:
            self._lock.release()
        return run(points, layout)

    def _record(self, key: Hashable, points: Points, layout: Layout, run: Run) -> tuple[Tensor, ...]:
        with prepared.uses() as forms:
            calls: list[Recorded] = []
            recording.calls = calls
            try:
                outputs = run(points, layout)
            finally:
                recording.calls = None
        # The others prepare weights that were not prepared yet, and need not be made again.
        calls = [call for call in calls if "windows" in call.kernel.names]
        self._plans.pop(key, None)
        if len(self._plans) == _MOST_PLANS:
            del self._plans[next(iter(self._plans))]
        inputs = [*points, windows_of(layout)]
        usable = forms and all(form.sampled for form in forms) and _follows(calls, inputs, outputs)
        self._plans[key] = Plan(calls, forms, layout.rows, outputs) if usable else None
        return outputs


_planners: WeakKeyDictionary[nn.Module, Planner] = WeakKeyDictionary()


class Slot(NamedTuple):
    """A pointer in a struct, or in an array of pointers."""

    holder: Any
    name: str | int

    def get(self) -> int:
        place = self.holder[self.name] if isinstance(self.name, int) else getattr(self.holder, self.name)
        return place or 0

    def set(self, pointer: int | None) -> None:
        if isinstance(self.name, int):
            self.holder[self.name] = pointer
        else:
            setattr(self.holder, self.name, pointer)


def _slots(call: Recorded) -> Iterator[tuple[str, Slot]]:
    """The pointers of a call's struct, by field."""
    for field in call.kernel.fields:
        if field.pointers == 1:
            yield field.name, Slot(call.structure, field.name)
        elif field.pointers == 2:
            array = getattr(call.structure, field.name)
            yield from ((field.name, Slot(array, i)) for i in range(call.structure.count))


def _follows(calls: Sequence[Recorded], inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> bool:
    """Whether calls alone lead from the inputs to the outputs, with nothing between them that was not recorded."""
    given = {name: 0 if x is None else x.data_ptr() for name, x in zip(_INPUTS, inputs, strict=True)}
    made: set[int] = set()
    for call in calls:
        made |= {slot.get() for name, slot in _slots(call) if name in call.kernel.results}
        for name, slot in _slots(call):
            if (name in _FLOW and slot.get() not in made) or slot.get() != given.get(name, slot.get()):
                return False
    return all(output.data_ptr() in made for output in outputs)


class Plan:
    """Recorded calls, to be made again with other inputs.

    Attributes:
        rows: the most rows that a part may have.
    """

    def __init__(self, calls: list[Recorded], forms: list[Any], rows: int, outputs: Sequence[Tensor]) -> None:
        self.rows = rows
        self._structures, self._constants = [call.structure for call in calls], list(map(_constants, calls))
        self._forms = forms
        self._widths = [output.shape[1] for output in outputs]
        places = {output.data_ptr(): i for i, output in enumerate(outputs)}
        self._inputs = [[slot for c in calls for field, slot in _slots(c) if field == name] for name in _INPUTS]
        self._outputs: list[list[Slot]] = [[] for _ in outputs]
        self._by_window = [False for _ in outputs]  # pooled, which has no rows
        for call in calls:
            for name, slot in _slots(call):
                if slot.get() in places and (name in _FLOW or name in call.kernel.results):
                    self._outputs[places[slot.get()]].append(slot)
                    self._by_window[places[slot.get()]] |= name == "pooled"
        self._memory = _share_memory(calls, set(places))
        addresses = [(ctypes.cast(c.function, ctypes.c_void_p).value, ctypes.addressof(c.structure)) for c in calls]
        self._table = np.array(addresses, dtype=np.int64)
        words = [form.samples() for form in forms]
        self._where = np.concatenate([addresses for addresses, _ in words])
        self._what = np.concatenate([values for _, values in words])
        function: Any = ctypes.c_void_p.in_dll(native.library().handle, "run_plan").value
        self._function = _FUNCTION(function)
        self._arguments = (
            self._table.ctypes.data, len(calls), self._where.ctypes.data, self._what.ctypes.data, len(self._what)
        )  # fmt: skip

    def __call__(self, points: Points, layout: Layout, parts: Sequence[Part]) -> tuple[Tensor, ...] | None:
        """The outputs, part by part; None: weights are not what they were."""
        if not all(form.settle() for form in self._forms):
            return None
        sizes = [layout.batch if by_window else layout.rows for by_window in self._by_window]
        outputs = tuple(torch.empty(*shape, dtype=torch.float32) for shape in zip(sizes, self._widths, strict=True))
        for part in parts:
            places = [part.batch if by_window else part.rows for by_window in self._by_window]
            own = [y[place] for y, place in zip(outputs, places, strict=True)]
            inputs = [*part.points_of(points), part.windows]
            for slots, x in zip(chain(self._inputs, self._outputs), chain(inputs, own), strict=True):
                pointer = None if x is None else x.data_ptr()
                for slot in slots:
                    slot.set(pointer)
            for structure in self._structures:
                structure.rows, structure.batch = part.many(), part.windows.shape[1]
            if not self._function(*self._arguments):
                return None
        return outputs


def _constants(call: Recorded) -> list[Tensor]:
    """What a call's struct points to and is the same in every call: it has to be kept alive."""
    changing = {*_FLOW, *_INPUTS, *call.kernel.results}
    named = zip(call.kernel.names, call.values, strict=True)
    return [value for name, value in named if isinstance(value, Tensor) and name not in changing]


def _share_memory(calls: Sequence[Recorded], outputs: set[int]) -> list[Tensor]:
    """Point all results but the outputs to as few buffers as hold what is still needed, which stay in the cache.

    Returns:
        The buffers.
    """
    made = {}  # the size of each result, by address
    for call in calls:
        for name, value in zip(call.kernel.names, call.values, strict=True):
            if name in call.kernel.results and value.numel() and value.data_ptr() not in outputs:
                made[value.data_ptr()] = value.numel() * value.element_size()
    uses = [[slot for _, slot in _slots(call) if slot.get() in made] for call in calls]
    last = {slot.get(): i for i, slots in enumerate(uses) for slot in slots}
    ends = [{slot.get() for slot in slots if last[slot.get()] == i} for i, slots in enumerate(uses)]
    buffers: dict[int, Tensor] = {}
    free: list[Tensor] = []
    everything = []
    for call, slots, ending in zip(calls, uses, ends, strict=True):
        # A sublayer may write over its input: what it reads of some rows last is their residual, before it writes them.
        own = [slot.get() for name, slot in _slots(call) if name == "x" and slot.get() in ending]
        free[:0] = [buffers[address] for address in own]
        for slot in slots:
            address = slot.get()
            if address not in buffers:
                fitting = [buffer for buffer in free if buffer.numel() >= made[address]]
                if fitting:
                    free = [buffer for buffer in free if buffer is not fitting[0]]
                else:
                    fitting = [torch.empty(made[address], dtype=torch.uint8)]
                    everything.append(fitting[0])
                buffers[address] = fitting[0]
            slot.set(buffers[address].data_ptr())
        free += [buffers[address] for address in ending.difference(own)]
    return everything
