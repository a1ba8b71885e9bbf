"""Features of light curves: their numbers by hand, and curves that have too few points for them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from astroco_fast.data.curves import CurveBatch
from astroco_fast.errors import MissingExtraError
from astroco_fast.probe import features
from tests.data.curve_factory import make_batch

PERIOD = 0.7


def periodic(shape: str, points: int = 150) -> CurveBatch:
    """One light curve of period PERIOD: a sine wave of amplitude 0.3, or two minima of depths 0.6 and 0.3."""
    batch = make_batch(1, lengths=[points])
    batch.time = np.sort(np.random.default_rng(0).uniform(0, 300, points))
    phase = batch.time / PERIOD % 1
    batch.mag = 15 + 0.3 * np.sin(2 * np.pi * phase)
    if shape == "eclipses":
        batch.mag = 15 + 0.6 * np.exp(-0.5 * ((phase - 0.25) / 0.05) ** 2)
        batch.mag += 0.3 * np.exp(-0.5 * ((phase - 0.75) / 0.05) ** 2)
    batch.mag, batch.err = batch.mag.astype(np.float32), np.full(points, 0.02, dtype=np.float32)
    return batch


def test_statistics_by_hand() -> None:
    batch = make_batch(1, lengths=[5])
    batch.mag = np.array([0, 0, 0, 0, 5], dtype=np.float32)
    (found,) = features.statistics(batch)
    np.testing.assert_allclose(found, [2, 1.5, 0.25, 0, 0, 0, 0, 4, 5], atol=1e-6)


def test_statistics_do_not_know_the_order_of_points() -> None:
    batch = periodic("sine")
    before = features.statistics(batch)
    batch.mag = np.random.default_rng(1).permutation(batch.mag)
    np.testing.assert_allclose(features.statistics(batch), before, atol=1e-5)


def test_a_sine_wave_is_found_as_one() -> None:
    (found,) = features.folded_features(periodic("sine"), np.array([PERIOD]))
    assert found.shape == (features.FOLDED,)
    assert found[0] == pytest.approx(np.log10(PERIOD), abs=1e-6)
    assert 10 ** found[1] == pytest.approx(0.6, rel=0.03)  # from the minimum of light to the maximum
    assert 10 ** found[2] == pytest.approx(0.3, rel=0.03)  # the first harmonic's amplitude
    assert found[6:11].max() < 0.02  # the others', relative to it
    assert found[21] > 0.97  # the share of the variance that the first harmonic explains


def test_the_fold_at_twice_the_period_tells_minima_apart() -> None:
    """Folded at half the period of an eclipsing binary, its odd harmonics lie at twice that fold."""
    halves = np.array([PERIOD / 2])
    (of_sine,), (of_eclipses,) = (
        features.folded_features(periodic(shape), periods)
        for shape, periods in (("sine", np.array([PERIOD])), ("eclipses", halves))
    )
    odd = slice(26, 28)
    assert of_eclipses[odd].max() > 0.2 > 0.05 > of_sine[odd].max()


def test_the_shape_does_not_depend_on_the_epoch_and_the_zero_points() -> None:
    one, other = periodic("eclipses"), periodic("eclipses")
    other.time, other.mag = other.time + 1234.5, other.mag + 2
    found = [features.folded_features(batch, np.array([PERIOD])) for batch in (one, other)]
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_light_curve_without_a_period_or_with_few_points_has_gaps() -> None:
    pytest.importorskip("light_curve")
    lengths = [1, 2, 3, 40]
    batch = make_batch(len(lengths), lengths=lengths)
    folded = features.folded_features(batch, np.array([1.0, 1.0, np.nan, np.nan]))
    assert np.isnan(folded).all()
    found = features.features(batch)
    assert found.shape == (len(lengths), features.WITHOUT_PERIOD)
    assert np.isnan(found[0]).sum() > 10
    assert np.isfinite(found[3]).all()
    assert not np.isinf(found).any()
    assert not np.isinf(features.statistics(batch)).any()


def test_a_constant_light_curve_gives_no_infinities() -> None:
    pytest.importorskip("light_curve")
    batch = make_batch(1, lengths=[30])
    batch.mag[:] = 15
    for found in (
        features.features(batch),
        features.folded_features(batch, np.array([1.0])),
        features.statistics(batch),
    ):
        assert not np.isinf(found).any()


def test_without_light_curve_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "light_curve", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'astroco_fast\[rivals\]'"):
        features.require_light_curve()
