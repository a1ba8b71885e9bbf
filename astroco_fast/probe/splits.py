"""Splits: which stars train, validate and test a probe. They are drawn by a hash of the ids, or read from a file."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.formats.file import PART_NAMES
from astroco_fast.data.hashing import STREAM_PROBE, hash64, star_hash
from astroco_fast.data.metadata import Text, read_text_table
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file

PARTS = ("train", "validation", "test")
_SHOWN = 12


@dataclass(frozen=True)
class Split:
    """The stars of one size and fold, as sorted ids. No star is in two parts, or twice in one.

    Attributes:
        n: training stars a class; some classes may have fewer.
        fold: the number of the independent draw.
        train, validation, test: the stars of each part.

    Raises:
        UserError: a star is in two parts, which is leakage, or a part is empty.
    """

    n: int
    fold: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in PARTS:
            object.__setattr__(self, part, tuple(sorted({*getattr(self, part)})))
        where = f"n = {self.n}, fold {self.fold}"
        for one, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
            both = sorted({*getattr(self, one)} & {*getattr(self, other)})
            if both:
                more = f" and {len(both) - 1} more" if len(both) > 1 else ""
                raise UserError(
                    f"leakage: {where}: star {both[0]!r}{more} in both {one} and {other}; correct the splits"
                )
        empty = [part for part in PARTS if not getattr(self, part)]
        if empty:
            raise UserError(f"{where}: no star in {', '.join(empty)}; every fold needs {', '.join(PARTS)}")

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Name of each part -> its stars."""
        return {part: getattr(self, part) for part in PARTS}

    @property
    def stars(self) -> set[str]:
        """The stars of all parts."""
        return {*self.train, *self.validation, *self.test}


def draw(
    ids: Text,
    labels: Text,
    sizes: Sequence[int],
    *,
    validation: int = 80,
    test: int = 100,
    folds: int = 3,
    seed: int = 0,
    allow_fewer: bool = False,
) -> list[Split]:
    """Draw stratified splits. Each fold is drawn anew from all stars, by a hash of (seed, fold, id).

    The draw depends neither on the order of the stars nor on other classes and sizes. In a fold, all sizes have the
    same test stars, and the training (validation) stars of a smaller size are among those of a larger one.

    Args:
        ids: (n,) object array of str, each star once.
        labels: (n,) object array of str, the stars' classes.
        sizes: training stars a class; each size is drawn in each fold.
        validation: validation stars a class; at most as many as training stars.
        test: test stars a class.
        folds: number of draws.
        seed: seed of the draws.
        allow_fewer: divide the stars of a class that has too few in the same proportions, with at least one in each
            part, rather than fail.

    Returns:
        A split for each size and fold.

    Raises:
        UserError: there are fewer than two classes, or a class has too few stars (says which, and how many).
    """
    members = {name: np.flatnonzero(labels == name) for name in sorted({*labels})}
    if len(members) < 2:
        raise UserError(f"two classes at least are needed to probe; found: {', '.join(members) or 'none'}")
    counts = {name: len(rows) for name, rows in members.items()}
    for n in sorted(sizes, reverse=True):
        _check_enough(counts, n, min(n, validation), test, allow_fewer)
    hashes = star_hash(ids)
    splits = []
    for n in sizes:
        for fold in range(folds):
            keys = hash64(STREAM_PROBE, seed, fold, hashes)
            parts: dict[str, list[str]] = {part: [] for part in PARTS}
            for rows in members.values():
                order = ids[rows[np.lexsort((ids[rows].astype(str), keys[rows]))]]
                train, held_out, tested = _shares(len(rows), n, min(n, validation), test)
                parts["test"] += list(order[:tested])
                parts["train"] += list(order[tested : tested + train])
                parts["validation"] += list(order[len(order) - held_out :])
            splits.append(Split(n, fold, **{part: tuple(stars) for part, stars in parts.items()}))
    return splits


def _shares(available: int, train: int, validation: int, test: int) -> tuple[int, int, int]:
    """Numbers of training, validation and test stars of a class: as wanted, or else in the same proportions."""
    wanted = train + validation + test
    if available >= wanted:
        return train, validation, test
    validation = max(1, available * validation // wanted)
    test = max(1, min(available * test // wanted, available - validation - 1))
    return available - validation - test, validation, test


def _check_enough(counts: Mapping[str, int], train: int, validation: int, test: int, allow_fewer: bool) -> None:
    needed = len(PARTS) if allow_fewer else train + validation + test
    short = [f"{name} has {count}" for name, count in counts.items() if count < needed]
    if short:
        more = [f"and {len(short) - _SHOWN} more classes"] if len(short) > _SHOWN else []
        why = "one a part" if allow_fewer else f"{train} to train, {validation} to validate, {test} to test"
        hint = "" if allow_fewer else ", ask for fewer by --sizes and --test, or take what there is: --allow_fewer true"
        raise UserError(
            f"too few stars: {', '.join(short[:_SHOWN] + more)}; each class needs {needed} ({why}); choose among the "
            f"classes by --classes{hint}"
        )


def write_splits(path: Path, splits: Sequence[Split], labels: Mapping[str, str]) -> None:
    """Write splits as CSV with the columns n, fold, split, id, label, and a row for each star of each split."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["n", "fold", "split", "id", "label"])
        for split in splits:
            for part, stars in split.parts.items():
                writer.writerows([split.n, split.fold, part, star, labels[star]] for star in stars)


def read_splits(path: str | Path) -> list[Split]:
    """Read splits from a file of `write_splits`, or any table with the columns id, fold, split and, for sizes, n.

    Without n, a split's size is the number of its training stars.

    Raises:
        UserError: a star is in two parts of a fold (leakage), a part is not train, validation (val) or test, or a fold
            is not a number.
    """
    table = read_text_table(path, {"id": None, "fold": None, "split": None}, optional=("n",))
    folds, sizes = _numbers(path, "fold", table["fold"]), _numbers(path, "n", table["n"]) if "n" in table else None
    unknown = sorted({*table["split"]} - {*PART_NAMES})
    if unknown:
        raise UserError(f"{path}: column 'split': {unknown[0]!r} is none of {', '.join(PARTS)}")
    part = np.array([PART_NAMES[name] for name in table["split"]], dtype=object)
    splits = []
    for n in [None] if sizes is None else sorted({*sizes.tolist()}):
        for fold in sorted({*folds.tolist()}):
            rows = (folds == fold) & (True if n is None else sizes == n)
            if rows.any():
                stars = {name: tuple(table["id"][rows & (part == name)]) for name in PARTS}
                splits.append(_named(path, len({*stars["train"]}) if n is None else n, fold, stars))
    if not splits:
        raise UserError(f"{path}: the table is empty")
    return splits


def split_name(name: str) -> str | None:
    """The part of a split that a folder or a word of this name means; None if it means no part."""
    return PART_NAMES.get(name.lower())


def _named(path: str | Path, n: int, fold: int, stars: Mapping[str, tuple[str, ...]]) -> Split:
    try:
        return Split(n, fold, **stars)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _numbers(path: str | Path, column: str, text: Text) -> NDArray[np.int64]:
    try:
        return np.array([int(value) for value in text], dtype=np.int64)
    except ValueError as error:
        raise UserError(f"{path}: column {column!r}: whole numbers are needed ({error})") from error
