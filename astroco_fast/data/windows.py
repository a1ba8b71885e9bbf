"""Windows of light curves: which points stand together, and in what order an epoch visits them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astroco_fast.data.hashing import STREAM_ORDER, STREAM_WINDOW, hash64
from astroco_fast.errors import UserError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowTable:
    """Windows as runs of consecutive points of a store.

    Args:
        curve: int64 (W,), the light curve each window is of.
        start: int64 (W,), its first point, counted from the beginning of the store's points.
        length: int32 (W,), how many points it has, at least 1.
    """

    curve: Int64Array
    start: Int64Array
    length: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.curve)


def window_table(offsets: Int64Array, size: int = 200, curves: npt.NDArray[np.bool_] | None = None) -> WindowTable:
    """Cut light curves into sequential windows of `size` points; the last one of each is as short as it comes.

    Args:
        offsets: int64 (n + 1,), where each of n light curves begins; the last entry is the number of points.
        size: points in a full window.
        curves: bool (n,), which light curves to keep (a split, say); all of them by default.

    Returns:
        The windows in the order of the light curves, and in time order inside each. Empty curves have none.

    Raises:
        UserError: `size` is not positive, or `curves` is not one flag a light curve.
    """
    if size < 1:
        raise UserError(f"the window size must be at least 1, not {size}")
    offsets = np.asarray(offsets, dtype=np.int64)
    points = np.diff(offsets)
    if curves is None:
        kept = np.arange(len(points))
    else:
        if np.shape(curves) != points.shape:
            raise UserError(f"`curves` must be {len(points)} flags, one a light curve, not of shape {np.shape(curves)}")
        kept = np.flatnonzero(curves)
    windows = -(-points[kept] // size)
    curve = np.repeat(kept, windows)
    rank = np.arange(len(curve)) - np.repeat(np.cumsum(windows) - windows, windows)
    start = offsets[curve] + rank * size
    length = np.minimum(size, offsets[curve + 1] - start).astype(np.int32)
    return WindowTable(curve, start, length)


def random_windows(
    table: WindowTable, offsets: Int64Array, size: int, seed: int, epoch: int, indices: Int64Array | None = None
) -> WindowTable:
    """Redraw where windows begin: as many a light curve as before, each of min(size, points of the curve) points.

    A curve longer than a window so gives full windows only, which overlap at random, and other ones each epoch.

    Args:
        table: the sequential windows.
        offsets: int64 (n + 1,) of the light curves.
        size: points in a full window.
        seed, epoch: with the window's index, all that the draw depends on.
        indices: int64 (k,), which windows of the table to redraw; all by default.

    Returns:
        The k redrawn windows, each inside its light curve, all starts equally likely.
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
    """The order in which an epoch visits n windows: int64 (n,), a random permutation.

    It depends on (seed, epoch) alone, so any number of ranks can share it out.
    """
    return np.argsort(hash64(STREAM_ORDER, seed, epoch, np.arange(n)), kind="stable")
