"""Windows of light curves: which points each holds, and in what order an epoch visits them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astroco_fast.data.hashing import STREAM_ORDER, STREAM_WINDOW, hash64
from astroco_fast.errors import UserError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowTable:
    """W windows, each a run of consecutive points of a light curve.

    Args:
        curve: int64 (W,), the light curve of each window.
        start: int64 (W,), the window's first point, counted from the first point of all light curves.
        length: int32 (W,), the window's number of points, at least 1.
    """

    curve: Int64Array
    start: Int64Array
    length: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.curve)


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
    if size < 1:
        raise UserError(f"the window size must be at least 1, not {size}")
    offsets = np.asarray(offsets, dtype=np.int64)
    points = np.diff(offsets)
    windows = -(-points // size)
    curve = np.repeat(np.arange(len(points)), windows)
    rank = np.arange(len(curve)) - np.repeat(np.cumsum(windows) - windows, windows)
    start = offsets[curve] + rank * size
    length = np.minimum(size, offsets[curve + 1] - start).astype(np.int32)
    return WindowTable(curve, start, length)


def random_windows(
    table: WindowTable, offsets: Int64Array, size: int, seed: int, epoch: int, indices: Int64Array | None = None
) -> WindowTable:
    """Redraw where windows begin. Each gets min(size, points of its curve) points.

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
    return WindowTable(curve, first + shift.astype(np.int64), length.astype(np.int32))


def epoch_order(n: int, seed: int, epoch: int) -> Int64Array:
    """The order in which an epoch visits n windows, a random permutation, int64 (n,).

    It depends on (seed, epoch) alone, so that it is the same for any number of ranks.
    """
    return np.argsort(hash64(STREAM_ORDER, seed, epoch, np.arange(n)), kind="stable")
