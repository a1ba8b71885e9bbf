"""Windows of light curves: which points each holds, in which view, and in what order an epoch visits them.

A window shows a light curve in one of two views. In the time view it is a run of consecutive points. In the folded
view the curve's points are dealt at random to as few windows as hold them all, as evenly as can be, and each window is
sorted by phase, so that each covers the whole cycle.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from astroco_fast.data.hashing import STREAM_DEAL, STREAM_ORDER, STREAM_WINDOW, hash64
from astroco_fast.data.views import Views
from astroco_fast.errors import UserError

Int64Array = npt.NDArray[np.int64]

NOT_DEALT = -1


@dataclass(frozen=True)
class WindowTable:
    """W windows of light curves.

    Args:
        curve: int64 (W,), the light curve of each window.
        start: int64 (W,), the first point, counted from the first point of all light curves: the window's in the time
            view, the curve's in the folded view.
        length: int32 (W,), the window's number of points, at least 1.
        part: int32 (W,), in the folded view the window's number among those of its curve; `NOT_DEALT` in the time view.
    """

    curve: Int64Array
    start: Int64Array
    length: npt.NDArray[np.int32]
    part: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.curve)

    def select(self, keep: npt.NDArray[Any]) -> "WindowTable":
        """The windows where `keep` is True, bool (W,), or those at the places that it names, integers."""
        return WindowTable(self.curve[keep], self.start[keep], self.length[keep], self.part[keep])

    def __add__(self, other: "WindowTable") -> "WindowTable":
        """These windows, then the other table's."""
        return WindowTable(
            curve=np.concatenate([self.curve, other.curve]),
            start=np.concatenate([self.start, other.start]),
            length=np.concatenate([self.length, other.length]),
            part=np.concatenate([self.part, other.part]),
        )


def window_table(offsets: Int64Array, size: int = 200) -> WindowTable:
    """Cut light curves into sequential windows of `size` points. The last window of each may be shorter.

    Args:
        offsets: int64 (n + 1,), the first point of each of n light curves; the last entry is the number of points.
        size: points in a full window.

    Returns:
        The windows in the order of the light curves, and in time order inside each. Empty curves have none.

    Raises:
        UserError: `size` is not positive.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    curve, rank, _ = _numbered(offsets, size)
    start = offsets[curve] + rank * size
    length = np.minimum(size, offsets[curve + 1] - start).astype(np.int32)
    return WindowTable(curve, start, length, np.full(len(curve), NOT_DEALT, dtype=np.int32))


def folded_table(offsets: Int64Array, size: int = 200) -> WindowTable:
    """Windows of the folded view, for the arguments of `window_table`; `deal` says which points each holds.

    Raises:
        UserError: `size` is not positive.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    curve, rank, windows = _numbered(offsets, size)
    points = np.diff(offsets)[curve]
    length = points // windows + (rank < points % windows)
    return WindowTable(curve, offsets[curve], length.astype(np.int32), rank.astype(np.int32))


def view_table(offsets: Int64Array, size: int, views: Views, periodic: npt.NDArray[np.bool_]) -> WindowTable:
    """Windows in the views that are asked for. A light curve without a period has the time view only.

    Args:
        offsets, size: as for `window_table`.
        views: "time", "folded", or "both": the windows of the time view, then those of the folded view.
        periodic: bool (n,), the light curves that have a period.
    """
    time, folded = window_table(offsets, size), folded_table(offsets, size)
    if views == "time":
        return time
    folded = folded.select(periodic[folded.curve])
    return (time if views == "both" else time.select(~periodic[time.curve])) + folded


def deal(points: int, part: int, size: int, seed: int, epoch: int) -> Int64Array:
    """The points of one folded window of a light curve, int64, in no particular order.

    Args:
        points: the light curve's number of points.
        part: the window's number among those of the light curve.
        size: points in a full window.
        seed, epoch: numbers on which the deal depends. It does not depend on the curve, so that a light curve's windows
            are the same in whatever table or batch it comes.
    """
    order = np.argsort(hash64(STREAM_DEAL, seed, epoch, np.arange(points)), kind="stable")
    return order[part :: -(-points // size)]


def _numbered(offsets: Int64Array, size: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """For each window its curve, its number among the windows of that curve, and the number of those; int64 (W,)."""
    if size < 1:
        raise UserError(f"the window size must be at least 1, not {size}")
    windows = -(-np.diff(offsets) // size)
    curve = np.repeat(np.arange(len(windows)), windows)
    rank = np.arange(len(curve)) - np.repeat(np.cumsum(windows) - windows, windows)
    return curve, rank, windows[curve]


def random_windows(
    table: WindowTable, offsets: Int64Array, size: int, seed: int, epoch: int, indices: Int64Array | None = None
) -> WindowTable:
    """Redraw where windows of the time view begin. Each gets min(size, points of its curve) points.

    A curve that is longer than a window then has full windows only, which overlap at random and differ between epochs.

    Args:
        table: the sequential windows.
        offsets: int64 (n + 1,), as for `window_table`.
        size: points in a full window.
        seed, epoch: numbers on which the draw depends, with the window's index.
        indices: int64 (k,), the windows of the table to redraw; by default all.

    Returns:
        The k redrawn windows, each inside its light curve. All starts are equally likely.
    """
    if indices is None:
        indices = np.arange(len(table))
    curve = table.curve[indices]
    first, end = offsets[curve], offsets[curve + 1]
    length = np.minimum(size, end - first)
    choices = (end - first - length + 1).astype(np.uint64)
    shift = hash64(STREAM_WINDOW, seed, epoch, indices) % choices  # fewer than 2^40 choices: the bias is below 2^-24
    return WindowTable(curve, first + shift.astype(np.int64), length.astype(np.int32), table.part[indices])


def epoch_order(n: int, seed: int, epoch: int) -> Int64Array:
    """The order in which an epoch visits n windows, a random permutation, int64 (n,).

    It depends on (seed, epoch) alone, so that it is the same for any number of ranks.
    """
    return np.argsort(hash64(STREAM_ORDER, seed, epoch, np.arange(n)), kind="stable")
