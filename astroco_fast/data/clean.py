"""Cleaning: points that are not measurements, and light curves that are too short, are dropped, counted by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch
from astroco_fast.errors import UserError

LIMIT = "points: upper limits"
FLAGGED = "points: flagged by their survey"
NOT_FINITE = "points: not finite"
NO_FLUX = "points: flux not positive"
SENTINEL = "points: sentinel value"
BAD_ERROR = "points: error not positive"
COPY = "points: exact duplicates"
SHORT_POINTS = "points: in curves that are too short"
SHORT_CURVES = "curves: too few points"

# Days. Beyond these limits the column of times is in seconds, or mixes JD with MJD: no calendar in use counts more than
# LATEST_TIME days (JD is at 2.5 million), and no light curve lasts 2,700 years.
LATEST_TIME = 1e7
LONGEST_CURVE = 1e6


@dataclass(frozen=True)
class CleanConfig:
    """The limits of measurements, and of light curves that are long enough.

    Args:
        min_points: light curves with fewer good points than this are dropped.
        sentinel: a magnitude of this absolute value or more, or an error of this value or more, stands for "no
            measurement" (surveys write -99, 99.999, -999, 9999 ...).
    """

    min_points: int = 10
    sentinel: float = 90.0

    def __post_init__(self) -> None:
        if self.min_points < 1:
            raise UserError(f"clean.min_points must be at least 1, not {self.min_points}")
        if not self.sentinel > 0:
            raise UserError(f"clean.sentinel must be positive, not {self.sentinel}")


def clean(
    batch: CurveBatch, config: CleanConfig | None = None, keep_short: bool = False
) -> tuple[CurveBatch, Counter[str]]:
    """Drop bad points, sort each curve by time, and drop curves that are left with too few points.

    Points with equal times are kept, in the order in which they came, but of points that are equal in time, magnitude
    and error only the first: what a table holds twice was measured once. A point that is bad in several ways is counted
    once, under the first of: upper limit (magnitude -inf), flagged (error -inf), flux not positive (magnitude +inf),
    not finite, sentinel, error not positive.

    Args:
        batch: the curves.
        config: the limits.
        keep_short: keep curves with too few points, whose numbers are counted all the same.

    Returns:
        The clean curves, and the numbers of points and curves that were dropped, by reason (this module's constants).

    Raises:
        UserError: the times of a curve that is kept are not days; names the curve and where it comes from.
    """
    config = config or CleanConfig()
    dropped: Counter[str] = Counter()
    good = np.ones(batch.n_points, dtype=bool)
    for reason, bad in (
        (LIMIT, np.isneginf(batch.mag)),
        (FLAGGED, np.isneginf(batch.err)),
        (NO_FLUX, np.isposinf(batch.mag)),
        (NOT_FINITE, ~(np.isfinite(batch.time) & np.isfinite(batch.mag) & np.isfinite(batch.err))),
        (SENTINEL, (np.abs(batch.mag) >= config.sentinel) | (batch.err >= config.sentinel)),
        (BAD_ERROR, ~(batch.err > 0)),
    ):
        dropped[reason] = int(np.count_nonzero(bad & good))
        good &= ~bad
    kept = sort_by_time(batch.select_points(good))
    first = _first_of_equals(kept)
    dropped[COPY] = int(np.count_nonzero(~first))
    kept = kept.select_points(first)
    short = kept.lengths < config.min_points
    dropped[SHORT_CURVES] = int(np.count_nonzero(short))
    dropped[SHORT_POINTS] = int(kept.lengths[short].sum())
    long_enough = kept.select(~short)
    _check_times(long_enough)
    return kept if keep_short else long_enough, +dropped


def because(dropped: Counter[str]) -> str:
    """The end of a message that says what was left out, and why; empty if nothing was."""
    return f"; dropped {', '.join(f'{count} {reason}' for reason, count in dropped.items())}" if dropped else ""


def sort_by_time(batch: CurveBatch) -> CurveBatch:
    """Sort the points of each curve by time; equal times keep their order."""
    if batch.n_points < 2:
        return batch
    in_order = np.diff(batch.time) >= 0
    first_points = batch.offsets[1:-1]
    in_order[first_points[(first_points > 0) & (first_points < batch.n_points)] - 1] = True
    if in_order.all():
        return batch
    curve = np.repeat(np.arange(len(batch)), batch.lengths)
    order = np.lexsort((batch.time, curve))  # a stable sort
    return replace(batch, time=batch.time[order], mag=batch.mag[order], err=batch.err[order])


def _first_of_equals(batch: CurveBatch) -> NDArray[np.bool_]:
    """(P,) False for a point that is equal to an earlier one of its curve. The curves are sorted by time."""
    first = np.ones(batch.n_points, dtype=bool)
    tied = np.flatnonzero(np.diff(batch.time) == 0)
    if not len(tied):
        return first
    tied = np.union1d(tied, tied + 1)
    columns = (batch.err, batch.mag, batch.time, np.repeat(np.arange(len(batch)), batch.lengths))
    order = tied[np.lexsort([column[tied] for column in columns])]  # a stable sort
    equal = np.all([column[order[1:]] == column[order[:-1]] for column in columns], axis=0)
    first[order[1:][equal]] = False
    return first


def _check_times(batch: CurveBatch) -> None:
    """Refuse times that are not days. The curves are sorted and have at least one point each."""
    if not len(batch):
        return
    first, last = batch.time[batch.offsets[:-1]], batch.time[batch.offsets[1:] - 1]
    _reject(
        batch,
        np.maximum(np.abs(first), np.abs(last)) > LATEST_TIME,
        f"is beyond {LATEST_TIME:.0e} days; convert to days (MJD, JD ...), or name another column by --columns.time",
    )
    _reject(
        batch,
        last - first > LONGEST_CURVE,
        "lie millennia apart: JD and MJD may be mixed; bring all times to one zero, or remove the wrong rows",
    )


def _reject(batch: CurveBatch, absurd: NDArray[np.bool_], why: str) -> None:
    if absurd.any():
        i = int(np.argmax(absurd))
        first, last = batch.time[batch.offsets[i]], batch.time[batch.offsets[i + 1] - 1]
        raise UserError(
            f"{batch.source or 'curves'}: light curve {batch.ids[i]!r}: time {first:.10g} to {last:.10g} {why}"
        )
