"""Periods: found where there is one, refused where there is none, the same for every batch and number of threads."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from astroco_fast.data import periodogram
from astroco_fast.data.clean import clean
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periodogram import (
    Curve,
    fundamentals,
    harmonic_gains,
    harmonic_sums,
    highest_peaks,
    log_false_alarm,
    power_spectrum,
    take_apart,
)
from astroco_fast.data.periods import HARMONICS, STATUS, PeriodRule, Periods, find_periods
from astroco_fast.data.sources import open_source
from tests.data.curve_factory import SHARED

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real light curves are not beside this checkout")


def night_times(n, rng, nights=1500, start=53_500.0):
    """n times of a survey from one place: a few points a night, about the same time of night."""
    return np.sort(start + rng.integers(0, nights, n) + rng.normal(0.3, 0.08, n))


def curve(shape, period, n=150, noise=0.02, seed=0, **times):
    """An (n, 3) light curve with this shape, a function of the phase in [0, 1) that returns magnitudes."""
    rng = np.random.default_rng(seed)
    time = night_times(n, rng, **times)
    return np.stack([time, 15 + shape(time / period % 1) + rng.normal(0, noise, n), np.full(n, noise)], axis=1)


def sine(phase):
    return 0.3 * np.cos(2 * np.pi * phase)


def sawtooth(phase):
    return 0.8 * np.minimum(phase / 0.8, (1 - phase) / 0.2)


def eclipses(second):
    """Two eclipses, of depths 0.5 and `second`, half a period apart."""

    def shape(phase):
        near = np.abs((phase + 0.5) % 1 - 0.5)
        return 0.5 * np.exp(-((near / 0.05) ** 2)) + second * np.exp(-(((0.5 - near) / 0.05) ** 2))

    return shape


def batch_of(*curves):
    return CurveBatch.from_arrays(curves, [str(i) for i in range(len(curves))], source="test")


def find(*curves, **options):
    return find_periods(batch_of(*curves), threads=1, **options)


def assert_same(one, other):
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("period", [0.137, 0.5472, 2.7, 31.4, 402.0])
def test_a_pulsation_is_found_at_its_period(period):
    found = find(curve(sine, period), curve(sawtooth, period))
    assert found.found.all()
    np.testing.assert_allclose(found.period, period, rtol=0.1 * period / 1500 + 1e-6)
    np.testing.assert_array_equal(found.fold_period, found.period)
    assert (found.log_false_alarm < -10).all()
    assert found.power[0] > 0.95 > found.power[1] > 0.5
    assert found.harmonics[0] == 1 < found.harmonics[1]


def test_like_eclipses_are_folded_together_and_unlike_ones_apart():
    found = find(curve(eclipses(0.5), 3.21), curve(eclipses(0.05), 3.21))
    np.testing.assert_allclose(found.fold_period, [3.21 / 2, 3.21], rtol=1e-4)
    assert found.half_ratio[1] < 0.7


def test_epoch_is_the_first_time_of_minimum_light():
    points = curve(sine, 0.61)
    found = find(points)
    (epoch,) = found.epoch
    phase = epoch / 0.61 % 1  # the magnitude is largest at phase 0
    assert min(phase, 1 - phase) < 0.05
    assert points[0, 0] <= epoch < points[0, 0] + found.fold_period[0]


@pytest.mark.parametrize("zero", [-53_000.0, 2_400_000.5])
def test_the_zero_point_of_time_does_not_matter(zero):
    points = curve(sawtooth, 0.61)
    moved = points + np.array([zero, 0, 0])
    one, other = find(points), find(moved)
    np.testing.assert_allclose(other.period, one.period, rtol=1e-6)
    np.testing.assert_allclose(other.epoch, one.epoch + zero, atol=1e-3)


def test_the_order_of_points_does_not_matter():
    points = curve(sawtooth, 0.61)
    assert_same(find(points), find(np.random.default_rng(0).permutation(points)))


def test_evenly_spaced_points_are_searched_up_to_half_their_rate():
    points = curve(sine, 7.3)
    points[:, 0] = 55_000 + np.delete(np.arange(170), np.arange(40, 60))  # one a night, with a gap
    points[:, 1] = 15 + sine(points[:, 0] / 7.3)
    np.testing.assert_allclose(find(points).period, 7.3, rtol=1e-2)


@pytest.mark.parametrize("n", [10, 11, 40])
def test_curves_that_alternate_have_the_shortest_period(n):
    time = np.arange(float(n))
    found = find(np.stack([time, 15 + 0.1 * (-1.0) ** time, np.full(n, 0.01)], axis=1))
    assert not found.found[0] or found.period[0] == pytest.approx(2, rel=0.1)


def test_twice_the_points_at_the_same_times_have_the_same_period():
    points = curve(sawtooth, 0.61)
    np.testing.assert_allclose(find(np.repeat(points, 2, axis=0)).period, find(points).period, rtol=1e-5)


def test_noise_has_no_period():
    curves = [curve(np.zeros_like, 1, n=60, seed=seed) for seed in range(60)]
    found = find(*curves)
    assert np.count_nonzero(found.found) <= 2
    assert found.reasons()["false alarm above 1 %"] >= 58
    assert (found.log_false_alarm <= 0).all()


def test_light_curves_without_a_period_are_told_apart():
    good = curve(sine, 0.61)
    constant, evening = good.copy(), good.copy()
    constant[:, 1] = 15
    evening[:, 0] = np.linspace(100.0, 100.2, len(good))
    found = find(good[:9], good[:1], good[:0], constant, evening, good)
    assert [STATUS[s] for s in found.status] == [
        *["fewer than 10 times"] * 3,
        "constant",
        "shorter than a day",
        "found",
    ]
    assert np.isnan(found.period[:5]).all()
    assert np.isnan(found.fold_period[:5]).all()
    assert np.isnan(found.epoch[:5]).all()
    for name in ("power", "log_false_alarm", "harmonics", "gains", "half_ratio", "double_gain"):
        assert not getattr(found, name)[:5].any(), name
    assert len(find_periods(batch_of())) == 0


def test_points_that_are_not_measurements_are_left_out():
    points = curve(sine, 0.61)
    bad = points[:5].copy()
    bad[0, 0], bad[1, 1], bad[2, 1], bad[3, 2], bad[4, 2] = np.nan, np.nan, np.inf, 0, np.nan
    assert_same(find(np.concatenate([points, bad])), find(points))


@pytest.mark.parametrize(
    "errors", [np.full(150, 1e30), np.full(150, 1e-30), np.geomspace(1e-3, 1e30, 150), np.geomspace(1e-30, 1, 150)]
)
def test_absurd_errors_do_no_harm(errors):
    points = curve(sine, 0.61)
    points[:, 2] = errors
    found = find(points)
    values = [found.power, found.log_false_alarm, found.gains, found.half_ratio, found.double_gain]
    assert all(np.isfinite(value).all() for value in values)
    if found.found.all():
        np.testing.assert_allclose(found.period, 0.61, rtol=1e-3)


def test_ten_points_and_two_times_do_no_harm():
    ten = curve(sine, 0.61, n=10)
    two_times = curve(sine, 0.61, n=12)
    two_times[:, 0] = np.repeat([100.0, 300.0], 6)
    found = find(ten, two_times)
    assert found.status[1] == STATUS.index("fewer than 10 times")
    assert np.isfinite(found.log_false_alarm).all()
    assert np.isfinite(found.gains).all()


def test_batches_and_threads_do_not_matter():
    rng = np.random.default_rng(1)
    curves = [
        curve(shape, period, n=int(rng.integers(10, 300)), seed=i, nights=int(rng.integers(50, 3000)))
        for i, (shape, period) in enumerate([(sine, 0.3), (sawtooth, 0.6), (eclipses(0.4), 2.2)] * 24)
    ]
    whole = find(*curves)
    assert_same(whole, find_periods(batch_of(*curves), threads=3))
    assert_same(whole, Periods.concatenate([find(one) for one in curves]))
    assert_same(whole.select(slice(5, 9)), find(*curves[5:9]))


def test_table_and_back():
    found = find(curve(sine, 0.61), curve(sine, 0.61)[:5])
    table = found.to_table()
    assert table.column_names == list(vars(found))
    assert_same(Periods.from_table(table), found)
    assert_same(Periods.from_table(Periods.empty(0).to_table()), Periods.empty(0))


def test_the_grid_is_bounded(monkeypatch):
    monkeypatch.setattr(periodogram, "MOST_FREQUENCIES", 1 << 12)
    points = curve(sine, 402.0, nights=30_000)
    whole = Curve.of(*points.T)
    spectrum = power_spectrum(whole, 10.0, 4.0)
    assert len(spectrum.power) == 1 << 12
    assert spectrum.step == pytest.approx(1 / (4 * whole.span))
    np.testing.assert_allclose(find(points).period, 402.0, rtol=1e-3)


@pytest.mark.parametrize("nights", [4, 400, 20_000])
def test_spectrum_is_the_sum_it_says(nights):
    """In one transform, in several at once, and in several times several."""
    light = Curve.of(*curve(sawtooth, 0.61, nights=nights).T)
    spectrum = power_spectrum(light, 10.0, 4.0)
    assert 1 / (spectrum.step * light.span) == pytest.approx(4)
    assert 0 <= len(spectrum.power) * spectrum.step - 10.0 < 16 * spectrum.step
    places = np.unique(np.linspace(0, len(spectrum.power) - 1, 1000).astype(int))
    wave = np.exp(2j * np.pi * np.outer(places * spectrum.step, light.time))
    expected = np.abs(wave @ (light.weight * light.mag)) ** 2
    np.testing.assert_allclose(spectrum.power[places], expected, atol=0.02 * spectrum.power.max())


@pytest.mark.parametrize("harmonics", [1, 3])
def test_sums_around_frequencies_are_those_at_their_sums(harmonics):
    light = Curve.of(*curve(sawtooth, 0.61).T)
    frequency, around = np.array([0.3, 1.6, 9.9]), np.array([-1.0, 0, 0.001, 1.00273791])
    together = harmonic_sums(light, frequency, harmonics, around)
    one_by_one = harmonic_sums(light, np.add.outer(frequency, around).ravel(), harmonics)
    assert together.shape == (2 * harmonics + 1, 2, 12)
    np.testing.assert_allclose(together, one_by_one, atol=2e-5)
    order = np.arange(2 * harmonics + 1)
    wave = np.exp(2j * np.pi * np.outer(order * (1.6 + 0.001), light.time))
    np.testing.assert_allclose(together[:, 1, 6], wave @ (light.weight * light.mag), atol=2e-5)


def test_gains_are_those_of_penalised_least_squares(monkeypatch):
    monkeypatch.setattr(periodogram, "_POINTS_A_BLOCK", 64)
    light = Curve.of(*curve(sawtooth, 0.61).T)
    frequency = np.array([0.5, 1, 1.7]) / 0.61
    gains = harmonic_gains(harmonic_sums(light, frequency, HARMONICS))
    for f, row in zip(frequency, gains.T, strict=True):
        for harmonics in range(1, HARMONICS + 1):
            order = np.arange(1, harmonics + 1)
            angle = 2 * np.pi * f * np.outer(light.time, order)
            design = np.concatenate([np.ones((len(light), 1)), np.cos(angle), np.sin(angle)], axis=1)
            penalty = np.diag([0, *(0.01 * (1 + np.tile(order, 2)) / 2)])
            normal = design.T @ (light.weight[:, None] * design) + penalty
            right = design.T @ (light.weight * light.mag)
            assert row[harmonics - 1] == pytest.approx(right @ np.linalg.solve(normal, right), abs=1e-5)


def test_peaks_are_at_the_vertices_of_parabolas():
    power = np.zeros(1008, np.float32)
    power[300:303] = [2, 6, 4]
    power[40:44] = [5, 7, 7, 5]  # the highest by its vertex
    power[-2:] = [3, 3.1]
    power[500] = 0.5  # not among the highest values
    places = highest_peaks(power, 8)
    np.testing.assert_allclose(places[:2], [41.5, 301 + 1 / 6])
    assert 1006 < places[2] < 1008
    assert len(places) == 3
    assert not len(highest_peaks(np.zeros(32, np.float32), 6))


def test_fundamentals_are_those_of_the_harmonics():
    power = np.zeros(1008, np.float32)
    power[[200, 400, 600, 900]] = [1, 3, 2, 5]
    assert fundamentals(power, np.array([900.0, 400, 600, 200])).tolist()[:5] == [300, 200, 200, 900, 450]


def test_values_taken_are_apart():
    assert take_apart(np.array([5.0, 6, 3.9, 5.5, 9, 1]), 3, 1.0) == [0, 2, 4]
    assert take_apart(np.array([5.0, 5, 5]), 3, 0.1) == [0]


def test_false_alarm_is_the_published_formula():
    """As astropy computes it, with its weighting."""
    timeseries = pytest.importorskip("astropy.timeseries")
    light = Curve.of(*curve(sine, 0.61, n=40, noise=0.2).T)
    scargle = timeseries.LombScargle(light.time, light.mag, 1 / np.sqrt(light.weight))
    for power in (0.4, 0.5, 0.6):
        expected = scargle.false_alarm_probability(power, method="baluev", minimum_frequency=0, maximum_frequency=10.0)
        assert 10 ** log_false_alarm(np.array([power]), light, 10.0) == pytest.approx(float(expected), rel=0.1)
    assert log_false_alarm(np.array([0.9999]), light, 10.0) < -50
    assert np.isfinite(log_false_alarm(np.array([0.0, 1.0]), light, 10.0))
    assert log_false_alarm(np.array([0.0]), light, 10.0) == 0


@pytest.mark.parametrize("harmonics", [1, 2, 4, 6])
def test_the_rate_of_change_with_more_harmonics(harmonics):
    """By Rice's formula the rate is the mean of sqrt(sum of k² r_k), r_k being the k-th harmonic's share of power."""
    share = (np.random.default_rng(0).normal(size=(50_000, harmonics, 2)) ** 2).sum(axis=2)
    share /= share.sum(axis=1, keepdims=True)
    rate = np.sqrt(share @ np.arange(1, harmonics + 1) ** 2).mean()
    assert math.exp(periodogram._log_alpha(harmonics)) == pytest.approx(rate / math.gamma(harmonics), rel=0.01)


def test_narrow_eclipses_are_no_chance():
    """One harmonic explains too little of them."""
    points = curve(lambda phase: 0.15 * (np.abs(phase - 0.5) < 0.02), 3.21, n=300, seed=3)
    light = Curve.of(*points.T)
    gains = harmonic_gains(harmonic_sums(light, np.array([1 / 3.21]), HARMONICS))[:, 0]
    assert log_false_alarm(gains[:1], light, 10.0) > -2 > log_false_alarm(gains, light, 10.0)
    assert find(points).found[0]


def test_period_rule_settings():
    points = curve(sine, 0.05)
    assert find(points, rule=PeriodRule(highest=25.0)).period[0] == pytest.approx(0.05, rel=1e-4)
    strict = replace(PeriodRule(), min_points=200)
    assert find(points, rule=strict).status[0] == 1


@real_data
def test_periods_of_real_stars():
    """Of every 300th Catalina star, most are found at the catalogue's period, half or twice it."""
    table = pq.read_table(SHARED / "catalina.parquet", columns=["id", "period"])
    catalogue = dict(zip(table["id"].to_pylist(), table["period"].to_pylist(), strict=True))
    ratios = []
    for batch in open_source(Path(SHARED) / "catalina.parquet").batches():
        keep = np.zeros(len(batch), dtype=bool)
        keep[::300] = True
        kept, _ = clean(batch.select(keep))
        found = find_periods(kept)
        ratios += [p / catalogue[star] for p, star in zip(found.period, kept.ids, strict=True) if catalogue[star]]
    near = np.abs(np.log(np.outer(ratios, [1, 2, 0.5]))).min(axis=1) < 0.01
    assert len(near) > 90
    assert near.mean() > 0.9
