"""How odd vectors are among others, by two measures that share no assumption.

- An isolation forest (Liu, Ting and Zhou 2008, ICDM, 413): how few random cuts part a star from the others.
- The distance to the k-th nearest star of a reference sample (Ramaswamy, Rastogi and Shim 2000, SIGMOD, 427; with a
  sample: Sugiyama and Borgwardt 2013, NIPS). Surveys with no more stars than the sample are compared with all.

Each is computed for several seeds: a star is odd if the seeds and the two measures agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astroco_fast.errors import MissingExtraError
from astroco_fast.vector_index import require_faiss
from astroco_fast.vectors import Scale

REFERENCE = 20_000  # stars of the reference sample
_TREES = 200
_AT_ONCE = 65_536  # vectors scored at a time

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Oddity:
    """How odd n stars are, for S seeds; higher is odder.

    Attributes:
        isolation: (S, n) the isolation forest's score, in (0, 1).
        distance: (S, n) the distance to the k-th nearest star of the reference sample.
    """

    isolation: Float64Array
    distance: Float64Array

    @property
    def score(self) -> Float64Array:
        """(n,) the mean over measures and seeds of a star's place in their order, from 0 to 1, the oddest."""
        return np.mean([ranks(values) for values in (*self.isolation, *self.distance)], axis=0)

    def agreement(self, top: int) -> list[tuple[str, float, float]]:
        """How far the seeds, and the two measures, agree.

        Returns:
            What is compared, Spearman's rank correlation over all stars, and the share of the `top` oddest of one that
            are also among those of the other; of pairs of seeds the lowest of each.
        """
        found = []
        for name, values in (
            ("isolation forest, between seeds", self.isolation),
            ("distance, between seeds", self.distance),
        ):
            pairs = [_compare(values[i], values[j], top) for i in range(len(values)) for j in range(i)]
            if pairs:
                found.append((name, min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)))
        both = _compare(self.isolation.mean(0), self.distance.mean(0), top)
        return [*found, ("isolation forest and distance, means over seeds", *both)]


def oddity(matrix: NDArray[np.float32], k: int, seeds: Sequence[int]) -> Oddity:
    """Score vectors (n, D), n at least 2, by both measures.

    Raises:
        MissingExtraError: scikit-learn or faiss is not installed.
    """
    standardised = Scale.of(matrix)(matrix)
    isolation = np.array([_isolation(standardised, seed) for seed in seeds])
    if len(matrix) <= REFERENCE:  # every seed would compare with the same stars
        return Oddity(isolation, np.repeat(_distance(standardised, k, seeds[0])[None], len(seeds), axis=0))
    return Oddity(isolation, np.array([_distance(standardised, k, seed) for seed in seeds]))


def _isolation(matrix: NDArray[np.float32], seed: int) -> Float64Array:
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError:
        raise MissingExtraError("scikit-learn", "explore", "the isolation forest") from None
    forest = IsolationForest(n_estimators=_TREES, random_state=seed).fit(matrix)
    parts = [-forest.score_samples(matrix[first : first + _AT_ONCE]) for first in range(0, len(matrix), _AT_ONCE)]
    return np.concatenate(parts)


def _distance(matrix: NDArray[np.float32], k: int, seed: int) -> Float64Array:
    """(n,) the distance to the k-th nearest star of the sample other than the star itself."""
    n = len(matrix)
    size = min(n, REFERENCE)
    sample = np.sort(np.random.default_rng(seed).choice(n, size, replace=False))
    index = require_faiss().IndexFlatL2(matrix.shape[1])
    index.add(matrix[sample])
    k = min(k, size - 1)
    squares, _ = index.search(matrix, k + 1)
    # A star of the sample finds itself first, at the distance 0.
    return np.sqrt(np.maximum(np.where(np.isin(np.arange(n), sample), squares[:, k], squares[:, k - 1]), 0)).astype(
        float
    )


def ranks(values: Float64Array) -> Float64Array:
    """(n,) each value's place in their order, from 0 to 1; equal values share the mean of their places."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray(((2 * last - count - 1) / 2)[place] / max(len(values) - 1, 1))


def _compare(one: Float64Array, other: Float64Array, top: int) -> tuple[float, float]:
    first, second = ranks(one) - 0.5, ranks(other) - 0.5
    size = np.sqrt((first @ first) * (second @ second))
    top = min(top, len(one))
    shared = np.intersect1d(np.argsort(-one, kind="stable")[:top], np.argsort(-other, kind="stable")[:top])
    return float(first @ second / size) if size else 1.0, len(shared) / top
