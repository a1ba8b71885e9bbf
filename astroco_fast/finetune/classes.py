"""The classes of a store's light curves, and a loss that weights all classes alike."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from astroco_fast.data.columns import Columns, listed
from astroco_fast.data.hashing import TEST, TRAIN, VALIDATION
from astroco_fast.data.metadata import read_text_table
from astroco_fast.data.store import Store
from astroco_fast.data.training import EMPTY, DeviceBatch
from astroco_fast.errors import UserError
from astroco_fast.pretrain.objective import SumIndex

NONE = -1  # the class of a light curve without one
LOSS, WEIGHT, RIGHT, WINDOWS = range(4)  # places in a vector of sums


@dataclass(frozen=True)
class Classes:
    """The classes of n light curves.

    Attributes:
        names: the C classes, sorted.
        of_curve: (n,) int64, places in `names`; `NONE` for light curves that are not used.
        copies: how many were left out because they equal an earlier one point by point.
        parts: (n,) int8, `TRAIN`, `VALIDATION` or `TEST`.
    """

    names: tuple[str, ...]
    of_curve: NDArray[np.int64]
    copies: int
    parts: NDArray[np.int8]

    @property
    def used(self) -> NDArray[np.bool_]:
        """(n,) whether each light curve is used."""
        return self.of_curve != NONE


def classes_of(store: Store, labels: str | None, wanted: Sequence[str] | None, columns: Columns) -> Classes:
    """The classes of a store's light curves.

    Args:
        store: the light curves.
        labels: a table with the columns id and label, which replace the store's own.
        wanted: use only these classes.
        columns: names of the table's columns.

    Raises:
        UserError: there are no labels, fewer than two classes, or a class of fewer than three stars.
    """
    texts = [str(text) for text in store.labels] if labels is None else _labels_of(store, labels, columns)
    found = sorted({*texts} - {""})
    if unknown := sorted({*(wanted or ())} - {*found}):
        raise UserError(f"no light curve of class {unknown[0]!r}; found: {listed(found) or 'no labels'}")
    names = tuple(sorted(wanted)) if wanted else tuple(found)
    if len(names) < 2:
        raise UserError(
            f"{store.path}: two classes at least are needed; found: {listed(found) or 'no labels'}; name the column by "
            "--columns.label, or give a table with --labels FILE"
        )
    number = {name: i for i, name in enumerate(names)}
    of_curve = np.array([number.get(text, NONE) for text in texts], dtype=np.int64)
    copies = _without_copies(store, of_curve)
    return Classes(names, of_curve, copies, _parts(store, of_curve, names))


def _parts(store: Store, of_curve: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int8]:
    """The parts (n,) of light curves: of each class a tenth of the stars, at least one, tests, and a tenth validates.

    Which stars, follows from the hashes of their ids; all light curves of a star are in one part.
    """
    parts = np.full(len(of_curve), TRAIN, dtype=np.int8)
    used = np.flatnonzero(of_curve != NONE)
    stars, first, star_of = np.unique(store.star_hash[used], return_index=True, return_inverse=True)
    of_star = of_curve[used][first]
    part_of = np.full(len(stars), TRAIN, dtype=np.int8)
    for number, name in enumerate(names):
        members = np.flatnonzero(of_star == number)  # in the order of their hashes
        if len(members) < 3:
            raise UserError(
                f"{store.path}: class {name!r} has {len(members)} star(s); to train, validate and test takes three at "
                "least: give more, or leave the class out by --classes"
            )
        tenth = max(1, len(members) // 10)
        part_of[members[:tenth]], part_of[members[tenth : 2 * tenth]] = TEST, VALIDATION
    parts[used] = part_of[star_of]
    return parts


def _labels_of(store: Store, path: str, columns: Columns) -> list[str]:
    table = read_text_table(path, {"id": columns.id, "label": columns.label})
    labels: dict[str, str] = {}
    for star, label in zip(table["id"], table["label"], strict=True):
        if label and labels.setdefault(star, label) != label:
            raise UserError(f"{path}: star {star!r} has two labels, {labels[star]!r} and {label!r}; keep one")
    found = [labels.get(star, "") for star in store.ids]
    if not any(found):
        raise UserError(f"{path}: none of its stars ({listed(list(labels)[:3])}) has a light curve; compare the ids")
    return found


def _without_copies(store: Store, of_curve: NDArray[np.int64]) -> int:
    """Take the class from light curves that equal an earlier one, which could else be in two parts; count them."""
    first: set[bytes] = set()
    copies = 0
    for curve in np.flatnonzero(of_curve != NONE):
        points = slice(store.offsets[curve], store.offsets[curve + 1])
        digest = hashlib.blake2b(digest_size=16)
        for values in (store.time, store.mag, store.err):
            digest.update(np.ascontiguousarray(values[points]).tobytes())
        if digest.digest() in first:
            of_curve[curve] = NONE
            copies += 1
        first.add(digest.digest())
    return copies


class BalancedCrossEntropy:
    """The mean cross-entropy of windows, weighted so that each class has the same share of the training windows.

    loss = sum_i w_i CE_i / sum_i w_i, with w = N / (C n_c) for a class of n_c of the N training windows.
    """

    def __init__(self, of_window: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Keep the classes.

        Args:
            of_window: (W,) the class of each window of the table.
            weights: (C,) of the classes.
        """
        self._of_window = torch.from_numpy(of_window)
        self._weights = torch.from_numpy(weights).float()
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def part(self, output: Any, batch: DeviceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """See `astroco_fast.pretrain.objective.Objective`."""
        logits, index = output.logits, batch.index
        of_window, weights = self._on(index.device)
        some = index != EMPTY
        true = torch.where(some, of_window[index.clamp_min(0)], 0)  # window 0 may be of a star without a class
        some, true, weight = (x.to(logits.device) for x in (some, true, weights[true] * some))
        each = cross_entropy(logits, true, reduction="none")
        value = (weight * each).sum()
        sums = torch.zeros(SumIndex.SIZE, dtype=torch.float64, device=logits.device)
        sums[LOSS], sums[WEIGHT] = value.detach().double(), weight.double().sum()
        sums[RIGHT], sums[WINDOWS] = ((logits.argmax(1) == true) & some).sum(), some.sum()
        return value, sums, torch.where(some, each.detach(), torch.zeros_like(each))[:, None]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The classes of windows and their weights: on the host, or for graphs on their device."""
        if device not in self._placed:
            self._placed[device] = self._of_window.to(device), self._weights.to(device)
        return self._placed[device]

    def loss_and_factor(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """See `astroco_fast.pretrain.objective.Objective`."""
        weight = totals[WEIGHT].clamp_min(1e-30)
        return totals[LOSS] / weight, 1 / weight

    def touch(self, output: Any) -> Tensor:
        """See `astroco_fast.pretrain.objective.Objective`."""
        total: Tensor = output.logits.sum()
        return total


def balanced_weights(of_window: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """The weights (C,) of the classes of windows (n,)."""
    counts = np.bincount(of_window, minlength=classes)
    return len(of_window) / (classes * np.maximum(counts, 1))
