"""`CurveBatch`, the form in which modules exchange light curves: a batch of curves with their points end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astroco_fast.data.arrays import float_array
from astroco_fast.errors import UserError

if TYPE_CHECKING:  # that module imports this one
    from astroco_fast.data.periods import Periods

# Points of the longest light curve that is read from a file: more than any survey takes of one star. The memory for
# reading grows with the longest light curve.
MOST_POINTS = 10_000_000


@dataclass
class CurveBatch:
    """n light curves with P points in all. Curve i owns the points `offsets[i]:offsets[i + 1]`.

    Attributes:
        ids: (n,) object array of str, the stars' names; bands of one star share it.
        band: (n,) object array of str, "" where unknown.
        label: (n,) object array of str, the class of the star, "" where unknown.
        offsets: (n + 1,) int64, from 0 to P, never falling.
        time: (P,) float64, days.
        mag: (P,) float32, magnitudes; +inf if the flux was not positive, -inf if the value is an upper limit.
        err: (P,) float32, magnitudes, one standard deviation; -inf if the point is flagged as bad.
        source: the input's name in error messages.
        simulated: whether these light curves are simulated rather than observed.
        periods: of the n light curves, where they were searched before and stored; None: not searched.

    Raises:
        UserError: the arrays' lengths do not fit together, or an id, band or label is no text.
    """

    ids: NDArray[np.object_]
    band: NDArray[np.object_]
    label: NDArray[np.object_]
    offsets: NDArray[np.int64]
    time: NDArray[np.float64]
    mag: NDArray[np.float32]
    err: NDArray[np.float32]
    source: str = ""
    simulated: bool = False
    periods: Periods | None = None

    def __post_init__(self) -> None:
        self.ids, self.band, self.label = (np.asarray(a, dtype=object) for a in (self.ids, self.band, self.label))
        self.offsets = np.asarray(self.offsets, dtype=np.int64)
        self.time = float_array(self.time)
        self.mag, self.err = to_float32(self.mag), to_float32(self.err)
        n, points = len(self.ids), len(self.time)
        if not (len(self.band) == len(self.label) == len(self.offsets) - 1 == n):
            raise UserError(f"{self.source or 'curves'}: ids, band, label and offsets disagree on the number of curves")
        if not (len(self.mag) == len(self.err) == points == self.offsets[-1]) or self.offsets[0] != 0:
            raise UserError(f"{self.source or 'curves'}: time, mag, err and offsets disagree on the number of points")
        if n and self.lengths.min() < 0:
            raise UserError(f"{self.source or 'curves'}: offsets must not fall")
        for name, words in (("id", self.ids), ("band", self.band), ("label", self.label)):
            if not all(issubclass(kind, str) for kind in {*map(type, words)}):
                i, word = next((i, word) for i, word in enumerate(words) if not isinstance(word, str))
                raise UserError(f"{self.source or 'curves'}: {name} {i + 1} is {word!r}; it must be text (str)")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_points(self) -> int:
        """P, the number of points of all curves."""
        return len(self.time)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) int64, the number of points of each curve."""
        return self.offsets[1:] - self.offsets[:-1]  # of few curves in a fifth of np.diff's time

    def select(self, keep: NDArray[np.bool_]) -> CurveBatch:
        """The curves where `keep` (n,) is True, in order."""
        if keep.all():
            return self
        points = np.repeat(keep, self.lengths)
        return replace(
            self,
            ids=self.ids[keep],
            band=self.band[keep],
            label=self.label[keep],
            offsets=offsets_of(self.lengths[keep]),
            time=self.time[points],
            mag=self.mag[points],
            err=self.err[points],
            periods=None if self.periods is None else self.periods.select(keep),
        )

    def select_points(self, keep: NDArray[np.bool_]) -> CurveBatch:
        """The same n curves with only the points where `keep` (P,) is True. A curve may be left without points."""
        if keep.all():
            return self
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        return replace(
            self,
            offsets=kept_before[self.offsets],
            time=self.time[keep],
            mag=self.mag[keep],
            err=self.err[keep],
        )

    @classmethod
    def from_arrays(cls, curves: Sequence[ArrayLike], ids: Sequence[str], source: str = "") -> CurveBatch:
        """A batch of (L, 3) arrays with columns time (days), magnitude, error; band and label unknown.

        Raises:
            UserError: an array has another shape, or is not made of numbers.
        """
        arrays = []
        for name, curve in zip(ids, curves, strict=True):
            try:
                array = float_array(curve)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"{source}: light curve {name!r} is not an array of numbers: {error}") from error
            if array.ndim == 2 and array.shape[0] == 3 != array.shape[1]:
                raise UserError(
                    f"{source}: light curve {name!r} has shape {array.shape}; transpose it (array.T) to the shape "
                    "(L, 3), with columns time, magnitude, error"
                )
            if array.ndim != 2 or array.shape[1] != 3:
                wanted = "(L, 3), with columns time, magnitude, error"
                raise UserError(f"{source}: light curve {name!r} has shape {array.shape}; give it the shape {wanted}")
            arrays.append(array)
        points = np.concatenate([*arrays, np.empty((0, 3))])
        points[np.isneginf(points)] = np.nan  # which has a meaning of its own in a batch
        unknown = np.full(len(arrays), "", dtype=object)
        return cls(
            ids=np.array(list(ids), dtype=object),
            band=unknown,
            label=unknown.copy(),
            offsets=offsets_of(np.array([len(array) for array in arrays], dtype=np.int64)),
            time=np.ascontiguousarray(points[:, 0]),
            mag=to_float32(points[:, 1]),
            err=to_float32(points[:, 2]),
            source=source,
        )


def offsets_of(lengths: ArrayLike) -> NDArray[np.int64]:
    """(n + 1,) int64, the offsets of curves of these (n,) lengths that lie end to end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def to_float32(values: ArrayLike) -> NDArray[np.float32]:
    """Cast to contiguous float32. Values that are too large become infinite, which the cleaning drops."""
    return float_array(values, np.float32)


def too_long(source: str, star: str | None) -> UserError:
    """The error of a light curve that has too many points."""
    which = "a light curve" if star is None else f"the light curve of id {star!r}"
    return UserError(
        f"{source}: {which} has more than {MOST_POINTS} points, the most that are read; cut or bin it, and if it is of "
        "several stars, name the column of their ids by --columns.id"
    )


def two_labels(source: str, star: str, one: str, other: str) -> str:
    """The error message for a star with two labels."""
    return (
        f"{source or 'light curves'}: id {star!r} has two labels, {one!r} and {other!r}; keep one of them, "
        "or name another column by --columns.label"
    )
