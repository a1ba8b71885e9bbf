"""Tables of vectors in each of the formats that `astroco embed` writes, read in bounded memory.

Whatever the format, a table looks as the Parquet file does: columns of single values, a column of lists `embedding`,
and what the file says of itself in the metadata of the Arrow schema.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from astroco_fast.data import hats
from astroco_fast.data.columns import listed
from astroco_fast.data.formats.arrow import ArrowTable
from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.formats.fits import FitsTable
from astroco_fast.data.paths import find_files
from astroco_fast.data.tables import readable, without_views
from astroco_fast.digest import DIGEST, MODEL
from astroco_fast.embedding_formats import KEY, SIMULATED
from astroco_fast.errors import UserError
from astroco_fast.files import require_here

EMBEDDING = "embedding"
WORDS = ("id", "band", "label")
_ROWS = 8192  # of a table at once
_MAGIC = {b"PAR1": ".parquet", b"ARRO": ".feather", b"SIMP": ".fits", b"PK\3\4": ".npz"}
_FROM_EMBED = "give the table that `astroco embed` wrote"


class VectorTable:
    """A table of vectors: a file, or the files of a folder one after the other (.npz is read as a single file only).

    A HATS catalogue is a folder of such files, and says in its properties how the vectors were made.

    Attributes:
        path: the file or the folder.
        schema: the Arrow schema of the first file, with the metadata of the Parquet file that `astroco embed` writes:
            `astroco_fast` (the provenance), `model`, `model_sha256`, `simulated`, and `parts` of the column embedding;
            those that the file does not tell are missing.

    Raises:
        UserError: there is no such file, it is of another kind, cannot be read, or lacks the column id or embedding.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._paths = _paths(path)
        self._first = _open(self._paths[0])
        self.schema = self._first.schema
        if path.is_dir() and (told := hats.told(path, KEY)):
            self.schema = _with_metadata(self.schema, told)
        if twice := [name for name, count in Counter(self.schema.names).items() if count > 1]:
            raise UserError(f"{self._first.path}: has two columns {twice[0]!r}; remove or rename one of them")
        for name in ("id", EMBEDDING):
            if name not in self.schema.names:
                names = listed(self.schema.names)
                raise UserError(f"{self._first.path}: no column {name!r}; found: {names}; {_FROM_EMBED}")

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows in order, a few thousand at a time, of these columns.

        Raises:
            UserError: there is no such column, a file is damaged, or its columns are not those of the first one.
        """
        if missing := [name for name in names if name not in self.schema.names]:
            raise UserError(f"{self._first.path}: no column {missing[0]!r}; {_FROM_EMBED}")
        schema = pa.schema([self.schema.field(name) for name in names])
        for path in self._paths:
            file = self._first if path == self._first.path else _open(path)
            if missing := [name for name in names if name not in file.schema.names]:
                raise UserError(f"{path}: no column {missing[0]!r}, which {self._first.path} has")
            with readable(str(path), Exception):  # of many libraries
                for batch in file.batches(names):
                    yield batch if batch.schema.equals(schema) else batch.cast(schema)


def is_embeddings(path: Path) -> bool:
    """Whether a path is that of a table with a column of vectors, rather than of light curves."""
    try:
        return EMBEDDING in _open(_paths(path)[0]).schema.names
    except (UserError, OSError):
        return False


def plain(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a text, {} if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def matrix_of(column: Any, path: Path, size: int | None = None) -> NDArray[np.float32]:
    """The vectors (rows, D) of a column of lists; a missing one is NaN.

    Args:
        column: an Arrow array.
        path: the table's name in error messages.
        size: D, if it is known.

    Raises:
        UserError: it is another kind of column, or D is 0, another, or differs from row to row.
    """
    kind = column.type
    is_lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UserError(f"{path}: column {EMBEDDING!r} holds {kind}, not lists of numbers")
    known = column.is_valid().to_numpy(zero_copy_only=False)
    present = column.filter(pa.array(known))
    lengths = {*pc.unique(pc.list_value_length(present)).to_pylist(), *([] if size is None else [size])}
    if len(lengths) > 1:
        few, many = min(lengths), max(lengths)
        raise UserError(f"{path}: its vectors have {few} to {many} numbers; they must have equally many")
    width = lengths.pop() if lengths else kind.list_size if pa.types.is_fixed_size_list(kind) else 0
    if not width:
        raise UserError(f"{path}: its vectors are empty")
    matrix = np.full((len(column), width), np.nan, dtype=np.float32)
    matrix[known] = present.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return matrix


def _paths(path: Path) -> list[Path]:
    require_here(path, "vectors are read")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return [file for file, _ in find_files([path])] if path.is_dir() else [path]


class _File(ABC):
    """One file; `schema` as of `VectorTable`."""

    schema: pa.Schema

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows, of these columns."""


def _open(path: Path) -> _File:
    """A file, by its first bytes, or as text by its name."""
    with readable(str(path), Exception):  # of many libraries
        with path.open("rb") as file:
            kind = _MAGIC.get(file.read(4), "")
        if not kind and path.suffix.lower() == ".csv":
            kind = ".csv"
        if kind not in _FILES:
            raise UserError(f"{path}: neither Parquet, Feather, FITS, .npz nor .csv; {_FROM_EMBED}")
        return _FILES[kind](path)


class _Parquet(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.schema = without_views(pq.read_schema(path))

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            yield from map(without_views, file.iter_batches(_ROWS, columns=list(names)))


class _LikeCurves(_File):
    """A file of a format that light curves come in, too, by its reader there."""

    reader: type[FileTable]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._table = self.reader(path, path.parent)
        self.schema = self._table.schema

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for _, batch in self._table.batches(names, _ROWS):
            yield batch


class _Feather(_LikeCurves):
    reader = ArrowTable


class _Csv(_File):
    """Text, whose vectors are the columns embedding_0, embedding_1 ... It says nothing of itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._open({}) as rows:
            found = rows.schema
        numbers = [f"{EMBEDDING}_{i}" for i in range(len(found))]
        self._numbers = list(takewhile(found.names.__contains__, numbers))
        if beyond := [name for name in numbers[len(self._numbers) + 1 :] if name in found.names]:
            raise UserError(
                f"{path}: has a column {beyond[0]!r}, but no {numbers[len(self._numbers)]!r}; {_FROM_EMBED}"
            )
        fields = [
            f.with_type(pa.string()) if f.name in WORDS or pa.types.is_null(f.type) else f
            for f in found
            if f.name not in self._numbers
        ]
        if self._numbers:
            fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), len(self._numbers))))
        self.schema = pa.schema(fields)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        joins = bool(self._numbers) and EMBEDDING in names
        single = [name for name in names if not joins or name != EMBEDDING]
        kinds = {name: self.schema.field(name).type for name in single}
        kinds |= dict.fromkeys(self._numbers if joins else (), pa.float32())
        with self._open(kinds, list(kinds)) as rows:
            for batch in rows:
                columns = {name: batch.column(name) for name in single}
                if joins:
                    values = [batch.column(name).to_numpy(zero_copy_only=False) for name in self._numbers]
                    columns[EMBEDDING] = _lists(np.column_stack(values))
                yield pa.RecordBatch.from_arrays([columns[name] for name in names], names=list(names))

    @contextmanager
    def _open(self, kinds: dict[str, Any], names: Sequence[str] = ()) -> Iterator[Any]:
        options = pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=list(names))
        with pyarrow.csv.open_csv(str(self.path), convert_options=options) as rows:
            yield rows


class _Fits(_LikeCurves):
    """The first binary table; card ASTROCO of the first header is the provenance."""

    reader = FitsTable

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        from astropy.io import fits

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the style of headers
            told = fits.getheader(path).get("ASTROCO", "")
        self.schema = _with_metadata(self.schema, str(told))


class _Npz(_File):
    """Arrays of one length, of which a few rows are read at a time; the array `astroco_fast` is the provenance."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._shapes: dict[str, tuple[int, ...]] = {}
        fields, told = [], ""
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    shape, dtype = self._header(name, file)
                    if not shape:
                        text = np.frombuffer(file.read(dtype.itemsize), dtype)
                        told = str(text[0]) if name == KEY else told
                        continue
                    kind = pa.string() if dtype.kind == "U" else pa.from_numpy_dtype(dtype.newbyteorder("="))
                    fields.append(pa.field(name, kind if len(shape) == 1 else pa.list_(kind, shape[1])))
                    self._shapes[name] = shape
        if len({shape[0] for shape in self._shapes.values()}) > 1:
            raise UserError(f"{path}: its arrays have different lengths; {_FROM_EMBED}")
        self.schema = _with_metadata(pa.schema(fields), told)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            files = {name: stack.enter_context(archive.open(f"{name}.npy")) for name in names}
            dtypes = {name: self._header(name, file)[1] for name, file in files.items()}
            rows = self._shapes[names[0]][0]
            for first in range(0, rows, _ROWS):
                count = min(_ROWS, rows - first)
                columns = []
                for name, file in files.items():
                    shape, dtype = (count, *self._shapes[name][1:]), dtypes[name]
                    values = np.frombuffer(file.read(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
                    values = values.astype(dtype.newbyteorder("="), copy=False)
                    columns.append(_lists(values) if values.ndim == 2 else pa.array(values))
                yield pa.RecordBatch.from_arrays(columns, names=list(names))

    def _header(self, name: str, file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and the type of an array, at whose first value the file then stands."""
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.kind not in "biufU" or len(shape) > 2 or (fortran and len(shape) == 2) or 0 in shape[1:]:
            raise UserError(f"{self.path}: array {name!r} is of type {dtype} and shape {shape}; {_FROM_EMBED}")
        return shape, dtype


_FILES: dict[str, type[_File]] = {
    ".parquet": _Parquet,
    ".feather": _Feather,
    ".fits": _Fits,
    ".npz": _Npz,
    ".csv": _Csv,
}


def _lists(matrix: Any) -> Any:
    """An Arrow array of the rows of a matrix."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def _with_metadata(schema: pa.Schema, provenance: str) -> pa.Schema:
    """The schema with the metadata that `astroco embed` gives a Parquet file, from the provenance as JSON."""
    told = plain(provenance)
    model = told.get("model")
    if not isinstance(model, dict) or not all(isinstance(model.get(key), str) for key in ("name", "sha256")):
        return schema
    metadata = {KEY: provenance, MODEL: model["name"], DIGEST: model["sha256"]}
    if told.get(SIMULATED):
        metadata[SIMULATED] = "true"
    parts = json.dumps(told.get("parts", {}))
    place = schema.get_field_index(EMBEDDING)
    if place >= 0:
        schema = schema.set(place, schema.field(place).with_metadata({"parts": parts}))
    return schema.with_metadata(metadata)
