"""Numbers beside the encoder's states: what they are, and what they do not depend on."""

import numpy as np
import pytest

from astroco_fast.data.periodogram import Curve, harmonic_fit, harmonic_sums
from astroco_fast.data.periods import Periods, find_periods
from astroco_fast.data.summary import SHAPE_NUMBERS, shape_numbers
from tests.data.test_periods import batch_of, curve


def light(phase, amplitude=0.4, at=0.0):
    """Three harmonics: R_21 = 0.5, phi_21 = 1, R_31 = 0.2, phi_31 = -2, minimum of the first at phase `at`."""
    angle = 2 * np.pi * (phase - at)
    return amplitude * (np.cos(angle) + 0.5 * np.cos(2 * angle + 1) + 0.2 * np.cos(3 * angle - 2))


def test_the_fit_has_the_amplitudes_and_phases_of_the_curve():
    made = curve(light, 0.5472, n=400, noise=1e-4)
    (fit,) = harmonic_fit(harmonic_sums(Curve.of(*made.T), np.array([1 / 0.5472]), 4))
    ratio = fit[1:] / fit[0] * np.exp(-1j * np.arange(1, 4) * np.angle(fit[0]))
    np.testing.assert_allclose(ratio[:2], [0.5 * np.exp(1j), 0.2 * np.exp(-2j)], atol=0.01)
    assert abs(ratio[2]) < 0.01


def test_the_shape_does_not_depend_on_amplitude_epoch_period_and_order():
    made = [
        curve(light, 0.5472, n=400, noise=1e-3),
        curve(lambda phase: light(phase, amplitude=1.3, at=0.37), 3.77, n=300, noise=1e-3),
    ]
    curves = batch_of(*made)
    periods = find_periods(curves, threads=1)
    np.testing.assert_allclose(periods.fold_period, [0.5472, 3.77], rtol=1e-3)
    shape = shape_numbers(curves, periods)
    ratios = np.array([0.5 / 1.5 * np.exp(1j), 0.2 / 1.2 * np.exp(-2j), 0])
    for row in shape:
        np.testing.assert_allclose(row, np.concatenate([ratios.real, ratios.imag]), atol=0.01)
    shuffled = batch_of(*(points[np.random.default_rng(0).permutation(len(points))] for points in made))
    np.testing.assert_array_equal(shape_numbers(shuffled, periods), shape)


@pytest.mark.parametrize("amplitude", [1e-7, 0.3])
def test_a_sine_wave_and_a_curve_without_a_period_have_no_shape(amplitude):
    curves = batch_of(curve(lambda phase: amplitude * np.cos(2 * np.pi * phase), 2.3, noise=1e-3), np.ones((3, 3)))
    periods = find_periods(curves, threads=1)
    shape = shape_numbers(curves, periods)
    assert shape.shape == (2, SHAPE_NUMBERS)
    assert shape.dtype == np.float32
    assert np.isfinite(shape).all()
    assert periods.found.tolist() == [amplitude > 0.01, False]
    assert (np.abs(shape[0]) < 0.01).all()
    assert not shape[~periods.found].any()


def test_a_period_that_a_store_has_is_enough():
    curves = batch_of(curve(light, 0.5472, n=400, noise=1e-3))
    periods = find_periods(curves, threads=1)
    again = Periods.from_table(periods.to_table())
    np.testing.assert_array_equal(shape_numbers(curves, again), shape_numbers(curves, periods))
