"""Checks of what comes twice: light curves of one (id, band), stars with two labels, stars in several tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch, two_labels
from astroco_fast.data.hashing import curve_hash, star_hash
from astroco_fast.errors import UserError

# Keys in rising order, and the number of each.
Run = tuple[NDArray[np.uint64], NDArray[np.int32]]


class Seen:
    """The light curves seen so far, as hashes, and their labels, as numbers; about 24 bytes each."""

    def __init__(self) -> None:
        self._curves = _Keys()
        self._labels = _Keys()
        self._words: dict[str, int] = {"": 0}

    def check(self, batch: CurveBatch) -> NDArray[np.uint64]:
        """Add the light curves of a batch.

        Returns:
            (n,) the `star_hash` of their ids.

        Raises:
            UserError: an (id, band) occurred before, or a star has another label than before.
        """
        hashes = star_hash(batch.ids)
        twice = self._curves.add(curve_hash(hashes, batch.band))
        if twice is not None:
            raise UserError(
                f"{batch.source or 'light curves'}: id {batch.ids[twice[0]]!r} has two light curves in band "
                f"{batch.band[twice[0]]!r}; a light curve is one (id, band): name the band's column with "
                "--columns.band, or remove or merge one of them"
            )
        labelled = np.flatnonzero(batch.label != "")
        if not len(labelled):
            return hashes
        other = self._labels.add(hashes[labelled], self._numbers(batch.label[labelled]))
        if other is not None:
            i, number = int(labelled[other[0]]), other[1]
            raise UserError(two_labels(batch.source, batch.ids[i], batch.label[i], list(self._words)[number]))
        return hashes

    def add_rows(self, rows: Any) -> None:
        """Add light curves that were checked before, given as an Arrow table with the columns of `curves.parquet`."""
        hashes = rows["star_hash"].to_numpy()
        band, label = (np.asarray(rows[name].to_numpy(), dtype=object) for name in ("band", "label"))
        self._curves.add(curve_hash(hashes, band))
        self._labels.add(hashes[label != ""], self._numbers(label[label != ""]))

    def _numbers(self, labels: NDArray[np.object_]) -> NDArray[np.int32]:
        names, which = np.unique(labels.astype(str), return_inverse=True)
        known = [self._words.setdefault(name, len(self._words)) for name in names.tolist()]
        return np.array(known, dtype=np.int32)[which]


class SharedStars:
    """The stars of each of several tables, as hashes; about 12 bytes each.

    Attributes:
        shared: a star that is in two of them; None: there is none.
    """

    def __init__(self) -> None:
        self.shared: str | None = None
        self._stars = _Keys()

    def add(self, ids: NDArray[np.object_], table: int) -> None:
        """Add ids of the table of this number, until a star is in two of them."""
        if self.shared is None:
            names = np.array(list(dict.fromkeys(ids)), dtype=object)
            other = self._stars.add(star_hash(names), np.full(len(names), table, dtype=np.int32))
            self.shared = None if other is None else names[other[0]]


class _Keys:
    """A set of 64-bit keys, each with a number, in sorted runs. A run is merged with the one before when it is as long.

    Without numbers no key may come twice. With numbers a key may come again with the same number.
    """

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def add(self, keys: NDArray[np.uint64], numbers: NDArray[np.int32] | None = None) -> tuple[int, int] | None:
        """Add keys (n,). Returns the position of one that may not come, and the number it came with before; or None."""
        order = np.argsort(keys, kind="stable")
        run = keys[order]
        values = np.zeros(len(keys), dtype=np.int32) if numbers is None else numbers[order]
        before = np.full(len(keys), -1, dtype=np.int64)
        repeated = run[1:] == run[:-1]
        before[1:][repeated] = values[:-1][repeated]
        for other, other_values in self._runs:
            at = np.minimum(np.searchsorted(other, run), len(other) - 1)
            before = np.where(other[at] == run, other_values[at], before)
        wrong = before >= 0 if numbers is None else (before >= 0) & (before != values)
        if wrong.any():
            i = int(np.argmax(wrong))
            return int(order[i]), int(before[i])
        fresh = before < 0
        if fresh.any():
            self._runs.append((run[fresh], values[fresh]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= len(self._runs[-1][0]):
            self._runs.append(_merged(self._runs.pop(), self._runs.pop()))
        return None


def _merged(one: Run, other: Run) -> Run:
    keys, values = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.argsort(keys, kind="stable")
    return keys[order], values[order]
