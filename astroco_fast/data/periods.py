"""Periods of light curves, and the periods at which they are folded.

The rule, for each light curve (one star in one band) by itself:

1. Grid: frequencies from 1 / span to 10 cycles a day, in steps of 1 / (1.5 span). Where the points are evenly
   spaced, it ends at half their rate, because all higher frequencies are exact aliases (Eyer & Bartholdi 1999,
   A&AS 135, 1).
2. Candidates: the 5 highest peaks of the power spectrum, each at the vertex of a parabola, and the 5 of these peaks'
   places and their halves at which the sum of the power over three harmonics is highest, as it is at the period of a
   curve that is not a sine wave; half and twice their frequencies; their aliases of the solar and the sidereal day.
3. Choice: each candidate is fitted by 1 to 3 harmonics; the best 8 are refined in frequency by fits of 1 to 4, and the
   best 4 of these by fits of 1 to 6. The fit with the lowest Bayesian information criterion (Schwarz 1978, Ann.
   Statist. 6, 461) is taken, n ln(1 - gain) + 2 k ln n, plus 10 for frequencies at whole numbers of cycles a day, where
   the survey's own rhythm shows.
4. False alarm: a light curve that white noise would fit as well with a probability above 1 % has no period.
5. Fold: at half the period, if the fit at half the period explains at least 0.7 of what it explains at the period. The
   two minima of most eclipsing binaries are alike, and no search can tell their period from its half; all such curves
   are folded at the half.

Magnitudes' uncertainties weight the points. A model that must not see them sees this much of them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periodogram import (
    Complex64Array,
    Curve,
    Float32Array,
    Float64Array,
    fundamentals,
    harmonic_gains,
    harmonic_sums,
    highest_peaks,
    log_false_alarm,
    power_spectrum,
    take_apart,
)

HARMONICS = 6
# Harmonics of the first fits, by which candidates are sorted out.
_FEW_HARMONICS = 3
# Why a light curve has no period, by `Periods.status`.
STATUS = ("found", "fewer than 10 times", "shorter than a day", "constant", "false alarm above 1 %")
_FOUND, _FEW, _SHORT, _CONSTANT, _CHANCE = range(len(STATUS))
_DAYS = (1.0, 1.00273791)  # cycles a day of the Sun and of the stars
_ALIASES = np.array([0.0, *_DAYS, *(-day for day in _DAYS)])
_CURVES_A_TASK = 16
# Values of the spectrum among which peaks are looked for.
_VALUES = 128
# In units of 1 / span: how close two frequencies are the same, and the refinements around a frequency.
_NEAR = 0.075
_COARSE = np.arange(-2, 3) / 16
_FINE = np.arange(-2, 3) / 64


@dataclass(frozen=True)
class PeriodRule:
    """The settings of the search.

    Args:
        highest: the highest frequency, cycles a day.
        oversample: frequencies within 1 / span.
        peaks: peaks taken from each of the two spectra.
        refined: the best candidates, which are refined in frequency.
        fitted: the best of these, which are refined again by fits of up to 6 harmonics.
        day_penalty: added to the criterion at whole numbers of cycles a day.
        fold_share: the share of the explained variance from which on half the period is enough.
        min_points: light curves with fewer points at different times have no period.
        false_alarm: light curves whose best fit is more probable by chance have no period.
    """

    highest: float = 10.0
    oversample: float = 1.5
    peaks: int = 5
    refined: int = 8
    fitted: int = 4
    day_penalty: float = 10.0
    fold_share: float = 0.7
    min_points: int = 10
    false_alarm: float = 0.01


@dataclass(frozen=True)
class Periods:
    """Periods of n light curves.

    A light curve without a period has NaN in `period`, `fold_period` and `epoch`, and 0 in what follows from them.

    Attributes:
        period: (n,) float64, days, of the best fit; the physical period, half or twice it.
        fold_period: (n,) float64, days, `period` or half of it: the period at which to fold.
        epoch: (n,) float64, days, the first time of minimum light (largest magnitude) of the first harmonic at
            `fold_period`, counted as the light curve's times are.
        power: (n,) float32, share of the variance that one harmonic explains at `fold_period`.
        log_false_alarm: (n,) float32, logarithm to base 10 of the probability that the best fit is chance (of white
            noise); 0 where nothing was searched.
        harmonics: (n,) int8, the harmonics of the best fit.
        gains: (n, 12) float32, share of the variance explained by 1 .. 6 harmonics at twice `fold_period`, and by
            1 .. 6 harmonics at `fold_period`.
        half_ratio: (n,) float32, the share explained at half of `period` over that at `period`.
        double_gain: (n,) float32, the share explained at twice `period` minus that at `period`.
        status: (n,) int8, 0 if a period was found, else the reason's place in `STATUS`.
    """

    period: Float64Array
    fold_period: Float64Array
    epoch: Float64Array
    power: Float32Array
    log_false_alarm: Float32Array
    harmonics: NDArray[np.int8]
    gains: Float32Array
    half_ratio: Float32Array
    double_gain: Float32Array
    status: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.period)

    @property
    def found(self) -> NDArray[np.bool_]:
        """(n,) whether a light curve has a period."""
        return np.asarray(self.status == _FOUND)

    def select(self, index: Any) -> Periods:
        """The periods of the light curves that `index` (numbers, a slice or a mask) picks."""
        return Periods(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Periods]) -> Periods:
        """The periods of several batches, in order."""
        whole = [cls.empty(0), *parts]
        return cls(**{field.name: np.concatenate([getattr(p, field.name) for p in whole]) for field in fields(cls)})

    @classmethod
    def empty(cls, n: int) -> Periods:
        """n light curves for which nothing was searched."""
        values = {name: np.full((n, *shape), missing, dtype) for name, dtype, missing, shape in _COLUMNS}
        return cls(**values)

    def reasons(self) -> Counter[str]:
        """The number of light curves by status."""
        return Counter({name: int(count) for i, name in enumerate(STATUS) if (count := (self.status == i).sum())})

    def to_table(self) -> pa.Table:
        """An Arrow table with a column for each attribute; `gains` is a fixed-size list."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        flat = pa.array(np.ascontiguousarray(columns["gains"]).reshape(-1))
        return pa.table({**columns, "gains": pa.FixedSizeListArray.from_arrays(flat, 2 * HARMONICS)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Periods:
        """The inverse of `to_table`; other columns are ignored.

        Raises:
            KeyError, ValueError, pa.ArrowException: a column is missing, has another type or missing values.
        """
        schema = cls.empty(0).to_table().schema
        table = table.select(schema.names).cast(schema)
        if any(column.null_count for column in table.columns):
            raise ValueError("a value is missing")
        columns = {}
        for name, dtype, _, shape in _COLUMNS:
            values = table[name].combine_chunks()
            if shape:
                values = values.flatten()
            columns[name] = values.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(-1, *shape)
        return cls(**columns)


# Name, type, value where there is no period, and shape for one light curve.
_COLUMNS: tuple[tuple[str, Any, float, tuple[int, ...]], ...] = (
    ("period", np.float64, np.nan, ()),
    ("fold_period", np.float64, np.nan, ()),
    ("epoch", np.float64, np.nan, ()),
    ("power", np.float32, 0, ()),
    ("log_false_alarm", np.float32, 0, ()),
    ("harmonics", np.int8, 0, ()),
    ("gains", np.float32, 0, (2 * HARMONICS,)),
    ("half_ratio", np.float32, 0, ()),
    ("double_gain", np.float32, 0, ()),
    ("status", np.int8, _FEW, ()),
)


def find_periods(curves: CurveBatch, rule: PeriodRule | None = None, threads: int | None = None) -> Periods:
    """Search the period of each light curve by itself; the module's text states the rule.

    A light curve's result does not depend on the others of its batch, nor on the number of threads.

    Args:
        curves: n light curves, their points in any order. Points that are not measurements (not finite, uncertainty not
            positive) are left out.
        rule: the settings of the search.
        threads: light curves searched at the same time; None: as many as this process may use CPUs.
    """
    rule = rule or PeriodRule()
    threads = threads or available_cpus()
    starts = range(0, len(curves), _CURVES_A_TASK)
    tasks = [range(start, min(start + _CURVES_A_TASK, len(curves))) for start in starts]
    if threads == 1 or len(tasks) == 1:
        return Periods.concatenate([_search(curves, task, rule) for task in tasks])
    with ThreadPoolExecutor(threads) as pool:
        return Periods.concatenate(list(pool.map(lambda task: _search(curves, task, rule), tasks)))


def available_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _search(curves: CurveBatch, places: range, rule: PeriodRule) -> Periods:
    """The periods of some curves of a batch. Small matrices of all of them are solved together."""
    out = Periods.empty(len(places))
    searched: list[tuple[int, float, Curve]] = []
    for row, place in enumerate(places):
        curve, first, out.status[row] = _prepare(curves, place, rule)
        if curve is not None:
            searched.append((row, first, curve))
    if not searched:
        return out
    kept = [curve for _, _, curve in searched]
    highest = [_highest(curve, rule) for curve in kept]
    frequency, harmonics, peaks = _choose(kept, highest, rule)
    # From here on: half, once and twice the frequency.
    sums = np.concatenate(
        [harmonic_sums(curve, f * np.array([0.5, 1, 2]), HARMONICS) for curve, f in zip(kept, frequency, strict=True)],
        axis=2,
    )
    gains = harmonic_gains(sums).T.reshape(-1, 3, HARMONICS)
    phases = _minimum_phases(sums).reshape(-1, 3)
    for i, (row, first, curve) in enumerate(searched):
        log_chance = log_false_alarm(peaks[i], curve, highest[i])
        out.log_false_alarm[row] = log_chance
        if log_chance > np.log10(rule.false_alarm):
            out.status[row] = _CHANCE
            continue
        half, once, twice = gains[i, :, _most_harmonics(len(curve)) - 1]
        folded = 2 if twice >= rule.fold_share * once else 1
        out.period[row] = 1 / frequency[i]
        out.fold_period[row] = 1 / (folded * frequency[i])
        out.epoch[row] = first + phases[i, folded] * out.fold_period[row]
        out.gains[row] = gains[i, folded - 1 : folded + 1].ravel()
        out.power[row] = out.gains[row, HARMONICS]
        out.harmonics[row] = harmonics[i]
        out.half_ratio[row] = twice / once
        out.double_gain[row] = half - once
    return out


def _prepare(curves: CurveBatch, place: int, rule: PeriodRule) -> tuple[Curve | None, float, int]:
    """A light curve's good points in order of time, the time of the first, and its status so far."""
    points = slice(curves.offsets[place], curves.offsets[place + 1])
    time, mag, err = curves.time[points], curves.mag[points], curves.err[points]
    good = np.isfinite(time) & np.isfinite(mag) & np.isfinite(err) & (err > 0)
    order = np.flatnonzero(good)[np.argsort(time[good], kind="stable")]
    time, mag, err = time[order], mag[order], err[order]
    if not len(time) or 1 + np.count_nonzero(np.diff(time)) < rule.min_points:
        return None, np.nan, _FEW
    if time[-1] - time[0] < 1:
        return None, np.nan, _SHORT
    if mag.min() == mag.max():
        return None, np.nan, _CONSTANT
    return Curve.of(time, mag, err), float(time[0]), _FOUND


def _choose(
    curves: list[Curve], highest: list[float], rule: PeriodRule
) -> tuple[Float64Array, NDArray[np.int64], list[Float64Array]]:
    """The frequency and the harmonics of each curve's best fit, and the highest gains of 1, 2, ... harmonics.

    Args:
        curves: the light curves.
        highest: the highest frequency to search of each, cycles a day.
        rule: the settings of the search.
    """
    pairs = zip(curves, highest, strict=True)
    frequencies, sums = map(list, zip(*(_candidates(*pair, rule) for pair in pairs), strict=True))
    _, scores = _fits(curves, sums)
    for count, grid, harmonics in ((rule.refined, _COARSE, 4), (rule.fitted, _FINE, HARMONICS)):
        for i, (curve, f, score) in enumerate(zip(curves, frequencies, scores, strict=True)):
            best, around = _best(f, score.min(axis=0), count, _NEAR / curve.span), grid / curve.span
            sums[i] = harmonic_sums(curve, best, harmonics, around)
            frequencies[i] = np.add.outer(best, around).ravel()
        gains, scores = _fits(curves, sums)
    frequency, harmonics_of = np.empty(len(curves)), np.empty(len(curves), np.int64)
    for i, (curve, f, score) in enumerate(zip(curves, frequencies, scores, strict=True)):
        place = int(np.argmin(score.min(axis=0) + rule.day_penalty * _at_whole_days(f, curve)))
        frequency[i], harmonics_of[i] = f[place], score[:, place].argmin() + 1
    return (
        frequency,
        harmonics_of,
        [gain.max(axis=1)[: _most_harmonics(len(c))] for gain, c in zip(gains, curves, strict=True)],
    )


def _best(frequency: Float64Array, score: Float64Array, count: int, apart: float) -> Float64Array:
    """The `count` frequencies of the lowest scores; of several within `apart` of each other the best."""
    ordered = frequency[np.argsort(score, kind="stable")]
    return ordered[take_apart(ordered, count, apart)]


def _candidates(curve: Curve, highest: float, rule: PeriodRule) -> tuple[Float64Array, Complex64Array]:
    """Candidates (F,) in cycles a day, and the sums of which their first fits are made."""
    spectrum = power_spectrum(curve, highest, rule.oversample)
    spectrum.power[: max(2, math.ceil(rule.oversample))] = 0  # less than a cycle within the span
    places = highest_peaks(spectrum.power, _VALUES)
    two = (places, fundamentals(spectrum.power, places))
    found = np.concatenate([list_[take_apart(list_, rule.peaks, 1.5 * rule.oversample)] for list_ in two])
    found = found[take_apart(found, len(found), _NEAR * rule.oversample)] * spectrum.step
    found = np.minimum(found, highest) if len(found) else np.array([highest])
    multiples = np.concatenate([found / 2, 2 * found])
    every = np.concatenate([np.abs(np.add.outer(found, _ALIASES)).ravel(), multiples])
    sums = [harmonic_sums(curve, found, _FEW_HARMONICS, _ALIASES), harmonic_sums(curve, multiples, _FEW_HARMONICS)]
    good = (every >= 0.7 / curve.span) & (every <= highest)
    return every[good], np.concatenate(sums, axis=2)[..., good]


def _highest(curve: Curve, rule: PeriodRule) -> float:
    """The highest frequency to search, cycles a day."""
    gaps = np.diff(curve.time)
    gaps = gaps[gaps > 0]
    steps = gaps / gaps.min()
    evenly_spaced = np.abs(steps - np.rint(steps)).max() < 0.01
    return min(rule.highest, 0.5 / float(gaps.min())) if evenly_spaced else rule.highest


def _fits(curves: Sequence[Curve], sums: Sequence[Complex64Array]) -> tuple[list[Float64Array], list[Float64Array]]:
    """The gains (K, F) of fits to each curve, and their Bayesian information criterion, lower is better."""
    lengths = [s.shape[-1] for s in sums]
    gains = harmonic_gains(np.concatenate(sums, axis=2))
    n = np.repeat([len(curve) for curve in curves], lengths)
    most = np.repeat([_most_harmonics(len(curve)) for curve in curves], lengths)
    harmonics = np.arange(1, len(gains) + 1)[:, None]
    criterion = n * np.log(np.maximum(1 - gains, 1e-6)) + 2 * np.log(n) * harmonics
    criterion[harmonics > most] = np.inf
    ends = np.cumsum(lengths)[:-1]
    return np.split(gains, ends, axis=1), np.split(criterion, ends, axis=1)


def _most_harmonics(n: int) -> int:
    """The harmonics that n points allow."""
    return min(HARMONICS, max(1, (n - 4) // 6))


def _at_whole_days(frequency: Float64Array, curve: Curve) -> NDArray[np.bool_]:
    """Whether a frequency is a whole number of cycles a day, within 0.01 or what the span resolves."""
    away = np.min([np.abs(frequency - np.rint(frequency / day) * day) for day in _DAYS], axis=0)
    return np.asarray((away < max(0.01, 1 / curve.span)) & (frequency > 0.5))


def _minimum_phases(sums: Complex64Array) -> Float64Array:
    """The phases in [0, 1) of the largest magnitude of fits of one harmonic at F frequencies, from `harmonic_sums`."""
    weights, mags = (sums[:3, i].astype(np.complex128) for i in (0, 1))
    cos, sin, one = weights.real, weights.imag, np.ones(sums.shape[2])
    matrix = np.array(
        [
            [one, cos[1], sin[1]],
            [cos[1], (1 + cos[2]) / 2 + 1e-3, sin[2] / 2],
            [sin[1], sin[2] / 2, (1 - cos[2]) / 2 + 1e-3],
        ]
    )
    right = np.stack([mags[0].real, mags[1].real, mags[1].imag])
    _, a, b = np.linalg.solve(matrix.transpose(2, 0, 1), right.T[..., None])[..., 0].T
    return np.asarray(np.arctan2(b, a) / (2 * np.pi) % 1)
