"""The masks: their counts are exact, they depend on (seed, epoch, window) alone, and favour no position."""

import numpy as np
import pytest

from astroco_fast.data.hashing import hash64
from astroco_fast.data.masking import HIDDEN, MAX_WIDTH, RANDOM, UNCHANGED, role_counts
from tests.data.masks import draw_masks


def counts_of(n: int) -> dict[int, int]:
    """The number of points in each role by the rule, with Python's own rounding (half to even)."""
    probed, tenth = round(n / 2), round(n / 10)
    return {HIDDEN: probed - 2 * tenth, RANDOM: tenth, UNCHANGED: tenth, 0: n - probed}


def test_counts_are_exact_for_every_length():
    lengths = np.arange(201)
    role, source = draw_masks(lengths, np.arange(201) + 7, 200, seed=0, epoch=1)
    assert role.dtype == np.uint8
    assert role.shape == source.shape == (201, 200)
    assert np.array_equal(np.stack(role_counts(lengths)), [[counts_of(n)[r] for n in lengths] for r in (1, 2, 3)])
    for n in lengths:
        found = {r: int((role[n, :n] == r).sum()) for r in (0, HIDDEN, RANDOM, UNCHANGED)}
        assert found == counts_of(n)
        assert not role[n, n:].any()


def test_small_windows():
    assert (np.stack(role_counts(np.arange(7))) >= 0).all()
    probed = sum(role_counts(np.arange(7)))
    assert probed.tolist() == [0, 0, 1, 2, 2, 2, 3]


def test_only_random_points_get_a_magnitude_and_it_is_another_points():
    lengths = np.tile(np.array([6, 10, 35, 120, 200]), 20)
    role, source = draw_masks(lengths, np.arange(100), 200, seed=5, epoch=3)
    positions = np.broadcast_to(np.arange(200), source.shape)
    replaced = source != positions
    assert np.array_equal(replaced, role == RANDOM)
    assert (source < lengths[:, None])[replaced].all()
    assert (source >= 0).all()


def test_any_batch_order_and_padded_width_give_the_same_draw():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 201, 64)
    windows = rng.integers(0, 2**40, 64)
    role, source = draw_masks(lengths, windows, 200, seed=11, epoch=4)
    shuffled = rng.permutation(64)[:17]
    for width in (200, 256, 999):
        part, part_source = draw_masks(lengths[shuffled], windows[shuffled], width, seed=11, epoch=4)
        assert np.array_equal(part[:, :200], role[shuffled])
        assert np.array_equal(part_source[:, :200], source[shuffled])
        assert not part[:, 200:].any()


def test_the_draw_follows_its_definition():
    """The draw equals a slow version of the rule: the lowest keys are random, the next unchanged, the next hidden."""
    n, window, seed, epoch = 57, 1234, 9, 2
    role, source = draw_masks(np.array([n]), np.array([window]), 64, seed, epoch)
    ranked = sorted(range(n), key=lambda p: (int(hash64(1, seed, epoch, window, p)) >> 16, p))
    counts = counts_of(n)
    expected = dict.fromkeys(range(64), 0)
    names = [RANDOM] * counts[RANDOM] + [UNCHANGED] * counts[UNCHANGED] + [HIDDEN] * counts[HIDDEN]
    expected.update(zip(ranked, names, strict=False))
    assert role[0].tolist() == list(expected.values())
    for p in ranked[: counts[RANDOM]]:
        assert source[0, p] == (p + 1 + int(hash64(2, seed, epoch, window, p)) % (n - 1)) % n


def test_epochs_seeds_and_windows_draw_anew():
    lengths = np.full(50, 200)
    role, _ = draw_masks(lengths, np.arange(50), 200, seed=0, epoch=1)
    for other in (
        draw_masks(lengths, np.arange(50), 200, seed=0, epoch=2)[0],
        draw_masks(lengths, np.arange(50), 200, seed=1, epoch=1)[0],
        draw_masks(lengths, np.arange(50) + 50, 200, seed=0, epoch=1)[0],
    ):
        agree = ((other == 0) == (role == 0)).mean()
        assert abs(agree - 0.5) < 6 * 0.5 / np.sqrt(50 * 200)


@pytest.mark.parametrize("n", [10, 37, 200])
def test_every_position_is_as_likely_for_each_role(n):
    windows = 20_000
    role, source = draw_masks(np.full(windows, n), np.arange(windows), n, seed=2, epoch=1)
    counts = counts_of(n)
    for kind in (HIDDEN, RANDOM, UNCHANGED):
        share = counts[kind] / n
        rate = (role == kind).mean(axis=0)
        assert np.abs(rate - share).max() < 5.5 * np.sqrt(share * (1 - share) / windows)
    # Cyclic distances to the source are uniform over 1 .. n - 1.
    row, position = np.nonzero(role == RANDOM)
    distance = (source[row, position] - position) % n
    found = np.bincount(distance, minlength=n)
    expected = len(distance) / (n - 1)
    assert found[0] == 0
    assert np.abs(found[1:] - expected).max() < 5.5 * np.sqrt(expected)


def test_masks_of_no_points():
    assert draw_masks(np.zeros(3, int), np.full(3, -1), 20, 0, 1)[0].sum() == 0
    assert draw_masks(np.zeros(0, int), np.zeros(0, int), 20, 0, 1)[0].shape == (0, 20)
    assert draw_masks(np.zeros(2, int), np.zeros(2, int), 0, 0, 1)[0].shape == (2, 0)


def test_too_long_a_window_is_an_error():
    with pytest.raises(ValueError, match="do not fit"):
        draw_masks(np.array([201]), np.array([0]), 200, 0, 1)
    assert draw_masks(np.array([5]), np.array([0]), MAX_WIDTH, 0, 1)[0].shape == (1, MAX_WIDTH)
    with pytest.raises(ValueError, match="do not fit"):
        draw_masks(np.array([5]), np.array([0]), MAX_WIDTH + 1, 0, 1)
