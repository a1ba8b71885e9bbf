"""Vectors of light curves, as `astroco embed` writes them, read back with what is known of each star."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from astroco_fast.data.columns import listed
from astroco_fast.data.words import to_objects
from astroco_fast.errors import UserError

Text = NDArray[np.object_]

EMBEDDING = "embedding"
_WORDS = ("id", "band", "label")
_MAGIC = {b"PAR1": "parquet", b"ARRO": "feather"}
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
        files: the files that were read.
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
    files: list[Path]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def simulated(self) -> bool:
        """Whether the light curves are simulated rather than observed."""
        return self.metadata.get(b"simulated") == b"true"


def read_vectors(path: str | Path, most: int | None = None, seed: int = 0) -> Vectors:
    """Read a table of embeddings: a Parquet or Feather file, or a folder of Parquet files of one form.

    Args:
        path: the table, with the columns id and embedding (a list of numbers a row) and any others.
        most: read a random sample of this many rows, where there are more; memory grows with the sample only.
        seed: of the sample, which is the same for the same table, `most` and seed.

    Raises:
        UserError: the table cannot be read, lacks a column, has no row or no finite vector, vectors of several lengths,
            or a light curve (id, band) twice.
    """
    path = Path(path)
    dataset = _open(path)
    try:
        total = dataset.count_rows()
        if not total:
            raise UserError(f"{path}: the table is empty")
        chosen = None
        if most is not None and total > most:
            chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
        table = _read(dataset, [f.name for f in dataset.schema if _is_single(f.type) or f.name == EMBEDDING], chosen)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    matrix = _matrix(table[EMBEDDING], path)
    finite = np.isfinite(matrix).all(1)
    if not finite.all():
        table, matrix = table.filter(pa.array(finite)), matrix[finite]
    if not len(matrix):
        raise UserError(f"{path}: no row has a vector of finite numbers")
    ids, band, label = (_words(table, name) for name in _WORDS)
    _check_once(ids, band, path)
    others = table.drop_columns([EMBEDDING, *(name for name in _WORDS if name in table.column_names)])
    metadata = dict(dataset.schema.metadata or {})
    files = [Path(file) for file in dataset.files]
    left_out = int(np.count_nonzero(~finite))
    return Vectors(str(path), ids, band, label, matrix, others, total, left_out, metadata, files)


def _open(path: Path) -> Any:
    """The Arrow dataset of a file, by its first bytes, or of a folder."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    kind = "parquet"
    if path.is_file():
        with path.open("rb") as file:
            kind = _MAGIC.get(file.read(4), "")
    if not kind:
        raise UserError(f"{path}: neither Parquet nor Feather; give the table that `astroco embed` wrote")
    try:
        dataset = ds.dataset(path, format=kind)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if missing := [name for name in ("id", EMBEDDING) if name not in dataset.schema.names]:
        raise UserError(
            f"{path}: no column {missing[0]!r}; found: {listed(dataset.schema.names)}; "
            "give the table that `astroco embed` wrote"
        )
    return dataset


def _is_single(kind: Any) -> bool:
    """Whether an Arrow type is text, a number or a truth value."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    return pa.types.is_boolean(kind) or any(test(kind) for test in tests)


def _read(dataset: Any, names: list[str], chosen: NDArray[np.int64] | None) -> Any:
    """The rows with these numbers, in rising order; None: all."""
    if chosen is None:
        return dataset.to_table(columns=names)
    parts, first = [], 0
    for batch in dataset.to_batches(columns=names):
        start, stop = np.searchsorted(chosen, [first, first + batch.num_rows])
        if stop > start:
            parts.append(batch.take(pa.array(chosen[start:stop] - first)))
        first += batch.num_rows
    return pa.Table.from_batches(parts, parts[0].schema)


def _matrix(column: Any, path: Path) -> NDArray[np.float32]:
    """(rows, D) float32; a missing vector is NaN."""
    if not (pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)) or not _is_number(
        column.type.value_type
    ):
        raise UserError(f"{path}: column {EMBEDDING!r} holds {column.type}, not lists of numbers")
    column = column.combine_chunks()
    known = column.is_valid().to_numpy(zero_copy_only=False)
    present = column.filter(pa.array(known))
    lengths = np.unique(pc.list_value_length(present).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise UserError(f"{path}: its vectors have {lengths[0]} to {lengths[-1]} numbers; they must have equally many")
    size = int(lengths[0]) if len(lengths) else 0
    if not size:
        raise UserError(f"{path}: its vectors are empty")
    matrix = np.full((len(column), size), np.nan, dtype=np.float32)
    values = present.flatten().to_numpy(zero_copy_only=False)
    matrix[known] = values.reshape(-1, size)
    return matrix


def _is_number(kind: Any) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


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
