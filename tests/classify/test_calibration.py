"""Temperature and calibration error, against figures by hand."""

import numpy as np
import pytest

from astroco_fast.classify.calibration import choose_temperature, log_loss, reliability
from astroco_fast.classify.classifier import softmax
from astroco_fast.classify.report import wilson


def test_expected_calibration_error_by_hand():
    # Three predictions of 0.9, of which one is right, and one of 0.6, which is right.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    found = reliability(probabilities, np.array([0, 1, 0, 1]))
    assert found.stars.sum() == 4
    assert found.stars[9] == 3
    assert found.error == pytest.approx((3 * abs(1 / 3 - 0.9) + abs(1 - 0.6)) / 4)


def test_right_and_certain_is_calibrated():
    assert reliability(np.eye(3), np.arange(3)).error == 0


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_of_overconfident_scores_is_found(temperature):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 4))
    log_prior = np.log([0.01, 0.04, 0.15, 0.8])  # so uneven that no other sum of it would do
    true = np.array([rng.choice(4, p=row) for row in softmax(scores + log_prior)])
    assert choose_temperature(scores * temperature, log_prior, true) == pytest.approx(temperature, rel=0.05)


def test_wilson_s_interval_by_hand():
    low, high = wilson(np.array([0.0, 0.5]), np.array([1, 4]))
    np.testing.assert_allclose(
        [low, high], [[0.0, 0.5 - 0.1**0.5 / 2**0.5], [0.5, 0.5 + 0.1**0.5 / 2**0.5]], atol=1e-12
    )


def test_log_loss_is_the_mean_cross_entropy_and_finite():
    assert log_loss(np.array([[0.25, 0.75], [1.0, 0.0]]), np.array([1, 0])) == pytest.approx(-np.log(0.75) / 2)
    assert np.isfinite(log_loss(np.array([[1.0, 0.0]]), np.array([1])))
