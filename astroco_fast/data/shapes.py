"""Shapes of simulated variable stars: the kind, period and amplitude of each, and its magnitude at any time.

The ranges are textbook values for a band near V, chosen to be typical rather than complete. Periods are in days,
amplitudes peak to peak in magnitudes. Periods are normally distributed in log10 P, cut at the ends of the range.

| label  | share | period            | typical | amplitude | shape                                                     |
|--------|-------|-------------------|---------|-----------|-----------------------------------------------------------|
| RRab   | 0.20  | 0.38 - 0.95       | 0.57    | 0.3 - 1.3 | sawtooth of 7 harmonics; larger where the period is short |
| RRc    | 0.12  | 0.20 - 0.45       | 0.32    | 0.2 - 0.5 | nearly a sinusoid                                         |
| CEP_F  | 0.13  | 1.5 - 60          | 5       | 0.3 - 1.2 | sawtooth; the bump moves to the maximum towards 10 days   |
| CEP_1O | 0.09  | 0.5 - 6           | 2       | 0.2 - 0.5 | nearly a sinusoid, steeper rise                           |
| T2CEP  | 0.08  | 1 - 35            | 7       | 0.3 - 1.2 | broad, a strong second harmonic                           |
| EA     | 0.13  | 0.5 - 20          | 2.2     | 0.2 - 1.2 | flat; two narrow eclipses, some orbits eccentric          |
| EW     | 0.16  | 0.22 - 0.80       | 0.36    | 0.2 - 0.8 | continuous; two broad minima of nearly equal depth        |
| LPV    | 0.09  | 40 - 500          | 150     | 0.2 - 2.5 | Mira or semi-regular: phase and amplitude wander, and the |
|        |       |                   |         |           | mean drifts over years                                    |

Every number of a star is a counter-based draw (`hashing`) that depends on the survey's seed, the star and the quantity
alone. A star is therefore the same for any number of other stars and any size of portions.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astroco_fast.data.hashing import STREAM_SIMULATION, hash64, normal, uniform

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

LABELS = ("RRab", "RRc", "CEP_F", "CEP_1O", "T2CEP", "EA", "EW", "LPV")
_SHARES = (0.20, 0.12, 0.13, 0.09, 0.08, 0.13, 0.16, 0.09)
_RRAB, _RRC, _CEP_F, _CEP_1O, _T2CEP, _EA, _EW, _LPV = range(len(LABELS))

# For each label: shortest, typical and longest period, scatter of log10 period, smallest and largest amplitude.
_RANGES = np.array(
    [
        (0.38, 0.57, 0.95, 0.07, 0.30, 1.30),
        (0.20, 0.32, 0.45, 0.06, 0.20, 0.50),
        (1.50, 5.00, 60.0, 0.30, 0.30, 1.20),
        (0.50, 2.00, 6.00, 0.22, 0.20, 0.50),
        (1.00, 7.00, 35.0, 0.45, 0.30, 1.20),
        (0.50, 2.20, 20.0, 0.35, 0.20, 1.20),
        (0.22, 0.36, 0.80, 0.09, 0.20, 0.80),
        (40.0, 150.0, 500.0, 0.28, 0.20, 2.50),
    ]
)
_HARMONICS = 7
# Amplitudes of the harmonics of pulsating stars relative to the first; a perfect sawtooth has 1/k.
_SPECTRA = {
    _RRAB: (1.0, 0.48, 0.34, 0.23, 0.15, 0.10, 0.06),
    _RRC: (1.0, 0.14, 0.06, 0.03, 0.0, 0.0, 0.0),
    _CEP_F: (1.0, 0.42, 0.23, 0.12, 0.06, 0.03, 0.0),
    _CEP_1O: (1.0, 0.20, 0.07, 0.02, 0.0, 0.0, 0.0),
    _T2CEP: (1.0, 0.28, 0.10, 0.05, 0.0, 0.0, 0.0),
    _LPV: (1.0, 0.18, 0.05, 0.0, 0.0, 0.0, 0.0),
}


class StarDraws:
    """Random numbers of stars: float64 (n,) for each named quantity, the same in every call.

    Args:
        seed: the survey's seed.
        stars: int64 (n,), the stars' numbers.
    """

    def __init__(self, seed: int, stars: Int64Array) -> None:
        self.seed = seed
        self.stars = stars

    def unit(self, name: str) -> Float64Array:
        """Uniform in [0, 1)."""
        return uniform(self._bits(name))

    def between(self, name: str, low: float | Float64Array, high: float | Float64Array) -> Float64Array:
        """Uniform from `low` to `high`."""
        return low + (high - low) * self.unit(name)

    def gaussian(self, name: str) -> Float64Array:
        """Standard normal."""
        return normal(self._bits(name), self._bits(name + "'"))

    def _bits(self, name: str) -> npt.NDArray[np.uint64]:
        return hash64(STREAM_SIMULATION, self.seed, zlib.crc32(name.encode()), self.stars)


@dataclass(frozen=True)
class Stars:
    """n variable stars. Arrays are float64 (n,) where nothing else is said.

    kind: int64 (n,), index into `LABELS`.
    period: days; for eclipsing binaries that of the orbit.
    amplitude: magnitudes, peak to peak, of the periodic part.
    phase: cycles, at time 0.
    harmonic_amplitude, harmonic_phase: (n, 7), the Fourier series of pulsating stars: amplitudes for a peak-to-peak
        of 1, and phases in radians.
    draws: the stars' random numbers.
    """

    kind: Int64Array
    period: Float64Array
    amplitude: Float64Array
    phase: Float64Array
    harmonic_amplitude: Float64Array
    harmonic_phase: Float64Array
    draws: StarDraws


def draw_stars(draws: StarDraws) -> Stars:
    """Draw the kind, period, amplitude and shape of each star."""
    kind = np.searchsorted(np.cumsum(_SHARES[:-1]), draws.unit("kind"), side="right").astype(np.int64)
    shortest, typical, longest, scatter, smallest, largest = _RANGES[kind].T
    log_period = np.log10(typical) + scatter * np.clip(draws.gaussian("period"), -3, 3)
    period = np.clip(10**log_period, shortest * 1.01, longest / 1.01)
    # Periods pile up at the cut ends of the distributions; they are spread a little, so that none is frequent.
    period *= draws.between("period spread", 0.99, 1.01)
    relative = draws.unit("amplitude")
    # Bailey's diagram: RRab stars with short periods have large amplitudes.
    bailey = np.clip(0.75 - 3.5 * (np.log10(period) - np.log10(0.57)) + 0.12 * draws.gaussian("bailey"), 0, 1)
    relative = np.where(kind == _RRAB, bailey, relative)
    # A third of the LPVs are Miras: long periods and large amplitudes; the others are semi-regular.
    mira = draws.unit("mira") < 1 / 3
    period = np.where((kind == _LPV) & mira, np.clip(period * 1.8, 120, 500), period)
    relative = np.where(kind == _LPV, np.where(mira, 0.35 + 0.65 * relative, 0.25 * relative), relative)
    amplitude = smallest + (largest - smallest) * relative
    harmonic_amplitude, harmonic_phase = _fourier_series(kind, period, draws)
    return Stars(kind, period, amplitude, draws.unit("phase"), harmonic_amplitude, harmonic_phase, draws)


def magnitudes(stars: Stars, star: Int64Array, time: Float64Array) -> Float64Array:
    """Magnitudes (P,), relative to the mean, of the stars in rows `star` (P,) at `time` (P,), days, in any order."""
    result = np.empty_like(time)
    kind = stars.kind[star]
    for members, shape in (
        (kind < _EA, _pulsation),
        (kind == _EA, _detached),
        (kind == _EW, _contact),
        (kind == _LPV, _long_period),
    ):
        result[members] = shape(stars, star[members], time[members])
    return result


def _fourier_series(kind: Int64Array, period: Float64Array, draws: StarDraws) -> tuple[Float64Array, Float64Array]:
    """Amplitudes (n, 7), scaled to a peak-to-peak of 1, and phases (n, 7) of sum_k A_k sin(2 pi k phase + phi_k)."""
    n = len(kind)
    spectrum = np.zeros((len(LABELS), _HARMONICS))
    for label, values in _SPECTRA.items():
        spectrum[label] = values
    amplitude = spectrum[kind]
    order = np.arange(_HARMONICS, dtype=np.float64)
    # The less asymmetric a star is, the faster its amplitudes fall with the order.
    amplitude = amplitude * draws.between("asymmetry", 0.75, 1.05)[:, None] ** order
    # With all phases pi the brightness is a falling sawtooth: it rises fast and fades slowly. A lead that grows with
    # the harmonic sharpens the maximum.
    lead = np.full(n, -0.6)
    log_period = np.log10(period)
    # Hertzsprung's progression: from 2 to 10 days the second harmonic fades and its phase shifts, which moves the bump
    # from the falling branch to the maximum; at longer periods the sawtooth returns.
    cepheid = kind == _CEP_F
    slide = np.clip((log_period - 0.3) / 0.7, 0, 1)
    lead = np.where(cepheid, np.where(log_period < 1, -0.7 + 1.3 * slide, -0.4), lead)
    bump = np.exp(-(((log_period - 1) / 0.12) ** 2))
    amplitude[:, 1:] *= np.where(cepheid, 1 - 0.55 * bump, 1.0)[:, None]
    lead = np.where(kind == _T2CEP, draws.between("lead of type II", -1.5, 1.0), lead)
    lead = lead + 0.12 * draws.gaussian("lead")
    phase = np.pi + lead[:, None] * order

    angle = 2 * np.pi * np.arange(96) / 96
    curve = np.zeros((n, 96))
    for k in range(_HARMONICS):
        curve += amplitude[:, k, None] * np.sin((k + 1) * angle + phase[:, k, None])
    span = np.ptp(curve, axis=1)
    return amplitude / np.where(span > 0, span, 1)[:, None], phase  # eclipsing binaries have no series


def _series(stars: Stars, star: Int64Array, cycle: Float64Array) -> Float64Array:
    """The Fourier series of each star at `cycle` (P,), peak to peak 1."""
    total = np.zeros_like(cycle)
    for k in range(_HARMONICS):
        angle = 2 * np.pi * (k + 1) * cycle + stars.harmonic_phase[star, k]
        total += stars.harmonic_amplitude[star, k] * np.sin(angle)
    return total


def _pulsation(stars: Stars, star: Int64Array, time: Float64Array) -> Float64Array:
    return stars.amplitude[star] * _series(stars, star, time / stars.period[star] + stars.phase[star])


def _detached(stars: Stars, star: Int64Array, time: Float64Array) -> Float64Array:
    """Detached binaries: two smooth dips a cycle on a nearly flat curve, which are wider at short periods."""
    draws = stars.draws
    cycle = time / stars.period[star] + stars.phase[star]
    half_width = np.clip(0.055 * stars.period ** (-1 / 3), 0.015, 0.08) * draws.between("width", 0.8, 1.6)
    flatness = draws.between("flatness", 1.8, 4.0)  # 2 is a bell; above it the bottom is flat, as in a total eclipse
    ratio = draws.unit("depth ratio") ** 1.3 * 0.95
    eccentric = draws.unit("eccentric") < 0.2
    middle = 0.5 + np.where(eccentric, draws.between("secondary", -0.15, 0.15), 0.0)
    ellipsoidal = draws.between("ellipsoidal", 0.0, 0.02)
    dip = np.zeros_like(time)
    for centre, depth in ((np.zeros_like(middle), np.ones_like(ratio)), (middle, ratio)):
        distance = np.abs((cycle - centre[star] + 0.5) % 1 - 0.5) / half_width[star]
        dip += depth[star] * np.exp(-(np.minimum(distance, 50.0) ** flatness[star]))
    return stars.amplitude[star] * dip + ellipsoidal[star] * np.cos(4 * np.pi * cycle)


def _contact(stars: Stars, star: Int64Array, time: Float64Array) -> Float64Array:
    """Contact binaries: |cos| to a power above 2, with the second minimum shallower and the maxima slightly unequal."""
    draws = stars.draws
    angle = 2 * np.pi * (time / stars.period[star] + stars.phase[star])
    power = draws.between("sharpness", 2.0, 3.4)[star]
    ratio = draws.between("depth ratio", 0.7, 1.0)[star]
    dip = np.abs(np.cos(angle)) ** power * np.where(np.cos(angle) < 0, ratio, 1.0)
    unequal_maxima = 0.03 * stars.amplitude * draws.gaussian("unequal maxima")
    return stars.amplitude[star] * (dip - 0.4) + unequal_maxima[star] * np.sin(angle)


def _long_period(stars: Stars, star: Int64Array, time: Float64Array) -> Float64Array:
    """Long-period variables: pulsation with wandering phase and amplitude, and a mean that drifts over years."""
    draws = stars.draws
    irregular = np.clip(1.5 - stars.amplitude, 0.15, 1.0)  # Miras are more regular than semi-regular variables
    cycle = time / stars.period[star] + stars.phase[star]
    level = np.ones_like(time)
    for i, (cycles, strength) in enumerate(((7.3, 0.16), (3.1, 0.07))):
        wander = 2 * np.pi * (time / (cycles * stars.period[star]) + draws.unit(f"wander {i}")[star])
        cycle = cycle + (strength * irregular)[star] * np.sin(wander)
        level += (0.35 * irregular)[star] * np.sin(wander * 1.37 + 1.0)
    slow = 2 * np.pi * (time / draws.between("drift period", 1000.0, 4000.0)[star] + draws.unit("drift phase")[star])
    drift = draws.between("drift", 0.03, 0.25)[star] * np.sin(slow)
    return stars.amplitude[star] * level * _series(stars, star, cycle) + drift
