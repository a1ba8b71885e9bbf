"""Inference by CUDA graphs: an encode is one copy and one launch, instead of a hundred launches from Python.

A graph repeats the kernels of one recorded call, with the addresses and sizes that they had. So a graph is of one
*bucket*: room for so many windows of T positions and so many rows, at least as many as the batch has. The batch's own
lengths are on the device, where kernels look them up (`Layout.on_device`), and so are the addresses of the caller's
tensors (`kernels/triton/transfer.py`): both stand in the graph's table, which the host writes before each replay. The
results are those of the ops called one by one, because a point's result does not depend on the rows beside it.

The weights keep their addresses, so the graph reads them as they are. Prepared weights (`kernels.prepared`) are made
before the capture and kept; after a counted change of the weights the next call runs the ops one by one, which prepares
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
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from astroco_fast import ops
from astroco_fast.kernels import prepared
from astroco_fast.kernels.snapshot import Snapshot, watched
from astroco_fast.reference.encoder import AstroCoOutput, Encoder
from astroco_fast.reference.layout import ROW_MULTIPLE, Layout

MOST_GRAPHS = 16  # of one model; those used longest ago are dropped
_MOST_SEEN = 1024  # keys of calls that came once

enabled = os.environ.get("ASTROCO_CUDA_GRAPHS") == "1"


def set_cuda_graphs(on: bool) -> None:
    """Choose whether encoders on a GPU run by CUDA graphs in inference; off by default, see docs/gpu.md.

    `ASTROCO_CUDA_GRAPHS=1` in the environment switches them on from the start.
    """
    global enabled
    enabled = on
    if not on:
        _graphs.clear()


class Cuda:
    """What graphs need of a device. Tests put another in its place, because it needs a GPU."""

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
        """Write a graph's table, without waiting for the device: torch keeps the pinned memory until it is copied."""
        host = torch.empty(len(numbers), dtype=torch.int64, pin_memory=True)
        host.numpy()[:] = numbers
        table.copy_(host, non_blocking=True)

    def capture(self, run: Callable[[], None], device: torch.device, pool: Any) -> Any:
        """What `run` launches, as a graph with a `replay`; nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, as those that load data, may go on allocating pinned memory.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
        return graph


driver: Any = Cuda()


class Call(NamedTuple):
    """The arguments of an encoder's call, as of `Encoder.forward`."""

    time: Tensor
    mag: Tensor
    err: Tensor
    mask: Tensor | None
    hidden: Tensor | None
    centered: bool
    lengths: Tensor | None

    def prefix(self) -> np.ndarray | None:
        """The numbers of real points (B,), which come first in each window; None: no graph can take the call.

        A mask is copied to the host, as it is without graphs.
        """
        batch, length = self.time.shape
        if self.mask is not None:
            if self.lengths is not None or self.mask.dtype is not torch.bool:
                return None
            mask = self.mask.cpu().numpy()
            lengths = mask.sum(1)
            return lengths if np.array_equal(mask, np.arange(length) < lengths[:, None]) else None
        if self.lengths is None:
            return np.full(batch, length)
        given = self.lengths
        if not isinstance(given, Tensor) or given.shape != (batch,) or not given.is_cpu:
            return None
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            return None
        lengths = given.numpy().astype(np.int64)
        return lengths if (lengths >= 0).all() and (lengths <= length).all() else None

    def fits(self) -> bool:
        """Whether the tensors are such as graphs fetch; what is wrong with others is said by the call one by one."""
        points = (self.time, self.mag, self.err)
        given = [x for x in (*points, self.mask, self.hidden) if x is not None]
        if not all(type(x) is Tensor and x.shape == self.time.shape and not x.requires_grad for x in given):
            return False
        if self.time.dim() != 2 or not self.time.numel() or any(x.device != self.time.device for x in given):
            return False
        flags = self.hidden is None or self.hidden.dtype is torch.bool
        return flags and all(x.dtype in (torch.float32, torch.float64) for x in points)


class Bucket(NamedTuple):
    """The sizes that a graph is captured for: (W,) windows of T positions, N rows, at most `filler` of them filler."""

    windows: int
    length: int
    rows: int
    filler: int

    @staticmethod
    def of(lengths: np.ndarray, length: int) -> "Bucket":
        """The smallest bucket for a batch: windows by powers of two, rows by eighths of one, 12 % filler at most."""
        windows = 1 << (len(lengths) - 1).bit_length()
        real = max(int(lengths.sum()), 1)
        step = max(ROW_MULTIPLE, 1 << max(0, (real - 1).bit_length() - 4))
        rows = min(-(-real // step) * step, windows * length)
        return Bucket(windows, length, rows, min(step, rows))


class Table:
    """A graph's memory that the host writes: B, the addresses of inputs and outputs, the lengths; int64 on the device.

    Args:
        dtypes: of time, mag and err; uint8 for hidden, if it is given.
        width: D.
    """

    def __init__(self, bucket: Bucket, dtypes: Sequence[torch.dtype], width: int, device: torch.device) -> None:
        self.bucket, self.dtypes = bucket, tuple(dtypes)
        self.shapes = ((bucket.length, width), (width,), (bucket.length,))  # of a window's results
        self._header = 1 + len(dtypes) + len(self.shapes)
        with torch.inference_mode(False):  # else it could not be written outside of that mode
            self.numbers = torch.zeros(self._header + bucket.windows, dtype=torch.int64, device=device)

    def write(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], lengths: np.ndarray) -> None:
        """Write the table for a batch: one copy to the device."""
        numbers = np.zeros(len(self.numbers), dtype=np.int64)
        addresses = [x.data_ptr() for x in (*inputs, *outputs)]
        numbers[: self._header] = [len(lengths), *addresses]
        numbers[self._header : self._header + len(lengths)] = lengths
        driver.upload(numbers, self.numbers)

    def run(self, model: Encoder, centered: bool) -> None:
        """Encode the batch that the table describes, all on the device: this is what a graph repeats."""
        from astroco_fast.kernels.triton.transfer import deliver, fetch

        windows, length, rows, filler = self.bucket
        inputs = [fetch(self.numbers, 1 + i, (windows, length), dtype) for i, dtype in enumerate(self.dtypes)]
        hidden = inputs[3].view(torch.bool) if len(inputs) > 3 else None
        layout = Layout.on_device(self.numbers[self._header :], length, rows, filler)
        time, mag, err = inputs[:3]
        results = model.encode_windows(time, mag, err, hidden, centered, layout)
        for i, (result, shape) in enumerate(zip(results, self.shapes, strict=True)):
            if result.shape != (windows, *shape) or result.dtype is not torch.float32:
                raise RuntimeError(
                    f"the encoder returned {tuple(result.shape)}, {result.dtype}, which no graph delivers"
                )
            deliver(self.numbers, 1 + len(inputs) + i, result.contiguous())


class Graph(NamedTuple):
    """A captured graph.

    Attributes:
        captured: with a `replay`.
        table: what the host writes before.
        forms: the prepared weights that it reads, kept alive.
    """

    captured: Any
    table: Table
    forms: list[Any]

    def holds(self) -> bool:
        """Whether nobody has asked to look at the prepared weights again, or to forget them."""
        return not any(form.doubted or form.dropped for form in self.forms)


class Graphs:
    """The graphs of one model, by bucket, settings and stream.

    Attributes:
        refusal: the reason why there are none and will be none; None: there may be.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.refusal: str | None = None
        self.captured: OrderedDict[Hashable, Graph] = OrderedDict()
        self._changes: dict[Hashable, list[int]] = {}  # of the weights, when a graph's prepared weights were made
        self._seen: set[Hashable] = set()
        self._pools: dict[int, Any] = {}  # by stream, on which one graph runs after the other
        self._lock = threading.Lock()  # between the writing of a table and the replay, no other thread may write it

    def run(
        self,
        model: Encoder,
        call: Call,
        lengths: np.ndarray,
        key: tuple[Any, ...],
        one_by_one: Callable[[], Any],
    ) -> AstroCoOutput:
        """The outputs of a call, by a graph where there is one; one is captured at the second call of its kind."""
        if not self._lock.acquire(blocking=False):
            return one_by_one()
        try:
            changes = self.snapshot.changes()
            if (graph := self.captured.get(key)) is not None:
                self.captured.move_to_end(key)
                if graph.holds() and self._changes[key] == changes:
                    return self._replay(graph, call, lengths)
                with prepared.uses() as forms:
                    outputs = one_by_one()
                if {*map(id, graph.forms)} <= {*map(id, forms)}:  # all are up to date, and where they were
                    self._changes[key] = changes
                else:
                    self._drop(key)
                return outputs
            if key in self._seen:
                return self._capture(model, call, lengths, key, changes)
            if len(self._seen) == _MOST_SEEN:
                self._seen.clear()
            self._seen.add(key)
        except _CaptureError as error:
            self.refusal = str(error.__cause__).split("\n")[0] or type(error.__cause__).__name__
            self.captured.clear()
            warnings.warn(
                f"no CUDA graphs for this {model.name}, whose ops run one by one: {self.refusal}",
                RuntimeWarning,
                stacklevel=6,  # the caller of the model
            )
        finally:
            self._lock.release()
        return one_by_one()

    def _replay(self, graph: Graph, call: Call, lengths: np.ndarray) -> AstroCoOutput:
        inputs, outputs = _inputs(call), _outputs(graph.table, call)
        graph.table.write(inputs, outputs, lengths)
        graph.captured.replay()
        return outputs

    def _capture(
        self, model: Encoder, call: Call, lengths: np.ndarray, key: tuple[Any, ...], changes: list[int]
    ) -> AstroCoOutput:
        """Run the call once as the graph will, which gives its outputs and compiles its kernels; then capture it."""
        device, stream = call.time.device, driver.stream(call.time.device)
        inputs = _inputs(call)
        config: Any = model.config
        table = Table(Bucket.of(lengths, call.time.shape[1]), [x.dtype for x in inputs], config.width, device)
        outputs = _outputs(table, call)
        if stream not in self._pools:
            self._pools[stream] = driver.pool()
        try:
            with _no_cached_casts(device):
                table.write(inputs, outputs, lengths)
                table.run(model, call.centered)
                with prepared.on_stream(stream), prepared.uses() as forms:
                    graph = driver.capture(lambda: table.run(model, call.centered), device, self._pools[stream])
        except Exception as error:  # drivers and compilers raise many kinds
            raise _CaptureError from error
        for form in forms:
            form.pinned = True
        if len(self.captured) == MOST_GRAPHS:
            self._drop(next(iter(self.captured)))
        self.captured[key], self._changes[key] = Graph(graph, table, forms), changes
        return outputs

    def _drop(self, key: Hashable) -> None:
        del self.captured[key], self._changes[key]
        self._seen.discard(key)


class _CaptureError(Exception):
    """The cause says why a graph could not be captured."""


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
    key = (Bucket.of(lengths, call.time.shape[1]), *_kind(model, call), *ops.settings())
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
    """What decides, beside the sizes and the model's parts, what is computed, and where."""
    from astroco_fast.kernels.triton.tensors import tf32_allowed

    device = call.time.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    matmul = torch.backends.cuda.matmul
    flags = (
        tf32_allowed(),
        matmul.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )
    dtypes = (call.time.dtype, call.mag.dtype, call.err.dtype, call.hidden is not None)
    return (device, driver.stream(device), autocast, flags, dtypes, call.centered, type(model), tuple(model.hides))


def _inputs(call: Call) -> list[Tensor]:
    given = [call.time, call.mag, call.err]
    if call.hidden is not None:
        given.append(call.hidden.view(torch.uint8))
    return [x.contiguous() for x in given]


def _outputs(table: Table, call: Call) -> AstroCoOutput:
    """Room for a batch's results."""
    batch, device = call.time.shape[0], call.time.device
    return AstroCoOutput(*(torch.empty((batch, *shape), device=device, dtype=torch.float32) for shape in table.shapes))


@contextmanager
def _no_cached_casts(device: torch.device) -> Iterator[None]:
    """A context without autocast's cache, whose casts of the weights end with the caller's autocast."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
