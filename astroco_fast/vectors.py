"""Vectors of light curves, as `astroco embed` writes them, read back with what is known of each star."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.data import hats
from astroco_fast.data.words import to_objects
from astroco_fast.embedding_formats import SIMULATED
from astroco_fast.errors import UserError
from astroco_fast.vector_tables import EMBEDDING, WORDS, VectorTable, matrix_of

Text = NDArray[np.object_]

SIMULATED_NOTE = "these light curves are SIMULATED"
_FLAT = 1e-6  # a column whose standard deviation is below this share of its largest value is constant


@dataclass(frozen=True)
class Vectors:
    """Vectors of n light curves.

    Attributes:
        name: the table's name in messages.
        ids, band, label: (n,) object arrays of str; "" where unknown.
        matrix: (n, D) float32, all finite.
        columns: an Arrow table with n rows: the other columns of single values, such as n_points and period.
        total: rows of the table, of which these are all, or a sample.
        not_finite: rows that were read and left out, because a number of their vector is not finite.
        metadata: the schema's metadata.
    """

    name: str
    ids: Text
    band: Text
    label: Text
    matrix: NDArray[np.float32]
    columns: Any
    total: int
    not_finite: int
    metadata: dict[bytes, bytes]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def simulated(self) -> bool:
        """Whether the light curves are simulated rather than observed."""
        return self.metadata.get(SIMULATED.encode()) == b"true"


def read_vectors(path: str | Path, most: int | None = None, seed: int = 0) -> Vectors:
    """Read vectors: a file of a format of `astroco embed`, a folder of such (not of .npz), or a HATS catalogue.

    Args:
        path: the table, with the columns id and embedding (a list of numbers a row) and any others.
        most: read a random sample of this many rows, where there are more; memory grows with the sample only.
        seed: of the sample, which is the same for the same table, `most` and seed.

    Raises:
        UserError: the table cannot be read, lacks a column, has no row or no finite vector, vectors of several lengths,
            or a light curve (id, band) twice.
    """
    path = Path(path)
    found = VectorTable(path)
    total = 0 if most is None else sum(batch.num_rows for batch in found.batches(["id"]))
    chosen = None
    if most is not None and total > most:
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    names = [f.name for f in found.schema if _is_single(f.type) or f.name == EMBEDDING]
    table = _read(found, [name for name in names if not name.startswith(hats.INDEX)], chosen)
    if chosen is None:
        total = table.num_rows
    if not total:
        raise UserError(f"{path}: the table is empty")
    matrix = matrix_of(table[EMBEDDING].combine_chunks(), path)
    finite = np.isfinite(matrix).all(1)
    if not finite.all():
        table, matrix = table.filter(pa.array(finite)), matrix[finite]
    if not len(matrix):
        raise UserError(f"{path}: no row has a vector of finite numbers")
    ids, band, label = (_words(table, name) for name in WORDS)
    _check_once(ids, band, path)
    others = table.drop_columns([EMBEDDING, *(name for name in WORDS if name in table.column_names)])
    metadata = dict(found.schema.metadata or {})
    return Vectors(str(path), ids, band, label, matrix, others, total, int(np.count_nonzero(~finite)), metadata)


def _is_single(kind: Any) -> bool:
    """Whether an Arrow type is text, a number or a truth value."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    return pa.types.is_boolean(kind) or any(test(kind) for test in tests)


def _read(found: VectorTable, names: list[str], chosen: NDArray[np.int64] | None) -> Any:
    """The rows with these numbers, in rising order; None: all."""
    parts, first = [], 0
    for batch in found.batches(names):
        if chosen is None:
            parts.append(batch)
            continue
        start, stop = np.searchsorted(chosen, [first, first + batch.num_rows])
        if stop > start:
            parts.append(batch.take(pa.array(chosen[start:stop] - first)))
        first += batch.num_rows
    return pa.Table.from_batches(parts, pa.schema([found.schema.field(name) for name in names]))


def _words(table: Any, name: str) -> Text:
    if name not in table.column_names:
        return np.full(table.num_rows, "", dtype=object)
    return to_objects(pc.fill_null(pc.cast(table[name], pa.string()), "").combine_chunks())


def _check_once(ids: Text, band: Text, path: Path) -> None:
    seen: set[tuple[str, str]] = set()
    for key in zip(ids, band, strict=True):
        if not key[0]:
            raise UserError(f"{path}: a row has no id; give each an id, or remove it")
        if key in seen:
            where = f"id {key[0]!r}" + (f" in band {key[1]!r}" if key[1] else "")
            raise UserError(
                f"{path}: {where} has two vectors; keep one row for each light curve, as --windows mean gives"
            )
        seen.add(key)


@dataclass(frozen=True)
class Scale:
    """The standardisation of vectors: each column less its mean, over its standard deviation.

    The parts of a vector have units of their own, so that plain distances would be those of the part with the largest
    numbers. A column that does not vary becomes 0.

    Attributes:
        mean: (D,) float32.
        spread: (D,) float32; inf for a column that does not vary.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def of(cls, matrix: NDArray[np.float32]) -> Scale:
        """The scale of vectors (n, D)."""
        mean, spread = matrix.mean(0, dtype=np.float64), matrix.std(0, dtype=np.float64)
        flat = spread <= _FLAT * np.abs(matrix).max(0)
        return cls(mean.astype(np.float32), np.where(flat, np.inf, spread).astype(np.float32))

    def __call__(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised vectors (n, D) float32, contiguous."""
        return np.ascontiguousarray((matrix - self.mean) / self.spread, dtype=np.float32)
