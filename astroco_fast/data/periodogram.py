"""Power spectra of irregularly sampled light curves, harmonic fits to them, and the significance of their peaks.

The least-squares spectrum goes back to Lomb (1976, Ap&SS 39, 447) and Scargle (1982, ApJ 263, 835); VanderPlas (2018,
ApJS 236, 16) explains it, the grid that it needs and its aliases. Fits of several harmonics follow Schwarzenberg-Czerny
(1996, ApJ 460, L107), here with a ridge penalty. `periods` chooses a light curve's period from these parts.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property, lru_cache

import finufft
import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

Complex64Array = NDArray[np.complex64]

# Frequencies of one spectrum. With 15 of them for each day of the span, 4 million last for 765 years.
MOST_FREQUENCIES = 1 << 22
# Frequencies of one transform. As many stay in a core's cache, which makes transforms to parts of a spectrum several
# times as fast as one to all of it, and single precision keeps their phases to 0.001 rad.
_MODES = 1 << 12
_MOST_PARTS = 16
_POINTS_A_BLOCK = 2048
_PENALTY = 0.01


@dataclass(frozen=True)
class Curve:
    """A light curve of n points as the search needs it.

    Attributes:
        time: (n,) float64, days from the first point, rising.
        mag: (n,) float64, magnitudes minus their weighted mean, divided by their weighted standard deviation.
        weight: (n,) float64, with the sum 1.
    """

    time: Float64Array
    mag: Float64Array
    weight: Float64Array

    @classmethod
    def of(cls, time: Float64Array, mag: NDArray[np.floating], err: NDArray[np.floating]) -> Curve:
        """A curve of n points: time in days, rising; mag, not all the same, and err in magnitudes.

        A point's weight is 1 / (err² + median(err)²), so that no few points outweigh all others.
        """
        variance = np.square(err, dtype=np.float64)
        ordered = np.sort(variance)
        weight = 1 / (variance + (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2)
        weight /= weight.sum()
        centred = mag.astype(np.float64)
        centred -= weight @ centred
        return cls(time - time[0], centred / math.sqrt(weight @ centred**2), weight)

    def __len__(self) -> int:
        return len(self.time)

    @property
    def span(self) -> float:
        """Days from the first to the last point."""
        return float(self.time[-1])

    @cached_property
    def factors(self) -> Complex64Array:
        """(2, n), weight and weight · mag."""
        return np.stack([self.weight, self.weight * self.mag]).astype(np.complex64)


@dataclass(frozen=True)
class Spectrum:
    """Power at the frequencies k · `step`.

    Attributes:
        step: cycles a day.
        power: (n,) float32, n a multiple of 16, |sum of weight · mag · exp(2 pi i f t)|² at k = 0 .. n - 1.
    """

    step: float
    power: Float32Array


def power_spectrum(curve: Curve, highest: float, oversample: float) -> Spectrum:
    """The classical power spectrum by non-uniform FFTs (Barnett, Magland & af Klinteberg 2019, SISC 41, C479).

    It leaves out the mean and the cross terms of a least-squares fit. This is enough to find candidates.

    Args:
        curve: the light curve.
        highest: cycles a day. Where the span is so long that `MOST_FREQUENCIES` do not reach it, the spectrum ends
            earlier.
        oversample: frequencies within 1 / span.
    """
    n = math.ceil(min(highest * oversample * curve.span, MOST_FREQUENCIES))
    step = 1 / (oversample * curve.span)
    parts = -(-n // _MODES)
    at_once = -(-parts // -(-parts // _MOST_PARTS))
    plan = _plan(at_once)
    turns = step * curve.time
    plan.setpts((2 * np.pi * (turns - np.floor(turns))).astype(np.float32))
    signal = (curve.weight * curve.mag).astype(np.float32)
    modes = np.empty((at_once, _MODES), np.complex64)
    power = np.empty(-(-parts // at_once) * modes.size, np.float32)
    for start in range(0, len(power), modes.size):
        # A transform returns the modes -m/2 .. m/2 - 1 of m; with the signal turned by the middle frequency of a part,
        # they are those of the part.
        middle = start + _MODES // 2 + _MODES * np.arange(at_once)
        plan.execute(signal * _waves(middle, turns), out=modes)
        power[start : start + modes.size] = (modes.real**2 + modes.imag**2).ravel()
    return Spectrum(step, power[: -(-n // 16) * 16])


_kept = threading.local()


def _plan(parts: int) -> finufft.Plan:
    """The plan of transforms to some parts of a spectrum, kept because making one takes half as long as using it.

    A plan serves one thread only.
    """
    plans: dict[int, finufft.Plan] = vars(_kept).setdefault("plans", {})
    if parts not in plans:
        plans[parts] = finufft.Plan(
            1, (_MODES,), parts, eps=1e-3, isign=1, dtype="complex64", nthreads=1, upsampfac=1.25
        )
    return plans[parts]


def _waves(frequency: NDArray[np.floating] | Int64Array, time: Float64Array) -> Complex64Array:
    """exp(2 pi i f t) (F, n) at F frequencies and n times."""
    # Phases need double precision; what is computed from them does not.
    turns = np.outer(frequency, time)
    turns -= np.rint(turns)
    angle = turns.astype(np.float32)
    angle *= np.float32(2 * np.pi)
    waves = np.empty(angle.shape, np.complex64)
    waves.real = np.cos(angle)
    waves.imag = np.sin(angle)
    return waves


def highest_peaks(power: Float32Array, count: int) -> Float64Array:
    """The places of the local maxima among the highest values of a spectrum, the highest first.

    Each is the vertex of the parabola through the maximum and its neighbours, and their order is that of the vertices'
    heights.

    Args:
        power: (n,), n a multiple of 16; zero where no maximum is wanted, among others at the first place.
        count: the values looked at, at least.
    """
    # The highest values lie in those columns of a table whose maxima are highest.
    table = power.reshape(16, -1)
    top = table.max(axis=0)
    some = min(count, len(top))
    lowest = np.partition(top, len(top) - some)[len(top) - some]
    columns = np.flatnonzero(top >= lowest)
    row, column = np.nonzero(table[:, columns] >= lowest)
    places = row * len(top) + columns[column]
    left, middle, right = power[[places - 1, places, np.minimum(places + 1, len(power) - 1)]].astype(np.float64)
    is_peak = (middle > left) & (middle >= right)
    places, left, middle, right = places[is_peak], left[is_peak], middle[is_peak], right[is_peak]
    shift = (right - left) / (2 * (2 * middle - left - right))
    return (places + shift)[np.argsort(-(middle + (right - left) * shift / 4), kind="stable")]


def fundamentals(power: Float32Array, places: Float64Array) -> Float64Array:
    """Peaks' places and half of them, in the order of P(f) + P(2f) + P(3f), as far as a spectrum goes; highest first.

    The peaks of a curve that is not a sine wave are at its harmonics, of which the second may be the highest. Thirds
    are left out: the cycles of long-period variables differ, so that a fit of three of them together is better.
    """
    every = np.concatenate([places, places / 2])
    multiples = np.outer([1, 2, 3], every)
    below = multiples.astype(np.int64)
    above = multiples - below
    last = len(power) - 1
    between = (1 - above) * power[np.minimum(below, last)] + above * power[np.minimum(below + 1, last)]
    total = np.where(below < last, between, 0).sum(axis=0)
    return every[np.argsort(-total, kind="stable")]


def take_apart(values: Float64Array, count: int, apart: float) -> list[int]:
    """The places of the first `count` values of which none is within `apart` of an earlier one."""
    taken: list[int] = []
    rising = [-math.inf, math.inf]
    for place, value in enumerate(values.tolist()):
        i = bisect(rising, value)
        if value - rising[i - 1] > apart and rising[i] - value > apart:
            rising.insert(i, value)
            taken.append(place)
            if len(taken) == count:
                break
    return taken


def harmonic_sums(
    curve: Curve, frequency: Float64Array, harmonics: int, around: Float64Array | None = None
) -> Complex64Array:
    """The sums over a curve's points of which harmonic fits are made.

    Args:
        curve: the light curve.
        frequency: (F,) cycles a day.
        harmonics: K, the harmonics to fit.
        around: (A,) cycles a day, to be added to each of the frequencies; None: only 0. As exp(i (a + b)) is
            exp(ia) exp(ib), the sums at F · A frequencies are products of matrices of F and of A rows.

    Returns:
        (2K + 1, 2, F · A): at [k, 0] sums of weight · exp(2 pi i k f t), at [k, 1] of weight · mag · exp(2 pi i k f t).
    """
    orders = 2 * harmonics
    total = np.zeros((orders, len(frequency), 2 if around is None else 2 * len(around)), np.complex64)
    for start in range(0, len(curve), _POINTS_A_BLOCK):
        block = slice(start, start + _POINTS_A_BLOCK)
        time, others = curve.time[block], curve.factors[:, block]
        if around is not None:
            others = (_powers(_waves(around, time), orders)[:, None] * others[:, None]).reshape(orders, -1, len(time))
        total += _powers(_waves(frequency, time), orders) @ np.swapaxes(others, -1, -2)
    out = np.empty((orders + 1, 2, total[0].size // 2), np.complex64)
    out[0] = np.array([[1], [0]])  # mag has the weighted mean 0
    out[1:] = total.reshape(orders, len(frequency), 2, -1).swapaxes(1, 2).reshape(orders, 2, -1)
    return out


def _powers(waves: Complex64Array, most: int) -> Complex64Array:
    """The powers (most, ...) 1 .. `most` of waves."""
    out = np.empty((most, *waves.shape), np.complex64)
    out[0] = waves
    done = 1
    while done < most:
        more = min(done, most - done)
        np.multiply(out[:more], out[done - 1], out=out[done : done + more])
        done += more
    return out


def harmonic_gains(sums: Complex64Array) -> Float64Array:
    """The share of the variance that a mean and 1 .. K harmonics explain, from `harmonic_sums`.

    The fit of k harmonics minimises the squared residuals plus a penalty of 0.01 (1 + j) / 2 on the squared amplitudes
    of the j-th harmonic, so that gaps in phase are not filled by wild curves. Its normal equations are solved for all k
    by one Cholesky factorisation: each harmonic adds its own part of the explained variance.

    Returns:
        (K, F), rising along the first axis from 0 to less than 1.
    """
    left, right = _normal_equations(sums)
    size, n = right.shape
    # With the right-hand side as its last row, the factor's last row is the solution of the forward substitution. All
    # frequencies are done together, element by element, and only the lower triangle.
    matrix = np.empty((size + 1, size, n))
    matrix[np.tril_indices(size)] = left
    matrix[size] = right
    for j in range(size):
        if j:
            matrix[j:, j] -= (matrix[j:, :j] * matrix[j, :j]).sum(axis=1)
        matrix[j:, j] /= np.sqrt(matrix[j, j])
    return np.cumsum(matrix[size] ** 2, axis=0)[2::2]


def harmonic_fit(sums: Complex64Array) -> NDArray[np.complex128]:
    """The amplitudes and phases of the fit of a mean and K harmonics, from `harmonic_sums`; see `harmonic_gains`.

    Returns:
        c (F, K), such that the fit is mean + Re sum_k c_k exp(2 pi i k f t), with t in days from the first point.
    """
    left, right = _normal_equations(sums)
    size, n = right.shape
    matrix = np.empty((n, size, size))
    rows, columns = np.tril_indices(size)
    matrix[:, rows, columns] = matrix[:, columns, rows] = left.T
    found = np.linalg.solve(matrix, right.T[..., None])[..., 0]
    return found[:, 1::2] - 1j * found[:, 2::2]


def _normal_equations(sums: Complex64Array) -> tuple[Float64Array, Float64Array]:
    """The fits' normal equations, of 1, cos x, sin x, cos 2x ..., penalty included.

    Returns:
        The lower triangles of the matrices, row after row, (K' (K' + 1) / 2, F) with K' = 2K + 1, and the right-hand
        sides (K', F).
    """
    harmonics = (len(sums) - 1) // 2
    one, two, sign, other_sign, penalty = _normal_matrix(harmonics)
    waves = np.concatenate([sums[:, 0].real, sums[:, 0].imag]).astype(np.float64)
    left = waves[one]
    left *= sign
    right = waves[two]
    right *= other_sign
    left += right
    left += penalty
    some = sums[: harmonics + 1, 1]
    right = np.stack([some.real, some.imag], axis=1).reshape(2 * harmonics + 2, -1).astype(np.float64)
    return left, np.delete(right, 1, axis=0)  # cos 0, sin 0, cos 1, sin 1 ...


@lru_cache
def _normal_matrix(
    harmonics: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64Array, Float64Array, Float64Array]:
    """Where the normal matrix of (1, cos x, sin x, cos 2x, ...) is found among sums of cos kx and sin kx.

    By the formulas for products, each element is half of a sum of two of them, each with a sign. Returns the two
    places, (n,) each, half of the two signs, and the penalty, (n, 1) each, for the n elements of the lower triangle.
    """
    order = np.array([0, *np.repeat(np.arange(1, harmonics + 1), 2)])
    is_sin = np.array([False, *[False, True] * harmonics])
    rows, columns = np.tril_indices(len(order))
    j, k, a, b = order[rows], order[columns], is_sin[rows], is_sin[columns]
    mixed = a ^ b
    n = 2 * harmonics + 1
    # cos cos: C(j-k) + C(j+k); sin sin: C(j-k) - C(j+k); sin j cos k: S(j+k) + S(j-k); cos j sin k: S(j+k) - S(j-k).
    first = np.abs(j - k) + n * mixed
    second = j + k + n * mixed
    sign = np.where(mixed, np.sign(j - k) * np.where(a, 1.0, -1.0), 1.0)
    other = np.where(a & b, -1.0, 1.0)
    penalty = np.where((rows == columns) & (j > 0), _PENALTY * (1 + j) / 2, 0.0)
    return first, second, sign[:, None] / 2, other[:, None] / 2, penalty[:, None]


def log_false_alarm(gains: Float64Array, curve: Curve, highest: float) -> float:
    """The logarithm to base 10 of the probability that white noise has a peak as high.

    For one harmonic it follows Baluev (2008, MNRAS 385, 1279), for more Baluev (2009, MNRAS 395, 1541). The lowest of
    the K probabilities is taken; that it is the best of K is made up for by the fits' penalty, which lowers the gains.

    Args:
        gains: (K,) shares of the variance that 1 .. K harmonics explain at the highest peaks.
        curve: the light curve, of more than 2K + 2 points.
        highest: cycles a day up to which the peaks were searched.

    Returns:
        0 or less. The probability is an upper limit, good where it is small; red noise and the day's rhythm have higher
        peaks.
    """
    mean = curve.weight @ curve.time
    width = highest * math.sqrt(4 * math.pi * (curve.weight @ (curve.time - mean) ** 2))
    logs = [_log_crossings(k, float(gain), len(curve)) for k, gain in enumerate(gains, 1)]
    return min(0.0, (min(logs) + math.log(max(width, 1))) / math.log(10))


def _log_crossings(harmonics: int, gain: float, n: int) -> float:
    """ln of how often the spectrum of n points of noise is expected to rise above a gain, in a unit of bandwidth."""
    half, rest = harmonics - 0.5, 0.5 * (n - 2 * harmonics - 2)
    gain = min(max(gain, half / (half + rest)), 1 - 1e-12)  # below the first, more crossings mean a higher peak
    finite = math.lgamma((n - 1) / 2) - math.lgamma((n - 1) / 2 - half)
    return _log_alpha(harmonics) + finite + half * math.log(gain) + rest * math.log1p(-gain)


@lru_cache
def _log_alpha(harmonics: int) -> float:
    """ln of Baluev's (2009) alpha_n: how fast the spectrum of n harmonics changes, over the gamma function of n."""
    total = sum(
        (-1) ** (harmonics - k)
        * k ** (2 * harmonics + 1)
        / math.factorial(harmonics + k)
        / math.factorial(harmonics - k)
        for k in range(1, harmonics + 1)
    )
    return math.log(2**harmonics / math.prod(range(1, 2 * harmonics, 2)) * total)
