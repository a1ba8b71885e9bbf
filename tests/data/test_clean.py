"""Cleaning: bad points and short light curves are dropped and counted, and absurd times are refused."""

import numpy as np
import pytest

from astroco_fast.data import clean as c
from astroco_fast.data.clean import CleanConfig, clean
from astroco_fast.errors import UserError
from tests.data.curve_factory import make_batch


def one_curve(time, mag=None, err=None):
    batch = make_batch(1, lengths=[len(time)])
    batch.time = np.asarray(time, dtype=np.float64)
    batch.mag = np.full(len(time), 15, np.float32) if mag is None else np.asarray(mag, np.float32)
    batch.err = np.full(len(time), 0.1, np.float32) if err is None else np.asarray(err, np.float32)
    return batch


def test_good_curves_pass_untouched():
    batch = make_batch(20)
    kept, dropped = clean(batch)
    assert not dropped
    for name in ("ids", "time", "mag", "err", "offsets"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(batch, name))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("time", np.nan, c.NOT_FINITE),
        ("time", np.inf, c.NOT_FINITE),
        ("mag", np.nan, c.NOT_FINITE),
        ("mag", -np.inf, c.LIMIT),
        ("err", -np.inf, c.FLAGGED),
        ("mag", np.inf, c.NO_FLUX),
        ("err", np.nan, c.NOT_FINITE),
        ("mag", -99, c.SENTINEL),
        ("mag", -999, c.SENTINEL),
        ("mag", 99.999, c.SENTINEL),
        ("mag", 99.0, c.SENTINEL),
        ("err", 99.99, c.SENTINEL),
        ("err", 0.0, c.BAD_ERROR),
        ("err", -0.1, c.BAD_ERROR),
    ],
)
def test_bad_point_is_dropped_and_counted_once(field, value, reason):
    batch = make_batch(3, lengths=[12, 12, 12])
    getattr(batch, field)[15] = value
    expected = np.delete(batch.mag, 15)
    kept, dropped = clean(batch)
    assert dropped == {reason: 1}
    assert kept.lengths.tolist() == [12, 11, 12]
    np.testing.assert_array_equal(kept.mag, expected)


def test_point_bad_in_two_ways_counts_once():
    batch = make_batch(1, lengths=[12])
    batch.mag[3], batch.err[3] = 99.999, -1
    assert clean(batch)[1] == {c.SENTINEL: 1}


def test_short_curves_are_dropped_after_their_bad_points():
    batch = make_batch(4, lengths=[10, 9, 0, 11])
    batch.mag[0] = np.nan
    kept, dropped = clean(batch, CleanConfig(min_points=10))
    assert kept.ids.tolist() == ["star-3"]
    assert kept.offsets.tolist() == [0, 11]
    assert dropped == {c.NOT_FINITE: 1, c.SHORT_CURVES: 3, c.SHORT_POINTS: 18}


def test_counts_add_up():
    rng = np.random.default_rng(1)
    batch = make_batch(200, lengths=rng.integers(0, 30, 200))
    batch.mag[rng.random(batch.n_points) < 0.2] = -99
    batch.err[rng.random(batch.n_points) < 0.2] = 0
    kept, dropped = clean(batch)
    assert 0 < len(kept) < 200
    assert kept.n_points + sum(n for reason, n in dropped.items() if reason.startswith("points")) == batch.n_points
    assert len(kept) + dropped[c.SHORT_CURVES] == len(batch)


def test_sorting_is_by_curve_and_stable():
    time = [3, 1, 2, 2, 2, 1]
    batch = make_batch(2, lengths=[6, 4])
    batch.time = np.array([*time, 9, 8, 8, 7], dtype=np.float64)
    batch.mag = np.arange(10, dtype=np.float32)
    kept, dropped = clean(batch, CleanConfig(min_points=1))
    assert kept.time.tolist() == [1, 1, 2, 2, 2, 3, 7, 8, 8, 9]
    assert kept.mag.tolist() == [1, 5, 2, 3, 4, 0, 9, 7, 8, 6]
    assert not dropped


def test_empty_curves_at_the_ends_do_not_disturb_sorting():
    batch = make_batch(4, lengths=[0, 3, 0, 0])
    batch.time = batch.time[::-1].copy()
    kept, _ = clean(batch, CleanConfig(min_points=1))
    assert (np.diff(kept.time) > 0).all()


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ([1.6e9 + i for i in range(12)], "beyond"),
        ([-2e7 + i for i in range(12)], "beyond"),
        ([55_000.0 + i for i in range(6)] + [2_455_001.0 + i for i in range(6)], "JD and MJD"),
    ],
)
def test_absurd_times_name_file_and_id(time, message):
    with pytest.raises(UserError, match=rf"test: light curve 'star-0': time .*{message}"):
        clean(one_curve(time))


def test_julian_dates_and_small_negative_times_are_fine():
    for zero in (2_458_000.5, 58_000, 0, -500):
        assert len(clean(one_curve(zero + np.arange(12)))[0]) == 1


def test_absurd_time_of_a_dropped_point_does_no_harm():
    time, mag = np.arange(12.0), np.full(12, 15.0)
    time[5], mag[5] = 1e30, 99.999
    assert clean(one_curve(time, mag))[1] == {c.SENTINEL: 1}


@pytest.mark.parametrize(("name", "value"), [("min_points", 0), ("sentinel", -1.0), ("sentinel", 0.0)])
def test_bad_config(name, value):
    with pytest.raises(UserError, match=rf"clean\.{name}"):
        CleanConfig(**{name: value})


def test_exact_duplicates_are_dropped_and_counted():
    """Those that came twice: also apart from each other, and among other points of the same time."""
    time = [1, 1, 1, 1, 2, 3, 3, 4, *range(5, 15)]
    mag = [7, 8, 7, 9, 1, 2, 2, 1, *range(10)]
    batch = one_curve(time, mag, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.1, *[0.1] * 10])
    kept, dropped = clean(batch)
    assert dropped == {c.COPY: 1}
    assert kept.mag.tolist() == [7, 8, 9, 1, 2, 2, 1, *range(10)]
    order = np.random.default_rng(0).permutation(36)
    twice = one_curve(np.tile(time, 2)[order], np.tile(mag, 2)[order], np.tile(batch.err, 2)[order])
    kept, dropped = clean(twice)
    assert dropped == {c.COPY: 19}
    points = [(t, m, e) for t, m, e in zip(time, mag, batch.err, strict=True)]
    assert {*zip(kept.time, kept.mag, kept.err, strict=True)} == {*points}


def test_points_of_two_curves_are_no_duplicates():
    batch = make_batch(2, lengths=[12, 12])
    for name in ("time", "mag", "err"):
        values = getattr(batch, name)
        values[12:] = values[:12]
    batch.time[12:] = batch.time[11]
    batch.time[:12] = batch.time[11]
    kept, dropped = clean(batch)
    assert not dropped
    assert kept.lengths.tolist() == [12, 12]


def test_duplicates_make_no_curve_long_enough():
    assert len(clean(one_curve(np.repeat(np.arange(6), 2)))[0]) == 0
