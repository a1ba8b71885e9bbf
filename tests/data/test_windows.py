"""Windows cover every point once; orders and random windows depend on (seed, epoch) alone."""

import numpy as np
import pytest

from astroco_fast.data.windows import epoch_order, random_windows, window_table
from astroco_fast.errors import UserError

OFFSETS = np.array([0, 450, 450, 650, 660])  # 450 points, 0, 200, 10
PINNED_ORDER = [1, 2, 5, 7, 4, 6, 0, 3]


def test_sequential_windows_and_the_short_last_one():
    table = window_table(OFFSETS, 200)
    assert table.curve.tolist() == [0, 0, 0, 2, 3]
    assert table.start.tolist() == [0, 200, 400, 450, 650]
    assert table.length.tolist() == [200, 200, 50, 200, 10]
    assert (table.curve.dtype, table.start.dtype, table.length.dtype) == (np.int64, np.int64, np.int32)


def test_every_point_is_in_exactly_one_window():
    points = np.random.default_rng(0).integers(0, 70, 300)
    offsets = np.concatenate([[0], np.cumsum(points)])
    for size in (1, 7, 64, 100):
        table = window_table(offsets, size)
        covered = np.concatenate([np.arange(s, s + n) for s, n in zip(table.start, table.length, strict=True)])
        assert np.array_equal(covered, np.arange(offsets[-1]))
        assert table.length.min() >= 1
        assert table.length.max() <= size


def test_no_curves_no_windows():
    assert len(window_table(np.array([0]))) == 0


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="window size"):
        window_table(OFFSETS, 0)


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(1000, seed=3, epoch=1)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, epoch_order(1000, seed=3, epoch=1))
    for other in (epoch_order(1000, seed=3, epoch=2), epoch_order(1000, seed=4, epoch=1)):
        assert (other == order).sum() < 12  # two random orders agree at one place on average
    assert epoch_order(8, seed=0, epoch=1).tolist() == PINNED_ORDER
    assert epoch_order(0, 0, 1).shape == (0,)


def test_random_windows_stay_inside_their_curve_and_reach_every_start():
    table = window_table(np.array([0, 30, 43, 50]), 10)
    offsets = np.array([0, 30, 43, 50])
    seen = set()
    for epoch in range(1, 400):
        drawn = random_windows(table, offsets, 10, seed=0, epoch=epoch)
        assert np.array_equal(drawn.curve, table.curve)
        assert drawn.length.tolist() == [10, 10, 10, 10, 10, 7]
        assert (drawn.start >= offsets[drawn.curve]).all()
        assert (drawn.start + drawn.length <= offsets[drawn.curve + 1]).all()
        seen.update(drawn.start.tolist())
    assert seen == {*range(21), *range(30, 34), 43}


def test_random_windows_depend_on_seed_epoch_and_index_alone():
    offsets = np.concatenate([[0], np.cumsum(np.full(50, 500))])
    table = window_table(offsets)
    drawn = random_windows(table, offsets, 200, seed=1, epoch=2)
    chosen = np.array([77, 3, 149, 3])
    part = random_windows(table, offsets, 200, seed=1, epoch=2, indices=chosen)
    assert np.array_equal(part.start, drawn.start[chosen])
    assert np.array_equal(part.curve, drawn.curve[chosen])
    assert not np.array_equal(random_windows(table, offsets, 200, seed=1, epoch=3).start, drawn.start)
    assert not np.array_equal(random_windows(table, offsets, 200, seed=2, epoch=2).start, drawn.start)
