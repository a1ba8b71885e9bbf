"""The light curves of the stars on a page: found in their source, thinned, with periods, and packed.

Times, magnitudes and uncertainties become whole numbers of steps that a picture does not show: a time's step is at most
1/2000 of the period, a magnitude's 1/4095 of the light curve's range, an uncertainty's 1/255 of the largest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from astroco_fast.data.clean import CleanConfig, clean
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import find_periods
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import Source
from astroco_fast.errors import UserError
from astroco_fast.explore.pack import pack, planes
from astroco_fast.vectors import Text

BLOCK = 256  # light curves of a block, which the page unpacks at once
_PHASES, _MAGNITUDES, _UNCERTAINTIES = 2000, 4095, 255
_STEP = 1e-3  # days: the largest step of the times of a light curve without a period
_LONGEST_STEP = 1e-2
_TIMES = 2**32 - 2
FOUND, GIVEN = "found", "given"

Float64Array = NDArray[np.float64]


@dataclass
class PageCurves:
    """The light curves of n stars.

    Attributes:
        points: for each star (3, L) float64: times in days, magnitudes, uncertainties; None: not in the source.
        lengths: (n,) the points of each in the source, good ones only.
        period: (n,) days; NaN: none.
        period_from: (n,) where it is from: `GIVEN` by a table, `FOUND` by a search, or "".
        dropped: points and light curves that were left out, by reason.
        simulated: whether they are simulated.
    """

    points: list[Float64Array | None]
    lengths: NDArray[np.int64]
    period: Float64Array
    period_from: list[str]
    dropped: Counter[str]
    simulated: bool


def collect(source: Source, ids: Text, band: Text, period: Float64Array, most: int, seed: int) -> PageCurves:
    """Read the light curves of the stars on a page, in one pass over their source.

    Args:
        source: the light curves.
        ids, band: (n,) the stars'. If no band is known, a light curve is found by its id alone.
        period: (n,) days, NaN where the period is to be found.
        most: points kept of each, at random.
        seed: of the points kept.

    Raises:
        UserError: the source cannot be read, has none of the stars, or several light curves of a star whose band is
            not known.
    """
    n, by_band = len(ids), any(band)
    rows = {(star, name if by_band else ""): i for i, (star, name) in enumerate(zip(ids, band, strict=True))}
    given = np.isfinite(period)
    found = PageCurves(
        [None] * n, np.zeros(n, np.int64), period.copy(), [GIVEN if g else "" for g in given], Counter(), False
    )
    seen = Seen()
    with tqdm(total=n, desc="light curves", unit=" curves", disable=None) as progress:
        for raw in source.batches():
            seen.check(raw)
            places = np.array(
                [rows.get((star, name if by_band else ""), -1) for star, name in zip(raw.ids, raw.band, strict=True)]
            )
            batch, reasons = clean(raw.select(places >= 0), CleanConfig(min_points=1))
            found.dropped.update(reasons)
            found.simulated |= batch.simulated
            _add(found, batch, rows, by_band, most, seed, source.name)
            progress.update(len(batch))
    if not any(points is not None for points in found.points):
        raise UserError(
            f"{source.name}: has none of the stars of the embeddings, such as {ids[0]!r}; "
            "give the light curves that were embedded"
        )
    return found


def _add(
    found: PageCurves,
    batch: CurveBatch,
    rows: dict[tuple[str, str], int],
    by_band: bool,
    most: int,
    seed: int,
    name: str,
) -> None:
    places = [rows[star, band if by_band else ""] for star, band in zip(batch.ids, batch.band, strict=True)]
    search = np.array([not np.isfinite(found.period[place]) for place in places], dtype=bool)
    if search.any():
        searched = batch.select(search)
        periods = searched.periods or find_periods(searched)
        for place, period in zip(np.array(places)[search], periods.period, strict=True):
            found.period[place] = period
            found.period_from[place] = FOUND if np.isfinite(period) else ""
    for i, place in enumerate(places):
        if found.points[place] is not None:
            raise UserError(
                f"{name}: id {batch.ids[i]!r} has light curves in several bands, and the embeddings have no column "
                "'band'; choose one by --band"
            )
        points = slice(batch.offsets[i], batch.offsets[i + 1])
        curve = np.array([batch.time[points], batch.mag[points], batch.err[points]], dtype=np.float64)
        found.lengths[place] = curve.shape[1]
        if curve.shape[1] > most:
            kept = np.random.default_rng([seed, place]).choice(curve.shape[1], most, replace=False)
            curve = curve[:, np.sort(kept)]
        found.points[place] = curve


def epoch(curve: Float64Array, period: float) -> float:
    """A time (days) of minimum light: that of the first harmonic at this period, fitted to (3, L) points."""
    time, mag, err = curve
    weight = 1 / (err**2 + np.median(err) ** 2)
    angle = 2 * np.pi * (time - time[0]) / period
    terms = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)])
    matrix = (terms * weight) @ terms.T + 1e-6 * weight.sum() * np.eye(3)
    _, cos, sin = np.linalg.solve(matrix, (terms * weight) @ mag)
    return float(time[0] + np.arctan2(sin, cos) / (2 * np.pi) % 1 * period)


def pack_block(curves: Sequence[Float64Array | None], periods: Float64Array) -> str:
    """The packed light curves of some stars; `page/unpack.js` reads them, `read_block` does the same."""
    known = [curve if curve is not None else np.empty((3, 0)) for curve in curves]
    head = np.zeros((len(known), 6))  # first time, its step, least magnitude, its step, step of uncertainties, epoch
    times, mags, errs = [], [], []
    for i, (curve, period) in enumerate(zip(known, periods, strict=True)):
        if not curve.shape[1]:
            continue
        time, mag, err = curve
        span = time[-1] - time[0]
        step = min(_STEP if not np.isfinite(period) else period / _PHASES, _LONGEST_STEP)
        step = max(step, span / _TIMES, 1e-7)
        mag_step = max(np.ptp(mag) / _MAGNITUDES, 1e-5)
        err_step = max(err.max() / _UNCERTAINTIES, 1e-6)
        fold = epoch(curve, period) if np.isfinite(period) else time[0]
        head[i] = time[0], step, mag.min(), mag_step, err_step, fold
        steps = np.rint((time - time[0]) / step).astype(np.int64)
        times.append(np.diff(steps, prepend=0).astype(np.uint32))
        mags.append(np.rint((mag - mag.min()) / mag_step).astype(np.uint16))
        errs.append(np.rint(err / err_step).astype(np.uint8))
    arrays: dict[str, NDArray[Any]] = {
        "head": head.reshape(-1),
        "length": np.array([curve.shape[1] for curve in known], dtype=np.uint32),
        "time": planes(np.concatenate([np.empty(0, np.uint32), *times])),
        "mag": planes(np.concatenate([np.empty(0, np.uint16), *mags])),
        "err": np.concatenate([np.empty(0, np.uint8), *errs]),
    }
    return pack({}, arrays)
