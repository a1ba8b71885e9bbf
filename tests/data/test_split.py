import numpy as np
import pytest

from astroco_fast.data.split import TEST, TRAIN, VALIDATION, split_of, star_hash
from astroco_fast.errors import UserError


def test_hash_is_pinned():
    """Changing these numbers would move stars between training and test."""
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
