"""Numbers that describe a light curve without a trained encoder, to compare embeddings with.

`statistics` does not know the order of the points. `features` are those of the package `light-curve` (Malanchev et al.
2021, MNRAS 502, 5147). `folded_features` describe the curve folded at its period. Where a number does not exist, as the
skewness of a single point, it is NaN.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periodogram import Curve, harmonic_fit, harmonic_gains, harmonic_sums
from astroco_fast.errors import MissingExtraError

Matrix = NDArray[np.float32]
Floats = NDArray[np.float64]

_PERCENTILES = (0, 5, 25, 75, 95, 100)
HARMONICS, PHASE_BINS = 6, 8
WITHOUT_PERIOD, FOLDED = 36, 39  # features
_PHASES = np.arange(64) / 64  # at which a fit is drawn
_FEWEST = 5  # points for a fit
_TINY = 1e-12


def statistics(curves: CurveBatch) -> Matrix:
    """Nine numbers (n, 9) of the magnitudes alone.

    They are the standard deviation, the skewness, the kurtosis, and the 0th, 5th, 25th, 75th, 95th and 100th percentile
    less the median.
    """
    found = np.full((len(curves), 3 + len(_PERCENTILES)), np.nan)
    for row, (_, mag, _) in zip(found, _each(curves), strict=True):
        deviation = mag.std()
        row[0] = deviation
        if deviation > 0:
            z = (mag - mag.mean()) / deviation
            row[1], row[2] = (z**3).mean(), (z**4).mean() - 3
        row[3:] = np.percentile(mag, _PERCENTILES) - np.median(mag)
    return found.astype(np.float32)


def features(curves: CurveBatch) -> Matrix:
    """The 36 features (n, 36) of `light-curve` that need no period; those that span decades as common logarithms.

    Raises:
        MissingExtraError: `light-curve` is not installed.
    """
    extractor, logarithmic = _extractor()
    found = np.asarray(extractor.many(list(_each(curves)), fill_value=np.nan, sorted=True, check=False, n_jobs=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found[:, logarithmic] = np.log10(found[:, logarithmic])
    return _finite(found)


@lru_cache(maxsize=1)
def _extractor() -> tuple[Any, NDArray[np.bool_]]:
    """The extractor of `features`, and flags (36,) of those that become logarithms."""
    lc = require_light_curve()
    plain = [
        *(lc.AndersonDarlingNormal(), lc.BeyondNStd(1.0), lc.BeyondNStd(2.0), lc.Cusum(), lc.Eta()),
        *(lc.ExcessVariance(), lc.Kurtosis(), lc.LaflerKinmanStringLength(), lc.LinearTrend()),
        *(lc.MagnitudePercentageRatio(0.4, 0.05), lc.MagnitudePercentageRatio(0.2, 0.05)),
        *(lc.MedianBufferRangePercentage(0.1), lc.MedianBufferRangePercentage(0.2), lc.OtsuSplit()),
        *(lc.PercentAmplitude(), lc.Roms(), lc.Skew(), lc.StetsonK(), lc.WeightedMean()),
    ]
    wide = [
        *(lc.Amplitude(), lc.BiweightScale(), lc.EtaE(), lc.InterPercentileRange(0.02), lc.InterPercentileRange(0.1)),
        *(lc.InterPercentileRange(0.25), lc.MaximumSlope(), lc.MedianAbsoluteDeviation(), lc.StandardDeviation()),
    ]
    both = lc.LinearFit()  # slope, its uncertainty, reduced chi2
    flags = [False] * _numbers(plain) + [True] * _numbers(wide) + [False, True, True]
    return lc.Extractor(*plain, *wide, both), np.array(flags)


def _numbers(extractors: Sequence[Any]) -> int:
    return sum(len(extractor.names) for extractor in extractors)


def require_light_curve() -> Any:
    """The package `light_curve`, or MissingExtraError if it is not installed."""
    try:
        import light_curve
    except ImportError:
        raise MissingExtraError("light-curve", "rivals", "--against features") from None
    return light_curve


def folded_features(curves: CurveBatch, periods: Floats) -> Matrix:
    """39 numbers (n, 39) that describe each curve folded at its period, NaN without one.

    They come from a weighted least-squares fit of a mean and six harmonics: amplitudes, differences of phase, shares of
    the variance that the fit takes away, the fit's shape from its minimum of light on, and the scatter about it. The
    folds at half and twice the period are described by what the fit takes away there, and by the amplitudes of the odd
    harmonics at twice the period, which tell the two minima of an eclipsing binary apart.

    Args:
        curves: n light curves.
        periods: (n,) days, NaN where a curve has none.
    """
    found = np.full((len(curves), FOLDED), np.nan)
    for row, period, (time, mag, err) in zip(found, periods, _each(curves), strict=True):
        if np.isfinite(period) and len(time) >= _FEWEST and mag.min() < mag.max():
            row[:] = _folded(time, mag, err, period)
    return _finite(found)


def _each(curves: CurveBatch) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Times, magnitudes and uncertainties of each curve, in float64."""
    mag, err = curves.mag.astype(np.float64), curves.err.astype(np.float64)
    for first, last in zip(curves.offsets[:-1], curves.offsets[1:], strict=True):
        yield curves.time[first:last], mag[first:last], err[first:last]


def _finite(found: Floats) -> Matrix:
    """In float32, with NaN for what is not finite."""
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    single[~np.isfinite(single)] = np.nan
    return single


def _folded(time: Floats, mag: Floats, err: Floats, period: float) -> Floats:
    """The numbers (FOLDED,) of `folded_features` for one curve."""
    curve = Curve.of(time, mag, err)
    deviation = float(np.sqrt(curve.weight @ (mag - curve.weight @ mag) ** 2))
    sums = harmonic_sums(curve, np.array([2, 1, 0.5]) / period, HARMONICS)
    gains_half, gains, gains_twice = harmonic_gains(sums).T
    _, fit, twice = harmonic_fit(sums) * deviation
    amplitudes, phases, order = np.abs(fit), np.angle(fit), np.arange(1, HARMONICS + 1)
    first = max(float(amplitudes[0]), _TINY)
    differences = phases[1:] - order[1:] * phases[0]
    drawn = (fit[:, None] * np.exp(2j * np.pi * order[:, None] * _PHASES)).real.sum(0)
    drawn = np.roll(drawn, -int(np.argmax(drawn)))  # from the minimum of light, the largest magnitude
    height = max(float(np.ptp(drawn)), _TINY)
    variance = max(deviation**2, _TINY)
    left = max(float(variance * (1 - gains[-1])), _TINY)
    return np.concatenate(
        [
            np.log10([period, height, first, variance, left, left / np.median(err) ** 2]),
            amplitudes[1:] / first,
            np.cos(differences),
            np.sin(differences),
            gains[[0, 1, -1]],
            [gains_half[-1], gains_twice[-1]],
            np.minimum(np.abs(twice[[0, 2]]) / first, 10),
            [_string(curve.time, curve.mag, fold) / 2 for fold in (period, 2 * period)],
            [np.argmin(drawn) / len(_PHASES)],  # the rise's share of the period
            (drawn.reshape(PHASE_BINS, -1).mean(1) - drawn.min()) / height,
        ]
    )


def _string(time: Floats, values: Floats, period: float) -> float:
    """The mean squared step from one point to the next of the folded curve (Lafler & Kinman 1965, ApJS 11, 216)."""
    folded = values[np.argsort(np.mod(time / period, 1), kind="stable")]
    return float(((folded - np.roll(folded, 1)) ** 2).mean())
