"""The counter-based generator: the same on every machine, uniform, and independent between counters."""

import warnings

import numpy as np
import pytest

from astroco_fast.data.hashing import TEST, TRAIN, VALIDATION, hash64, normal, split_of, star_hash, uniform
from astroco_fast.errors import UserError

INCREMENT = 0x9E3779B97F4A7C15
PINNED = [0x38C4069EBDBA3E3C, 0x6E4EFB716AF12A5F, 0xE4ACD408F7D69329, 0xF7F1454E6A8A1FA6]


def test_one_counter_is_splitmix64():
    """The values are the published first outputs of SplitMix64 seeded with 0."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [int(hash64(i * INCREMENT)) for i in range(4)] == published


def test_values_are_pinned():
    """The values may never change, because masks, orders and splits of every published run depend on them."""
    values = [hash64(1, 0, 1, 0, 0), hash64(1, 0, 1, 0, 1), hash64(3, 42, 7, 123456789), hash64(-1, 2**63)]
    assert [int(v) for v in values] == PINNED


def test_arrays_equal_plain_integers_and_broadcast():
    rows, columns = np.array([3, -1, 2**40]), np.arange(5, dtype=np.uint8)
    table = hash64(9, rows[:, None], columns)
    assert table.shape == (3, 5)
    assert table.dtype == np.uint64
    assert table.tolist() == [[int(hash64(9, int(r), int(c))) for c in columns] for r in rows]


def test_arguments_stay_as_they_were_and_nothing_warns():
    counters = np.arange(4, dtype=np.uint64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hash64(counters)
        hash64(np.uint64(2**64 - 1), counters)
    assert counters.tolist() == [0, 1, 2, 3]


def test_the_order_of_counters_matters():
    assert hash64(1, 2) != hash64(2, 1)
    assert hash64(1) != hash64(0, 1)


def test_floats_are_refused():
    with pytest.raises(TypeError, match="integers"):
        hash64(np.array([0.5]))


@pytest.mark.parametrize("axis", [0, 1])
def test_every_bit_is_fair_and_neighbours_are_independent(axis):
    """Over neighbouring counters, on either axis, half of all bits are set, and half of all pairs of bits agree."""
    n = 1 << 10
    bits = hash64(5, np.arange(n)[:, None], np.arange(n))
    sigma = 0.5 / n  # standard deviation of the mean of n^2 coins
    for bit in range(64):
        plane = (bits >> np.uint64(bit)) & np.uint64(1)
        assert abs(plane.mean() - 0.5) < 6 * sigma
        agree = plane == np.roll(plane, 1, axis=axis)
        assert abs(agree.mean() - 0.5) < 6 * sigma


def test_one_changed_bit_of_a_counter_flips_half_of_the_bits():
    counters = np.arange(4096)
    for bit in range(0, 64, 7):
        flipped = hash64(counters, 1) ^ hash64(counters.astype(np.uint64) ^ np.uint64(1 << bit), 1)
        ones = np.unpackbits(flipped.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(64 * 4096)


def test_uniform_numbers_fill_the_unit_interval_evenly():
    x = uniform(hash64(8, np.arange(200_000)))
    assert x.min() >= 0
    assert x.max() < 1
    counts, _ = np.histogram(x, bins=100, range=(0, 1))
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 99 + 6 * np.sqrt(2 * 99)
    assert uniform(np.array([2**64 - 1], dtype=np.uint64))[0] < 1


def test_normal_numbers_have_the_normal_moments():
    n = 200_000
    x = normal(hash64(1, np.arange(n)), hash64(2, np.arange(n)))
    assert abs(x.mean()) < 6 / np.sqrt(n)
    assert abs(x.var() - 1) < 6 * np.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 6 * np.sqrt(96 / n)
    assert np.isfinite(normal(np.array([0], np.uint64), np.array([0], np.uint64))).all()


def test_hashes_of_ids_are_pinned():
    """A change of these numbers would move stars between training and test."""
    assert star_hash(["", "1.3444.614", "étoile"]).tolist() == [
        13020603013274838756,
        11718694428759562555,
        8447113688504546110,
    ]
    assert star_hash([]).shape == (0,)


def test_parts_have_their_shares():
    hashes = star_hash([str(i) for i in range(20_000)])
    counts = np.bincount(split_of(hashes), minlength=3) / len(hashes)
    np.testing.assert_allclose(counts, [0.8, 0.1, 0.1], atol=0.01)


def test_a_larger_training_part_only_gains_stars():
    hashes = star_hash([str(i) for i in range(2000)])
    small, large = split_of(hashes, (0.5, 0.25, 0.25)), split_of(hashes, (0.8, 0.1, 0.1))
    assert (large[small == TRAIN] == TRAIN).all()


def test_ends_of_the_range_belong_to_the_first_and_the_last_part():
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert split_of(ends).tolist() == [TRAIN, TEST]
    assert split_of(ends, (0.9, 0.1, 0.0)).tolist() == [TRAIN, VALIDATION]
    assert split_of(ends, (1.0, 0.0, 0.0)).tolist() == [TRAIN, TRAIN]
    assert split_of(ends, (0.0, 0.0, 1.0)).tolist() == [TEST, TEST]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.2, 0.2)])
def test_bad_fractions(fractions):
    with pytest.raises(UserError, match="add to 1"):
        split_of(np.zeros(1, dtype=np.uint64), fractions)
