"""Inference by CUDA graphs: an encode is one copy and one launch, instead of a hundred launches from Python.

A graph repeats the kernels of one recorded call, with the addresses and sizes that they had. So a graph is of one
*bucket* (`buckets`): room for so many windows of T positions and so many rows, at least as many as the batch has. The
batch's own lengths are on the device, where kernels look them up (`Layout.on_device`), and so are the addresses of the
caller's tensors (`kernels/triton/transfer.py`): both stand in the graph's table, which the host writes before each
replay. The results are those of the ops called one by one, because a point's result does not depend on the rows beside
it.

The weights keep their addresses, so the graph reads them as they are. Prepared weights (`kernels.prepared`) are made
before the capture and kept; after a counted change of the weights a second graph is replayed, which begins by preparing
them anew in the same place. Graphs are dropped where anything else has changed that Python would have looked at: parts,
attributes, hooks, modes, tensors (`kernels.snapshot`), and have settings, flags and streams of their own in their keys.

What cannot be captured, and a call that somebody watches, wants gradients of, traces or captures himself, runs the ops
one by one. Nothing of this has run on a GPU yet, so it is off unless asked for.
"""

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from astroco_fast import ops
from astroco_fast.buckets import Bucket, Call
from astroco_fast.kernels import prepared
from astroco_fast.kernels.snapshot import Snapshot, watched
from astroco_fast.reference.encoder import AstroCoOutput, Encoder
from astroco_fast.reference.layout import Layout

MOST_GRAPHS = 16  # of one model; those used longest ago are dropped
_MOST_SEEN = 1024  # keys of calls that came once

enabled = os.environ.get("ASTROCO_CUDA_GRAPHS") == "1"


def set_cuda_graphs(on: bool) -> None:
    """Choose whether inference and training on a GPU run by CUDA graphs; off by default, see docs/gpu.md.

    `ASTROCO_CUDA_GRAPHS=1` in the environment switches them on from the start.
    """
    global enabled
    enabled = on
    if not on:
        _graphs.clear()


class Cuda:
    """What graphs need of a device. Tests put another in its place, because it needs a GPU."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}  # to capture on

    def has(self, device: torch.device) -> bool:
        """Whether graphs can be captured for a device now."""
        return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    def stream(self, device: torch.device) -> int:
        """The current stream's handle."""
        return torch.cuda.current_stream(device).cuda_stream

    def pool(self) -> Any:
        """Memory that graphs share."""
        return torch.cuda.graph_pool_handle()

    def upload(self, numbers: np.ndarray, table: Tensor) -> None:
        """Write a graph's numbers, without waiting for the device: torch keeps the pinned memory until it is copied."""
        host = torch.empty(len(numbers), dtype=table.dtype, pin_memory=True)
        host.numpy()[:] = numbers
        table.copy_(host, non_blocking=True)

    def capture(self, run: Callable[[], None], device: torch.device, pool: Any) -> Any:
        """What `run` launches, as a graph with a `replay`; nothing is computed."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        if device not in self._streams:  # torch's own is of whichever device captured first
            self._streams[device] = torch.cuda.Stream(device)
        # Other threads, as those that load data, may go on allocating pinned memory. A capture that fails does not end
        # torch's context of its stream, but the outer one's end is sure.
        captures = torch.cuda.graph(graph, pool=pool, stream=self._streams[device], capture_error_mode="thread_local")
        with torch.cuda.device(device), torch.cuda.stream(current), captures:
            run()
        return graph


driver: Any = Cuda()


class Table:
    """A graph's memory that the host writes: B, the addresses of inputs and outputs, then columns of W numbers, the
    lengths first; int64 on the device.

    Args:
        bucket: the sizes to have room for.
        dtypes: of the inputs, (B, T) each.
        outputs: how many results of windows are delivered to the caller's memory.
        columns: how many numbers each window has.
    """

    def __init__(
        self, bucket: Bucket, dtypes: Sequence[torch.dtype], outputs: int, device: torch.device, columns: int = 1
    ) -> None:
        self._bucket, self._dtypes = bucket, tuple(dtypes)
        self._header = 1 + len(dtypes) + outputs
        with torch.inference_mode(False):  # else it could not be written outside of that mode
            self.numbers = torch.zeros(self._header + columns * bucket.windows, dtype=torch.int64, device=device)

    def write(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], *columns: np.ndarray) -> None:
        """Write the table for a batch: one copy to the device. The tensors are contiguous; the columns have B numbers,
        and are zero beyond the batch.
        """
        numbers = np.zeros(len(self.numbers), dtype=np.int64)
        addresses = [x.data_ptr() for x in (*inputs, *outputs)]
        numbers[: self._header] = [len(columns[0]), *addresses]
        for column, values in zip(numbers[self._header :].reshape(-1, self._bucket.windows), columns, strict=True):
            column[: len(values)] = values
        driver.upload(numbers, self.numbers)

    def column(self, number: int) -> Tensor:
        """A column, (W,)."""
        return self.numbers[self._header :].view(-1, self._bucket.windows)[number]

    def inputs(self) -> list[Tensor]:
        """The batch's inputs, (W, T) each; they are zero beyond the batch."""
        from astroco_fast.kernels.triton.transfer import fetch

        shape = (self._bucket.windows, self._bucket.length)
        return [fetch(self.numbers, 1 + i, shape, dtype) for i, dtype in enumerate(self._dtypes)]

    def layout(self) -> Layout:
        """The batch's layout, whose lengths the device knows."""
        return Layout.on_device(self.column(0), self._bucket.length, self._bucket.rows, self._bucket.filler)

    def deliver(self, outputs: Sequence[Tensor]) -> None:
        """Copy the batch's part of the outputs, (W, ...) each, to the caller's memory."""
        from astroco_fast.kernels.triton.transfer import deliver

        for i, output in enumerate(outputs):
            deliver(self.numbers, 1 + len(self._dtypes) + i, output.contiguous())


G = TypeVar("G")
T = TypeVar("T")


class Store(Generic[G]):
    """Captured graphs by key. Those used longest ago are dropped, and what has come only once is not captured."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, G] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._pools: dict[int, Any] = {}  # by stream, on which one graph runs after the other

    def get(self, key: Hashable) -> G | None:
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def comes_again(self, key: Hashable) -> bool:
        """Whether the key has come before."""
        if key in self._seen:
            return True
        if len(self._seen) == _MOST_SEEN:
            self._seen.clear()
        self._seen.add(key)
        return False

    def put(self, key: Hashable, graph: G) -> None:
        if key not in self._graphs and len(self._graphs) == MOST_GRAPHS:
            self.drop(next(iter(self._graphs)))
        self._graphs[key] = graph

    def drop(self, key: Hashable) -> None:
        del self._graphs[key]
        self._seen.discard(key)

    def clear(self) -> None:
        """Drop all."""
        self._graphs.clear()
        self._seen.clear()

    def pool(self, stream: int) -> Any:
        """The memory of all graphs of a stream."""
        if stream not in self._pools:
            self._pools[stream] = driver.pool()
        return self._pools[stream]


@contextmanager
def attempt() -> Iterator[None]:
    """A context whose errors are `CaptureError`s: drivers and compilers raise many kinds."""
    try:
        yield
    except Exception as error:
        raise CaptureError(str(error)) from error


def capture(run: Callable[[], T], device: torch.device, pool: Any, anew: bool = False) -> tuple[Any, list[Any], T]:
    """What `run` launches, as a graph, the prepared weights that it reads, and what `run` returned.

    It must have run before, so that all is compiled and prepared.

    Args:
        run: launches the kernels.
        device: theirs.
        pool: the memory that the graph shares with others.
        anew: whether the graph prepares the weights anew.

    Raises:
        CaptureError: the cause says why that is not possible.
    """
    results: list[T] = []
    with attempt(), prepared.on_stream(driver.stream(device), anew), prepared.uses() as forms:
        graph = driver.capture(lambda: results.append(run()), device, pool)
    for form in forms:
        form.pinned = True
    return graph, forms, results[0]


class CaptureError(Exception):
    """The cause says why a graph could not be captured."""

    def reason(self) -> str:
        """The cause in one line."""
        return str(self.__cause__).split("\n")[0] or type(self.__cause__).__name__


class Graph:
    """The graphs of encodes of one kind: one that reads the prepared weights, and one that prepares them anew before.

    Args:
        call: a call of this kind.
        lengths: (B,) its real points.
        width: D.
    """

    def __init__(self, call: Call, lengths: np.ndarray, width: int) -> None:
        self._device, length = call.time.device, call.time.shape[1]
        self._bucket = Bucket.of(lengths, length)
        self._shapes = ((length, width), (width,), (length,))
        self._table = Table(self._bucket, [x.dtype for x in call.inputs()], len(self._shapes), self._device)
        self._captured: dict[bool, Any] = {}  # by whether the weights are prepared anew
        self._forms: list[Any] = []
        self._changes: list[int] = []  # of the weights, when they were prepared

    def forgotten(self) -> bool:
        """Whether prepared weights that the graphs read belong to the model no more."""
        return any(form.dropped for form in self._forms)

    def run(self, model: Encoder, call: Call, lengths: np.ndarray, changes: list[int], pool: Any) -> AstroCoOutput:
        """The outputs of a call, by a replay; the first time by running the ops, which are then captured.

        Args:
            model, call, lengths: the encoder, its arguments, and the real points.
            changes: the present ones of the weights.
            pool: the memory of the graphs.
        """
        like = torch.empty(0, dtype=torch.float32, device=self._device)
        outputs = AstroCoOutput(*(like.new_empty((len(lengths), *shape)) for shape in self._shapes))
        inputs = call.inputs()
        # They were prepared when they were first used, and are doubted where somebody asked to look at them again.
        anew = bool(self._captured) and (changes != self._changes or any(form.doubted for form in self._forms))
        if anew in self._captured:
            self._table.write(inputs, outputs, lengths)
            self._captured[anew].replay()
        else:
            with no_cached_casts():
                with attempt(), prepared.on_stream(driver.stream(self._device), anew):
                    self._table.write(inputs, outputs, lengths)
                    self._encode(model, call.centered)
                encode = partial(self._encode, model, call.centered)
                graph, forms, _ = capture(encode, self._device, pool, anew)
            self._captured[anew] = graph
            self._forms = self._forms or forms
        if anew:
            for form in self._forms:
                form.renewed()
        self._changes = changes
        return outputs

    def _encode(self, model: Encoder, centered: bool) -> None:
        """Encode the batch that the table describes, all on the device: this is what a graph repeats."""
        time, mag, err, *flags = self._table.inputs()
        hidden = flags[0].view(torch.bool) if flags else None
        results = model.encode_windows(time, mag, err, hidden, centered, self._table.layout())
        for result, shape in zip(results, self._shapes, strict=True):
            if result.shape != (self._bucket.windows, *shape) or result.dtype != torch.float32:
                raise TypeError(f"the encoder returned {tuple(result.shape)}, {result.dtype}")
        self._table.deliver(results)


class Graphs:
    """The graphs of one model in inference, by bucket, settings and stream.

    Attributes:
        snapshot: the model as it is in the graphs.
        refusal: the reason why there are none and will be none; None: there may be.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.refusal: str | None = None
        self.store: Store[Graph] = Store()
        self._lock = threading.Lock()  # between the writing of a table and the replay, no other thread may write it

    def run(
        self, model: Encoder, call: Call, lengths: np.ndarray, key: tuple[Any, ...], one_by_one: Callable[[], Any]
    ) -> AstroCoOutput:
        """The outputs of a call, by a graph where there is one; one is captured at the second call of its kind."""
        if not self._lock.acquire(blocking=False):
            return one_by_one()
        try:
            graph = self.store.get(key)
            if graph is not None and graph.forgotten():
                self.store.drop(key)
            elif graph is not None or self.store.comes_again(key):
                if graph is None:
                    config: Any = model.config
                    graph = Graph(call, lengths, config.width)
                pool = self.store.pool(driver.stream(call.time.device))
                outputs = graph.run(model, call, lengths, self.snapshot.changes(), pool)
                self.store.put(key, graph)
                return outputs
        except CaptureError as error:
            self.refusal = error.reason()
            self.store.clear()
            warnings.warn(
                f"no CUDA graphs for this {model.name}, whose ops run one by one: {self.refusal}",
                RuntimeWarning,
                stacklevel=6,  # the caller of the model
            )
        finally:
            self._lock.release()
        return one_by_one()


_graphs: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def encoded(model: Encoder, call: Call, one_by_one: Callable[[], Any]) -> AstroCoOutput:
    """The outputs of an encoder's call, by a CUDA graph where that is possible.

    Args:
        model: the encoder.
        call: its arguments.
        one_by_one: makes the call without a graph.
    """
    if not call.fits() or model.training or not driver.has(call.time.device) or watched():
        return one_by_one()
    graphs = _graphs_of(model)
    if graphs is None or graphs.refusal is not None or (torch.is_grad_enabled() and graphs.snapshot.wants_gradient()):
        return one_by_one()
    if (lengths := call.prefix()) is None:
        return one_by_one()
    key = (Bucket.of(lengths, call.time.shape[1]), *_kind(model, call))
    return graphs.run(model, call, lengths, key, one_by_one)


def _graphs_of(model: Encoder) -> Graphs | None:
    """The model's graphs, none at first, and none of what it was before; None: there can be none."""
    graphs = _graphs.get(model)
    if graphs is None or not graphs.snapshot.stands():
        _graphs.pop(model, None)
        snapshot = Snapshot.of(model)
        if snapshot is None or any(p.dtype is not torch.float32 for p in model.parameters()):
            return None
        graphs = _graphs[model] = Graphs(snapshot)
    return None if graphs.snapshot.training() else graphs


def _kind(model: Encoder, call: Call) -> tuple[Any, ...]:
    """What decides, beside the sizes and the model's parts, what is computed."""
    dtypes = (call.time.dtype, call.mag.dtype, call.err.dtype, call.hidden is not None)
    return (dtypes, call.centered, type(model), tuple(model.hides), *surroundings(call.time.device))


def surroundings(device: torch.device) -> tuple[Any, ...]:
    """What else decides what is launched, and where: device and stream, autocast, torch's switches, the backends."""
    from astroco_fast.kernels.triton.tensors import tf32_allowed

    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    switches = (tf32_allowed(), reduced, torch.are_deterministic_algorithms_enabled())
    return (device, driver.stream(device), autocast, *switches, *ops.settings())


@contextmanager
def no_cached_casts() -> Iterator[None]:
    """A context without autocast's cache, whose casts of the weights end with the caller's autocast."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
