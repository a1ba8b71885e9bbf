"""Power spectra of irregularly sampled light curves, harmonic fits to them, and the significance of their peaks.

The least-squares spectrum goes back to Lomb (1976, Ap&SS 39, 447) and Scargle (1982, ApJ 263, 835); VanderPlas (2018,
ApJS 236, 16) explains it, the grid that it needs and its aliases. Fits of several harmonics follow Schwarzenberg-Czerny
(1996, ApJ 460, L107), here with a ridge penalty. `periods` chooses a light curve's period from these parts.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache

import finufft
import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

# Frequencies of one spectrum. With 40 of them for each day of the span, 4 million last for 287 years.
MOST_FREQUENCIES = 1 << 22
# Up to here single precision keeps the phase of the highest frequency to 0.03 rad.
_SINGLE_PRECISION = 1 << 18
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
        weight = 1 / (variance + np.median(variance))
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


@dataclass(frozen=True)
class Spectrum:
    """Power at the frequencies k · `step`.

    Attributes:
        step: cycles a day.
        power: (n,) float32 or float64, |sum of weight · mag · exp(2 pi i f t)|² at k = 0 .. n - 1.
    """

    step: float
    power: NDArray[np.floating]


def power_spectrum(curve: Curve, highest: float, oversample: float) -> Spectrum:
    """The classical power spectrum by one non-uniform FFT (Barnett, Magland & af Klinteberg 2019, SISC 41, C479).

    It leaves out the mean and the cross terms of a least-squares fit. This is enough to find candidates.

    Args:
        curve: the light curve.
        highest: cycles a day. Where the span is so long that `MOST_FREQUENCIES` do not reach it, the spectrum ends
            earlier.
        oversample: frequencies within 1 / span, at least; up to an eighth more, because the number of frequencies is
            rounded up to one whose FFT is planned already.
    """
    wanted = min(highest * oversample * curve.span, MOST_FREQUENCIES)
    n = _rounded_up(math.ceil(wanted))
    step = highest / n if wanted < MOST_FREQUENCIES else 1 / (oversample * curve.span)
    angle = (2 * np.pi * step) * curve.time
    # The transform returns the modes -n/2 .. n/2 - 1; this turns them into 0 .. n - 1.
    signal = (curve.weight * curve.mag) * np.exp(1j * (n // 2) * angle)
    plan = _plan(n)
    single = n <= _SINGLE_PRECISION
    plan.setpts(np.mod(angle, 2 * np.pi).astype(np.float32 if single else np.float64))
    modes = plan.execute(signal.astype(np.complex64 if single else np.complex128))
    return Spectrum(step, modes.real**2 + modes.imag**2)


def _rounded_up(n: int) -> int:
    """The next number from n on that is 8 to 16 times a power of two."""
    unit = 1 << max((n - 1).bit_length() - 4, 0)
    return -(-n // unit) * unit


_kept = threading.local()


def _plan(n: int) -> finufft.Plan:
    """The plan of a transform to n modes, kept because making one takes longer than using it.

    A plan serves one thread only. A thread's plans have at most `MOST_FREQUENCIES` modes in all.
    """
    plans: dict[int, finufft.Plan] = vars(_kept).setdefault("plans", {})
    if n not in plans:
        while plans and sum(plans) + n > MOST_FREQUENCIES:
            plans.pop(next(iter(plans)))
        dtype = "complex64" if n <= _SINGLE_PRECISION else "complex128"
        plans[n] = finufft.Plan(1, (n,), eps=1e-3, isign=1, dtype=dtype, nthreads=1, upsampfac=1.25)
    return plans[n]


def harmonic_sum(power: NDArray[np.floating]) -> NDArray[np.floating]:
    """The spectrum plus those of the second and third harmonic, as far as it goes: P(f) + P(2f) + P(3f)."""
    total = power.copy()
    for harmonic in (2, 3):
        multiples = power[::harmonic]
        total[: len(multiples)] += multiples
    return total


def highest_peaks(power: NDArray[np.floating], first: int, count: int, apart: float) -> Int64Array:
    """The places of the `count` highest peaks from `first` on, highest first, none within `apart` of a higher one."""
    width = 8
    inner = power[first:]
    whole = len(inner) // width * width
    if not whole:
        return np.array([first + int(np.argmax(inner))])
    blocks = inner[:whole].reshape(-1, width)
    top = blocks[:, 0].copy()
    for i in range(1, width):
        np.maximum(top, blocks[:, i], out=top)
    some = min(len(top), 8 * count)
    chosen = np.argpartition(top, len(top) - some)[-some:]
    places = chosen * width + np.argmax(blocks[chosen], axis=1)
    if whole < len(inner):
        places = np.append(places, whole + int(np.argmax(inner[whole:])))
    taken: list[int] = []
    for place in places[np.lexsort((places, -inner[places]))]:
        if all(abs(place - other) > apart for other in taken):
            taken.append(int(place))
            if len(taken) == count:
                break
    return np.array(taken) + first


def harmonic_sums(curve: Curve, frequency: Float64Array, harmonics: int) -> Float64Array:
    """The sums over a curve's points of which harmonic fits at F frequencies are made.

    Args:
        curve: the light curve.
        frequency: (F,) cycles a day.
        harmonics: K, the harmonics to fit.

    Returns:
        (F, 2, 2, 2K + 1): at [f, 0] sums of weight, at [f, 1] of weight · mag, times cos (0) and sin (1) of
        2 pi k f t for k = 0 .. 2K.
    """
    n, orders = len(frequency), 2 * harmonics
    total = np.zeros((2, orders, n, 2))
    weights = np.stack([curve.weight, curve.weight * curve.mag], axis=1)
    for start in range(0, len(curve), _POINTS_A_BLOCK):
        block = slice(start, start + _POINTS_A_BLOCK)
        # Phases need double precision; what is computed from them does not.
        phase = np.outer(frequency, curve.time[block])
        phase -= np.rint(phase)
        angle = (2 * np.pi * phase).astype(np.float32)
        waves = np.empty((2, orders, *angle.shape), np.float32)
        cos, sin = waves
        np.cos(angle, out=cos[0])
        np.sin(angle, out=sin[0])
        done = 1
        while done < orders:  # cos(a + b) and sin(a + b)
            more = min(done, orders - done)
            a, b = slice(0, more), slice(done, done + more)
            cos[b] = cos[a] * cos[done - 1] - sin[a] * sin[done - 1]
            sin[b] = sin[a] * cos[done - 1] + cos[a] * sin[done - 1]
            done += more
        total += (waves.reshape(-1, angle.shape[1]) @ weights[block].astype(np.float32)).reshape(total.shape)
    out = np.zeros((n, 2, 2, orders + 1))
    out[..., 1:] = total.transpose(2, 3, 0, 1)
    out[:, :, 0, 0] = weights.sum(axis=0)
    return out


def harmonic_gains(sums: Float64Array) -> Float64Array:
    """The share of the variance that a mean and 1 .. K harmonics explain, from `harmonic_sums`.

    The fit of k harmonics minimises the squared residuals plus a penalty of 0.01 (1 + j) / 2 on the squared amplitudes
    of the j-th harmonic, so that gaps in phase are not filled by wild curves. Its normal equations are solved for all k
    by one Cholesky factorisation: each harmonic adds its own part of the explained variance.

    Returns:
        (F, K), rising along the second axis from 0 to less than 1.
    """
    size = sums.shape[-1]
    left, right = _normal_equations(sums)
    # With the right-hand side as its last row, the factor's last row is the solution of the forward substitution. The
    # last diagonal element only has to exceed the explained variance, which is below 1.
    matrix = np.zeros((len(sums), size + 1, size + 1))
    matrix[:, :size, :size] = left
    matrix[:, size, :size] = right
    matrix[:, size, size] = 2
    parts = np.linalg.cholesky(matrix)[:, size, :size]
    return np.cumsum(parts**2, axis=1)[:, 2::2]


def harmonic_fit(sums: Float64Array) -> NDArray[np.complex128]:
    """The amplitudes and phases of the fit of a mean and K harmonics, from `harmonic_sums`; see `harmonic_gains`.

    Returns:
        c (F, K), such that the fit is mean + Re sum_k c_k exp(2 pi i k f t), with t in days from the first point.
    """
    left, right = _normal_equations(sums)
    found = np.linalg.solve(left, right[..., None])[..., 0]
    return found[:, 1::2] - 1j * found[:, 2::2]


def _normal_equations(sums: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The fits' matrices (F, 2K + 1, 2K + 1), penalty included, and right-hand sides (F, 2K + 1), of 1, cos, sin ..."""
    harmonics = (sums.shape[-1] - 1) // 2
    one, two, sign, other_sign, penalty = _normal_matrix(harmonics)
    flat = sums[:, 0].reshape(len(sums), -1)
    left = (sign * flat[:, one] + other_sign * flat[:, two]) / 2 + penalty
    right = sums[:, 1, :, : harmonics + 1].transpose(0, 2, 1).reshape(len(sums), -1)  # cos 0, sin 0, cos 1, sin 1 ...
    return left, np.delete(right, 1, axis=1)


@lru_cache
def _normal_matrix(
    harmonics: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64Array, Float64Array, Float64Array]:
    """Where the normal matrix of (1, cos x, sin x, cos 2x, ...) is found among sums of cos kx and sin kx.

    By the formulas for products, each element is half of a sum of two of them, each with a sign. Returns the two
    places, the two signs, and the penalty's matrix, (2K + 1, 2K + 1) each.
    """
    order = np.array([0, *np.repeat(np.arange(1, harmonics + 1), 2)])
    is_sin = np.array([False, *[False, True] * harmonics])
    j, k = order[:, None], order[None]
    a, b = is_sin[:, None], is_sin[None]
    mixed = a ^ b
    n = 2 * harmonics + 1
    # cos cos: C(j-k) + C(j+k); sin sin: C(j-k) - C(j+k); sin j cos k: S(j+k) + S(j-k); cos j sin k: S(j+k) - S(j-k).
    first = np.abs(j - k) + n * mixed
    second = j + k + n * mixed
    sign = np.where(mixed, np.sign(j - k) * np.where(a, 1.0, -1.0), 1.0)
    other = np.where(a & b, -1.0, 1.0)
    penalty = np.diag(np.where(order > 0, _PENALTY * (1 + order) / 2, 0.0))
    return first, second, sign, other, penalty


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
