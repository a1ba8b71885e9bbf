"""Which stars train, validate and test: a property of the star's id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from astroco_fast.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = ("train", "validation", "test")


def star_hash(ids: Iterable[str]) -> NDArray[np.uint64]:
    """(n,) uint64, the first 8 bytes (little-endian) of the BLAKE2b-64 hash of each id's UTF-8 text.

    The same on every machine and in every run. It takes the id without the band: bands of one star share a hash.
    """
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def split_of(hashes: NDArray[np.uint64], fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> NDArray[np.int8]:
    """(n,) int8: 0 train, 1 validation, 2 test, by cutting the range of the hash in these fractions.

    Adding or removing stars moves no other star, and enlarging the first fraction only moves stars into it.

    Raises:
        UserError: not three fractions, one is negative, or they do not add to one.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise UserError(f"split fractions must be three numbers >= 0 that add to 1, not {tuple(fractions)}")
    uniform = (np.asarray(hashes, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    # The last cut is left out: rounding in the sum must not leave a star outside of every part.
    cuts = np.cumsum(np.asarray(fractions, dtype=np.float64))[:-1]
    if fractions[2] == 0:
        cuts[1] = 1.0
    return np.searchsorted(cuts, uniform, side="right").astype(np.int8)
