"""Batches of windows: assembled by vectorised indexing of the points, and computed ahead of time by a thread."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from astroco_fast.data.masking import EVALUATION_EPOCH, HIDDEN, draw_roles
from astroco_fast.data.periods import Periods
from astroco_fast.data.windows import NOT_DEALT, WindowTable, deal, random_windows
from astroco_fast.errors import UserError

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

# The folded view's "time" is the phase times this many days: the order of a window's span in the time view.
CYCLE_DAYS = 50.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class Points(Protocol):
    """The P points of light curves, end to end, and where each curve begins: a `Store` or a `CurveBatch`."""

    @property
    def time(self) -> Float64Array: ...
    @property
    def mag(self) -> Float32Array: ...
    @property
    def err(self) -> Float32Array: ...
    @property
    def offsets(self) -> Int64Array: ...


@dataclass
class Batch:
    """B windows padded to T positions. The real points of each come first; everything is zero at padding.

    time: float32 (B, T), days, zero-mean over the window's real points (centred in float64); in the folded view
        `CYCLE_DAYS` times the phase.
    mag: float32 (B, T), magnitudes that the model sees: centred as `target`, with random points replaced. The model
        hides the hidden points itself, except in evaluation, where they are zero here already.
    err: float32 (B, T), magnitudes.
    target: float32 (B, T), the true magnitude, zero-mean over the window's real points (centred in float64).
    role: uint8 (B, T), `HIDDEN`, `RANDOM` or `UNCHANGED`; 0 where a point is not probed.
    lengths: int64 (B,), number of real points.
    index: int64 (B,), the window's place in the table; -1 for an empty slot.
    """

    time: Float32Array
    mag: Float32Array
    err: Float32Array
    target: Float32Array
    role: npt.NDArray[np.uint8]
    lengths: Int64Array
    index: Int64Array


class WindowBatches:
    """Assembles batches of windows, and draws their masks.

    Args:
        store: the points. Memory maps are read where needed, and never copied whole.
        table: the windows, of `size` points at most.
        size: T, the width of every batch.
        seed: seed of the masks and of random windows.
        random: redraw where windows of the time view begin in each training epoch (`random_windows`). Evaluation's
            windows stay.
        periods: the light curves' periods, if the table has folded windows. These are dealt anew in each training
            epoch.

    Raises:
        UserError: a window of the table is longer than `size`.
    """

    def __init__(
        self,
        store: Points,
        table: WindowTable,
        size: int,
        seed: int,
        random: bool = False,
        periods: Periods | None = None,
    ) -> None:
        if len(table) and table.length.max() > size:
            raise UserError(f"windows of {table.length.max()} points do not fit the window size {size}")
        self._periods = periods
        # Plain arrays, because indexing an np.memmap makes a Python-level view each time.
        self._time: Float64Array = np.asarray(store.time)
        self._mag: Float32Array = np.asarray(store.mag)
        self._err: Float32Array = np.asarray(store.err)
        self._offsets: Int64Array = np.asarray(store.offsets)
        self._table = table
        self._size = size
        self._seed = seed
        self._random = random
        _keep_freed_memory()

    def __len__(self) -> int:
        return len(self._table)

    def assemble(self, indices: npt.ArrayLike, epoch: int | None) -> Batch:
        """Gather windows, centre them, and draw their masks. The arrays of the batch are new.

        Args:
            indices: integers (B,), windows of the table, in any order; -1 is an empty slot (all padding, length 0).
            epoch: the epoch, on which the masks depend, with seed and index; 0 is evaluation's; None: no points are
                probed.

        Raises:
            IndexError: an index outside the table.
        """
        index = np.asarray(indices, dtype=np.int64)
        if len(index) and not (index.min() >= -1 and index.max() < len(self._table)):
            raise IndexError(f"window indices must be -1 to {len(self._table) - 1}, not {index.min()} to {index.max()}")
        start, lengths = self._place(index, epoch)
        real = (np.arange(self._size) < lengths[:, None]).astype(np.float64)
        time, mag, err = self._gather(index, start, lengths, epoch)
        target = _centred(mag, real, lengths)
        shown = target.copy()
        if epoch is None:
            role = np.zeros(target.shape, dtype=np.uint8)
        else:
            draw = draw_roles(lengths, index, self._size, self._seed, epoch)
            shown[draw.row, draw.position] = target[draw.row, draw.source]
            role = draw.role
            if epoch == EVALUATION_EPOCH:  # so that no model can see the magnitudes that it must predict
                shown[role == HIDDEN] = 0
        err = np.multiply(err, real, dtype=np.float32)
        return Batch(_centred(time, real, lengths), shown, err, target, role, lengths, index)

    def points(self, indices: npt.ArrayLike) -> Int64Array:
        """The points (B, T) of windows, in the order in which `assemble` gives them, counted from the first of all.

        Padding repeats a window's last point.

        Args:
            indices: integers (B,), windows of the table.
        """
        index = np.asarray(indices, dtype=np.int64)
        return self._points(index, *self._place(index, None), None)[0]

    def _place(self, index: Int64Array, epoch: int | None) -> tuple[Int64Array, Int64Array]:
        """The first point and the number of points of each window, int64 (B,); empty slots have length 0."""
        taken = index >= 0
        start, lengths = np.zeros_like(index), np.zeros_like(index)
        start[taken], lengths[taken] = self._table.start[index[taken]], self._table.length[index[taken]]
        if self._random and epoch is not None and epoch != EVALUATION_EPOCH:
            taken &= self._table.part[index] == NOT_DEALT
            windows = random_windows(self._table, self._offsets, self._size, self._seed, epoch, index[taken])
            start[taken], lengths[taken] = windows.start, windows.length
        return start, lengths

    def _gather(
        self, index: Int64Array, start: Int64Array, lengths: Int64Array, epoch: int | None
    ) -> tuple[Float64Array, Float32Array, Float32Array]:
        """Times, magnitudes and errors (B, T) of the windows' points."""
        points, phases = self._points(index, start, lengths, epoch)
        # Every index is in range: "clip" only saves numpy's check of that.
        time = self._time.take(points, mode="clip")
        for row, phase in phases.items():
            time[row] = CYCLE_DAYS * phase
        return time, self._mag.take(points, mode="clip"), self._err.take(points, mode="clip")

    def _points(
        self, index: Int64Array, start: Int64Array, lengths: Int64Array, epoch: int | None
    ) -> tuple[Int64Array, dict[int, Float64Array]]:
        """Points (B, T) of the windows, and the phases (T,) of those rows that are folded.

        Padding repeats a window's last point, so that every value is finite.
        """
        points = np.minimum(np.arange(self._size), np.maximum(lengths - 1, 0)[:, None])
        points += start[:, None]
        taken = np.flatnonzero(index >= 0)
        folded = taken[self._table.part[index[taken]] != NOT_DEALT]
        return points, {row: self._fold(points[row], int(lengths[row]), index[row], epoch) for row in folded}

    def _fold(self, points: Int64Array, length: int, window: int, epoch: int | None) -> Float64Array:
        """Replace the points (T,) of a folded window by those dealt to it, in the order of phase.

        Returns:
            The phases (T,), from 0 to 1, counted from minimum light.

        Raises:
            ValueError: there are no periods.
        """
        if self._periods is None:
            raise ValueError("WindowBatches: a table with folded windows needs the light curves' periods")
        curve, first = self._table.curve[window], self._table.start[window]
        n = int(self._offsets[curve + 1] - first)
        dealt = first + deal(n, int(self._table.part[window]), self._size, self._seed, epoch or EVALUATION_EPOCH)
        phase = (self._time[dealt] - self._periods.epoch[curve]) / self._periods.fold_period[curve] % 1.0
        order = np.argsort(phase, kind="stable")[np.minimum(np.arange(self._size), length - 1)]
        points[:] = dealt[order]
        return np.asarray(phase[order])


def _keep_freed_memory() -> None:
    """Make the C library keep freed blocks of a batch's size, rather than return them to the system each time.

    glibc returns blocks above a threshold at once, and the page faults of getting new ones take a third of a batch's
    time. Freeing one larger block, which is never touched, raises the threshold for good. It does no harm elsewhere.
    """
    np.empty(30 << 20, dtype=np.uint8)


def _centred(values: npt.NDArray[Any], real: Float64Array, lengths: Int64Array) -> Float32Array:
    """Values (B, T) minus their mean over the real points, computed in float64, as float32; zero at padding.

    `real` (B, T) is 1 at real points and 0 at padding: multiplying by it is several times faster than selecting.
    """
    exact = np.multiply(values, real, dtype=np.float64)
    mean = exact.sum(axis=1) / np.maximum(lengths, 1)
    exact -= mean[:, None] * real
    return exact.astype(np.float32)


class Prefetcher(Generic[Result]):
    """An iterator over results that one background thread computes ahead, in order; `prefetch` returns it.

    `close` it, or use `with`, to stop early.
    """

    def __init__(self, items: Iterable[Item], work: Callable[[Item], Result], depth: int) -> None:
        self._queue: queue.Queue[_Outcome[Result]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        # The thread holds no reference to this object, so that it stops when the object is dropped or the interpreter
        # ends. It is a daemon because the interpreter waits for other threads before it runs any finaliser.
        thread = threading.Thread(
            target=_produce, args=(items, work, self._queue, self._stopped), name="astroco-prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, _shut_down, thread, self._queue, self._stopped)
        thread.start()

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._stopped.is_set():
            raise StopIteration
        outcome = self._queue.get()
        if outcome.last:
            self.close()
            if outcome.error is not None:
                raise outcome.error
            raise StopIteration
        return outcome.value  # type: ignore[return-value]  # only the last outcome has no value

    def __enter__(self) -> "Prefetcher[Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread, after the result that it is computing, and drop its results. May be called twice."""
        self._finalizer()


def prefetch(items: Iterable[Item], work: Callable[[Item], Result], depth: int = 3) -> Prefetcher[Result]:
    """Compute `work(item)` for each item, in order, in one background thread, at most `depth` results ahead.

    An exception in `work` or in `items` is raised in the consumer, after the results that came before it.

    Args:
        items: iterated in the background thread.
        work: computes a result, such as `lambda indices: batches.assemble(indices, epoch)`. numpy lets other threads
            run meanwhile.
        depth: the most results that wait in the queue, 1 or more.
    """
    if depth < 1:
        raise ValueError(f"the depth of prefetching must be at least 1, not {depth}")
    return Prefetcher(items, work, depth)


@dataclass
class _Outcome(Generic[Result]):
    value: Result | None = None
    last: bool = False
    error: BaseException | None = None


def _produce(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    results: "queue.Queue[_Outcome[Result]]",
    stopped: threading.Event,
) -> None:
    try:
        for item in items:
            result = work(item)
            if stopped.is_set():
                return
            results.put(_Outcome(value=result))
        results.put(_Outcome(last=True))
    except BaseException as error:  # of any kind: the consumer raises it
        results.put(_Outcome(last=True, error=error))


def _shut_down(thread: threading.Thread, results: "queue.Queue[Any]", stopped: threading.Event) -> None:
    stopped.set()
    # A thread that waits at a full queue needs room before it sees the flag; after that, it puts at most one result.
    # The garbage collector may call this from the thread itself, which then does not wait, and will see the flag.
    while thread.is_alive() and thread is not threading.current_thread():
        try:
            results.get_nowait()
        except queue.Empty:
            thread.join(timeout=0.01)
