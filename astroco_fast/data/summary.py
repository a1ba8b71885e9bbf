"""Numbers that stand beside an encoder's states in an embedding: the period, the fold's shape, and the magnitudes.

The encoder sees windows that are centred in time and magnitude, and in the folded view it does not see the period.
These numbers say what is lost there. They are smooth, so that a linear head can use them as they are: the period, for
example, comes as cosines of a squashed logarithm, because a linear function of log P alone cannot single out a range of
periods.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periodogram import Curve, harmonic_fit, harmonic_sums
from astroco_fast.data.periods import Periods

PERIOD_WAVES, SPREAD_WAVES = 12, 6
SHAPE_HARMONICS = 4
PERIOD_NUMBERS = 4 + PERIOD_WAVES + 12
SHAPE_NUMBERS = 2 * (SHAPE_HARMONICS - 1)
MAGNITUDE_NUMBERS = 7 + SPREAD_WAVES

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]


def period_numbers(periods: Periods) -> Float32Array:
    """Numbers on the periods of n light curves, float32 (n, `PERIOD_NUMBERS`); zero where there is no period.

    They are log10 of the fold's period in days; the power; the share of variance that six harmonics take at half the
    best period, over the share that they take at the best period, and what they take at twice the best period beyond
    that share; cosines of the squashed log period; and the shares of variance that 1 to 6 harmonics take at twice the
    fold's period and at the fold's period.
    """
    log = np.log10(periods.fold_period)
    numbers = np.column_stack(
        [
            log,
            periods.power,
            np.clip(periods.half_ratio, 0, 1.2),
            np.clip(periods.double_gain, 0, 1.2),
            _waves(log, -0.4, 0.5, PERIOD_WAVES),
            np.clip(periods.gains, 0, 1),
        ]
    )
    return np.where(periods.found[:, None], numbers, 0.0).astype(np.float32)


def shape_numbers(curves: CurveBatch, periods: Periods) -> Float32Array:
    """Fourier parameters of n folded light curves, float32 (n, `SHAPE_NUMBERS`); zero where there is no period.

    A weighted fit of four harmonics at the fold's period has the amplitudes A_k and phases phi_k. The ratios
    R_k1 = A_k / A_1 and the differences phi_k1 = phi_k - k phi_1 (Simon & Lee 1981, ApJ 248, 291) do not depend on the
    amplitude and the epoch. They are given as R_k1 / (1 + R_k1) times cos phi_k1, for k = 2, 3, 4, and times
    sin phi_k1: as parts of a complex number they change smoothly where R_k1 is small and phi_k1 is noise.
    """
    numbers = np.zeros((len(curves), SHAPE_NUMBERS), np.float32)
    found = np.flatnonzero(periods.found)
    if not len(found):
        return numbers
    sums = []
    for i in found:
        points = slice(curves.offsets[i], curves.offsets[i + 1])
        time, mag, err = curves.time[points], curves.mag[points], curves.err[points]
        rising = np.argsort(time, kind="stable")
        curve = Curve.of(time[rising], mag[rising], err[rising])
        sums.append(harmonic_sums(curve, 1 / periods.fold_period[[i]], SHAPE_HARMONICS))
    fit = harmonic_fit(np.concatenate(sums, axis=2))
    first, order = fit[:, :1], np.arange(2, SHAPE_HARMONICS + 1)
    ratio = fit[:, 1:] / np.maximum(np.abs(first), 1e-9) * np.exp(-1j * order * np.angle(first))
    ratio /= 1 + np.abs(ratio)
    numbers[found] = np.concatenate([ratio.real, ratio.imag], axis=1)
    return numbers


def magnitude_numbers(curves: CurveBatch) -> Float32Array:
    """Numbers on the magnitudes of n light curves that have points, float32 (n, `MAGNITUDE_NUMBERS`).

    They are the range from the 5th to the 95th percentile, in magnitudes; log10 of the number of points and of the span
    in days (at least one day); log10 of the standard deviation and of the median uncertainty, in magnitudes; skewness;
    kurtosis; and cosines of the squashed log standard deviation. Moments are weighted by 1 / (err^2 + median err^2).
    """
    rows = np.empty((len(curves), 7))
    for i, (first, last) in enumerate(zip(curves.offsets[:-1], curves.offsets[1:], strict=True)):
        time, mag, err = (values[first:last].astype(np.float64) for values in (curves.time, curves.mag, curves.err))
        typical = max(float(_quantiles(err, 0.5)), 1e-6)
        weights = 1 / (err**2 + typical**2)
        weights /= weights.sum()
        deviation = mag - weights @ mag
        spread = max(float(np.sqrt(weights @ deviation**2)), 1e-6)
        low, high = _quantiles(mag, np.array([0.05, 0.95]))
        skewness, kurtosis = (weights @ (deviation / spread) ** power for power in (3, 4))
        span = max(float(np.ptp(time)), 1.0)
        logs = np.log10([len(mag), span, spread, typical])
        rows[i] = high - low, *logs, skewness, kurtosis
    return np.column_stack([rows, _waves(rows[:, 3], -0.7, 0.25, SPREAD_WAVES)]).astype(np.float32)


def _quantiles(values: Float64Array, shares: ArrayLike) -> NDArray[np.float64]:
    """The values below which these shares of some values lie, interpolated as by `np.quantile`, but faster."""
    return np.interp(np.multiply(shares, len(values) - 1), np.arange(len(values)), np.sort(values))


def _waves(values: Float64Array, middle: float, width: float, count: int) -> Float64Array:
    """Cosines (n, count) of 1 to `count` half turns over the logistic function of values (n,)."""
    squashed = 1 / (1 + np.exp((middle - values) / width))
    return np.cos(np.pi * np.arange(1, count + 1) * squashed[:, None])
