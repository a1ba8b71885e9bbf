"""Masking, the pretraining task: the choice of the probed points of a window, and their replacements.

Of n real points, round(n/2) are probed (rounded half to even). Of these, round(n/10) show the magnitude of another
point of the same window ("random"), round(n/10) are shown as they are ("unchanged"), and the rest, about 30 % of n, are
hidden. The draw is a function of (seed, epoch, window index) alone.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from astroco_fast.data.hashing import STREAM_MASK, STREAM_SOURCE, hash64

HIDDEN, RANDOM, UNCHANGED = 1, 2, 3
EVALUATION_EPOCH = 0  # training epochs count from 1, so that evaluation has masks of its own

# A sort key is 48 random bits above the 16 bits of the position. The number of bits does not follow the padded width,
# so that the draw for a window does not depend on how far it is padded.
_POSITION_BITS = np.uint64(16)
_POSITION_MASK = np.uint64(0xFFFF)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
MAX_WIDTH = 1 << 16

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


class MaskDraw(NamedTuple):
    """The roles of the points of B windows, and a list of the R random points.

    role: uint8 (B, T), `HIDDEN`, `RANDOM` or `UNCHANGED`; 0 where a point is not probed, and at padding.
    row, position, source: int64 (R,), for each random point its window, its position in the window, and the position
        in the same window whose magnitude it shows.
    """

    role: UInt8Array
    row: Int64Array
    position: Int64Array
    source: Int64Array


def role_counts(lengths: npt.NDArray[np.integer]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Numbers of hidden, random and unchanged points in windows of `lengths` (B,) real points: three int64 (B,).

    A window of two or more points has at least one probed point. A single point is never probed.
    """
    lengths = np.asarray(lengths)
    probed = np.rint(lengths / 2).astype(np.int64)
    tenth = np.rint(lengths / 10).astype(np.int64)
    return probed - 2 * tenth, tenth, tenth


def draw_roles(
    lengths: npt.NDArray[np.integer], window_index: Int64Array, width: int, seed: int, epoch: int
) -> MaskDraw:
    """Draw the roles of the points of B windows.

    Args:
        lengths: integers (B,), the number of real points of each window, which are its first; 0 for an empty slot.
        window_index: int64 (B,), the place of each window in the whole table.
        width: T, the padded width, at least max(lengths).
        seed, epoch: numbers on which the draw depends, with the window index; epoch 0 is evaluation's.

    Raises:
        ValueError: a length above the width, or a width above 65536.
    """
    points: Int64Array = np.asarray(lengths).astype(np.int64, copy=False)
    window_index = np.asarray(window_index, dtype=np.int64)
    if width > MAX_WIDTH or (len(points) and points.max() > width):
        raise ValueError(
            f"windows of up to {points.max(initial=0)} points do not fit a width of {width} (<= {MAX_WIDTH})"
        )
    hidden, random, unchanged = role_counts(points)
    if width == 0 or len(points) == 0:
        empty = np.zeros(0, dtype=np.int64)
        return MaskDraw(np.zeros((len(points), width), dtype=np.uint8), empty, empty, empty)

    keys = _sort_keys(points, window_index, width, seed, epoch)
    ranked = np.sort(keys, axis=1)
    # The points with the lowest keys are random, the next unchanged, the next hidden. Comparing every key with three
    # bounds is faster than scattering by rank. Each bound is a key, since some points are not probed.
    rows = np.arange(len(points))
    role = (keys < ranked[rows, hidden + random + unchanged][:, None]).view(np.uint8)  # HIDDEN, so far
    role += (keys < ranked[rows, random + unchanged][:, None]).view(np.uint8) * np.uint8(UNCHANGED - HIDDEN)
    role -= (keys < ranked[rows, random][:, None]).view(np.uint8) * np.uint8(UNCHANGED - RANDOM)

    row, rank = np.nonzero(np.arange(random.max()) < random[:, None])
    position = (ranked[row, rank] & _POSITION_MASK).astype(np.int64)
    others = points[row] - 1
    step = hash64(STREAM_SOURCE, seed, epoch, window_index[row], position) % others.astype(np.uint64)
    source = (position + 1 + step.astype(np.int64)) % points[row]
    return MaskDraw(role, row, position, source)


def _sort_keys(
    lengths: Int64Array, window_index: Int64Array, width: int, seed: int, epoch: int
) -> npt.NDArray[np.uint64]:
    """Sort keys, uint64 (B, T): 48 random bits above the position; the largest number at padding."""
    position = np.arange(width, dtype=np.uint64)
    keys = hash64(STREAM_MASK, seed, epoch, window_index[:, None], position)
    keys &= ~_POSITION_MASK
    keys |= position
    keys[np.arange(width) >= lengths[:, None]] = _LAST
    return keys
