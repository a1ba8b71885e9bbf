"""Hashes: a counter-based random generator, and the hash of a star's id, by which stars are split.

The draw for (stream, seed, epoch, window, position) needs no state.

Every random decision of the pipeline is `hash64` of the numbers that name it. It is therefore the same for every rank,
batch, device, order of work and resumed run, and on every machine, since the hash is integer arithmetic modulo 2^64.

The hash chains SplitMix64's finaliser (Steele, Lea and Flood 2014) over the counters c1, c2, ...:

    h <- 0;  for each c:  h <- finalise((h xor c) + 0x9e3779b97f4a7c15)
    finalise(z):  z ^= z >> 30;  z *= 0xbf58476d1ce4e5b9;  z ^= z >> 27;  z *= 0x94d049bb133111eb;  z ^= z >> 31

With one counter, which takes the values 0, 1, 2 ... times the added constant, it is SplitMix64 itself. Each step is a
bijection of the last counter, so that draws that differ only in the last counter never collide.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from astroco_fast.errors import UserError

UInt64Array = npt.NDArray[np.uint64]

# The first counter names the purpose of a draw, so that no two purposes share a draw.
STREAM_MASK = 1
STREAM_SOURCE = 2
STREAM_ORDER = 3
STREAM_WINDOW = 4
STREAM_SIMULATION = 5
STREAM_PROBE = 6
STREAM_DEAL = 7

# The parts of a split.
TRAIN, VALIDATION, TEST = 0, 1, 2

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_TO_UNIT = 2.0**-53


def hash64(*counters: Any) -> UInt64Array:
    """Hash integers to 64 uniform bits.

    Args:
        counters: integers or integer arrays of shapes that broadcast; negative ones are taken modulo 2^64. Their order
            matters. It is cheapest to put the array that varies fastest last.

    Returns:
        uint64 array of the broadcast shape (of shape () if all counters are plain integers).
    """
    state: Any = np.uint64(0)
    with np.errstate(over="ignore"):  # numpy warns when scalars wrap, which is intended
        for counter in counters:
            state = _finalise((state ^ _as_uint64(counter)) + _INCREMENT)
    return np.asarray(state, dtype=np.uint64)


def uniform(bits: UInt64Array) -> npt.NDArray[np.float64]:
    """Uniform float64 numbers in [0, 1), each exactly the 53 high bits of 64 random bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def normal(bits: UInt64Array, more_bits: UInt64Array) -> npt.NDArray[np.float64]:
    """Standard normal float64 numbers, from two independent sets of random bits of one shape (Box-Muller)."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(bits)))
    return radius * np.cos(2.0 * np.pi * uniform(more_bits))


def _as_uint64(counter: Any) -> Any:
    if isinstance(counter, int):
        return np.uint64(counter & 0xFFFFFFFFFFFFFFFF)
    array = np.asarray(counter)
    if array.dtype.kind not in "iu":
        raise TypeError(f"hash64 takes integers, not {array.dtype}")
    return array.astype(np.uint64, copy=False)


def _finalise(z: Any) -> Any:
    """SplitMix64's finaliser. It changes `z` in place, which the caller must not need again."""
    z ^= z >> _SHIFT_1
    z *= _MULTIPLIER_1
    z ^= z >> _SHIFT_2
    z *= _MULTIPLIER_2
    z ^= z >> _SHIFT_3
    return z


def star_hash(ids: Iterable[str]) -> UInt64Array:
    """(n,) uint64, the first 8 bytes (little-endian) of the BLAKE2b-64 hash of each id's UTF-8 text.

    The hash is the same on every machine and in every run. It does not depend on the band, so that all bands of a star
    share it.
    """
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def curve_hash(hashes: UInt64Array, bands: npt.NDArray[np.object_]) -> UInt64Array:
    """(n,) uint64, a hash of each light curve's (id, band), given the `star_hash` (n,) of its id."""
    names, which = np.unique(bands.astype(str), return_inverse=True)
    with np.errstate(over="ignore"):
        return hashes * _INCREMENT + star_hash(names.tolist())[which]


def split_of(hashes: UInt64Array, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> npt.NDArray[np.int8]:
    """(n,) int8: `TRAIN`, `VALIDATION` or `TEST`, by cutting the range of the stars' hashes (n,) in these fractions.

    Adding or removing stars moves no other star, and enlarging the first fraction only moves stars into it.

    Raises:
        UserError: not three fractions, one is negative, or they do not add to one.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise UserError(f"split fractions must be three numbers >= 0 that add to 1, not {tuple(fractions)}")
    # The last cut is left out, because a rounded sum below 1 would leave stars outside every part.
    cuts = np.cumsum(np.asarray(fractions, dtype=np.float64))[:-1]
    if fractions[2] == 0:
        cuts[1] = 1.0
    return np.searchsorted(cuts, uniform(np.asarray(hashes, dtype=np.uint64)), side="right").astype(np.int8)
