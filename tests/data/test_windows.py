"""Windows cover every point once; orders and random windows depend on (seed, epoch) alone."""

import numpy as np
import pytest

from astroco_fast.data.windows import (
    NOT_DEALT,
    deal,
    epoch_order,
    folded_table,
    random_windows,
    view_table,
    window_table,
)
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


def test_folded_windows_share_a_curves_points_as_evenly_as_can_be():
    table = folded_table(OFFSETS, 200)
    assert table.curve.tolist() == [0, 0, 0, 2, 3]
    assert table.start.tolist() == [0, 0, 0, 450, 650]
    assert table.length.tolist() == [150, 150, 150, 200, 10]
    assert table.part.tolist() == [0, 1, 2, 0, 0]
    assert folded_table(np.array([0, 401]), 200).length.tolist() == [134, 134, 133]
    with pytest.raises(UserError, match="window size"):
        folded_table(OFFSETS, 0)


@pytest.mark.parametrize("points", [1, 2, 199, 200, 201, 450, 1001])
def test_a_deal_gives_every_point_to_one_window(points):
    table = folded_table(np.array([0, points]), 200)
    dealt = [deal(points, part, 200, seed=1, epoch=2) for part in table.part]
    assert [len(window) for window in dealt] == table.length.tolist()
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(points))


def test_deals_depend_on_seed_and_epoch_and_mix_early_and_late_points():
    first = deal(1000, 0, 200, seed=1, epoch=2)
    assert np.array_equal(first, deal(1000, 0, 200, seed=1, epoch=2))
    for other in (deal(1000, 0, 200, seed=1, epoch=3), deal(1000, 0, 200, seed=2, epoch=2)):
        assert 20 < len(np.intersect1d(first, other)) < 60  # 40 expected, standard deviation 5.1
    assert 440 < first.mean() < 560  # 500 expected, standard deviation 18


def test_a_curve_without_a_period_has_the_time_view_only():
    periodic = np.array([True, False, False, True])
    both, folded, time = (view_table(OFFSETS, 200, views, periodic) for views in ("both", "folded", "time"))
    assert (time.part == NOT_DEALT).all()
    assert time.curve.tolist() == [0, 0, 0, 2, 3]
    assert folded.curve.tolist() == [2, 0, 0, 0, 3]
    assert folded.part.tolist() == [NOT_DEALT, 0, 1, 2, 0]
    assert both.curve.tolist() == [0, 0, 0, 2, 3, 0, 0, 0, 3]
    assert both.part.tolist() == [NOT_DEALT] * 5 + [0, 1, 2, 0]
