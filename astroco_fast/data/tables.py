"""Tables of every supported kind as streams of Arrow record batches, in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from astroco_fast.errors import MissingExtraError, UserError

# Text is decoded in blocks of this many bytes, Parquet columns are read in pieces of this many.
_CSV_BLOCK = 8 << 20
_PARQUET_BUFFER = 1 << 20
_BYTES_PER_CSV_ROW = 30

_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_PARQUET = (".parquet", ".pq")
_FITS = (".fits", ".fit", ".fits.gz")
SUFFIXES = _CSV + _PARQUET + _FITS

# Of a damaged table astropy only warns, or raises errors of many kinds.
_FITS_DAMAGE = "File may have been truncated|Error validating header"

# The column that names the survey, and how a simulated one is called there and in a file's metadata.
SURVEY, _SIMULATED = "survey", "simulated"
_SURVEY_ROWS = 1_000_000


class Table(Protocol):
    """A table that can be read in pieces.

    `name` is for messages. `schema` is its Arrow schema; types of text files are guesses. `rows` is its number of rows,
    or an estimate of it.
    """

    name: str
    schema: Any
    rows: int

    def points_per_row(self, column: str) -> float:
        """How many values a row holds in a list column, on average (1 in a plain column)."""

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        """Pieces of about `rows` rows, the first `skip` pieces left out: (first row, record batch of these columns)."""

    def pieces(self, rows: int) -> int | None:
        """How many pieces `batches` makes of the table; None where only reading it tells."""


def open_table(path: Path) -> Table:
    """Open a file by its suffix.

    Raises:
        UserError: missing, empty, unreadable, or of no supported kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if name.endswith(_PARQUET):
        return ParquetTable(path)
    if name.endswith(_CSV):
        return CsvTable(path)
    if name.endswith(_FITS):
        return FitsTable(path)
    raise UserError(f"{path}: unknown kind of file; light curves are read from {', '.join(SUFFIXES)}")


def is_simulated(table: Table) -> bool:
    """Whether a table says that its light curves are simulated, as those of `astroco simulate` do.

    It says so in its metadata (`simulated: true`) or, where a program has lost these, in any row of its column `survey`
    ("simulated").
    """
    if (table.schema.metadata or {}).get(_SIMULATED.encode()) == b"true":
        return True
    if SURVEY not in table.schema.names:
        return False
    columns = (batch.column(0) for _, batch in table.batches([SURVEY], _SURVEY_ROWS))
    return any(pc.any(pc.equal(_as_text(column), _SIMULATED)).as_py() for column in columns)


def _as_text(column: Any) -> Any:
    """A column of text as it is, of anything else as no text at all."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return column.cast(pa.string()) if is_text else pa.nulls(len(column), pa.string())


@contextmanager
def _readable(name: str, *complaints: type[Exception]) -> Iterator[None]:
    """Tell the reader's own complaints, of these kinds besides the usual ones, in one line that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, *complaints) as error:
        raise UserError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error


class ParquetTable:
    """A Parquet file; only the columns asked for are read, and never more than a part of a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        # The file is opened again to read it: a catalogue may have more files than a process can hold open.
        with _readable(self.name), pyarrow.parquet.ParquetFile(path) as file:
            self.schema = file.schema_arrow
            metadata = file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self.rows = metadata.num_rows
        self._group_rows = [group.num_rows for group in groups]
        self._values: dict[str, int] = {}
        for i in range(metadata.num_columns):
            top = metadata.schema.column(i).path.split(".", 1)[0]
            self._values.setdefault(top, sum(group.column(i).num_values for group in groups))

    def points_per_row(self, column: str) -> float:
        return self._values.get(column, self.rows) / max(self.rows, 1)

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        first = 0
        for group, in_group in enumerate(self._group_rows):
            pieces = -(-in_group // rows)
            if skip >= pieces:
                skip -= pieces
            else:
                for start, batch in enumerate(self._group(group, names, rows)):
                    if start >= skip:
                        yield first + start * rows, batch
                skip = 0
            first += in_group

    def pieces(self, rows: int) -> int | None:
        return sum(-(-in_group // rows) for in_group in self._group_rows)

    def _group(self, group: int, names: Sequence[str], rows: int) -> Iterator[Any]:
        with (
            _readable(self.name),
            pyarrow.parquet.ParquetFile(self._path, buffer_size=_PARQUET_BUFFER) as file,
        ):
            yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=list(names))


class CsvTable:
    """A comma- or tab-separated file, plain or gzipped, with one header line.

    Every column is read as text, so that a bad value can be named by row; see `values.to_numbers`.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._delimiter = "\t" if ".tsv" in path.name.lower() else ","
        with _readable(self.name):
            self.schema = self._open(1 << 20, pyarrow.csv.ConvertOptions()).schema
        packed = path.name.lower().endswith(".gz")
        self.rows = path.stat().st_size * (4 if packed else 1) // _BYTES_PER_CSV_ROW

    def points_per_row(self, column: str) -> float:
        return 1.0

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        types = dict.fromkeys(names, pa.string())
        options = pyarrow.csv.ConvertOptions(include_columns=list(names), column_types=types)
        first = 0
        with _readable(self.name):
            for index, batch in enumerate(self._open(_CSV_BLOCK, options)):
                if index >= skip:
                    yield first, batch
                first += batch.num_rows

    def pieces(self, rows: int) -> int | None:
        return None

    def _open(self, block: int, options: Any) -> Any:
        return pyarrow.csv.open_csv(
            str(self._path),
            read_options=pyarrow.csv.ReadOptions(block_size=block),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter),
            convert_options=options,
        )


class FitsTable:
    """The first table of a FITS file; columns may hold one number, text, or an array a row.

    Raises:
        MissingExtraError: astropy is not installed.
        UserError: not a FITS file, or no table in it.
    """

    def __init__(self, path: Path) -> None:
        try:
            from astropy.io import fits
        except ImportError as error:
            raise MissingExtraError("astropy", "fits", f"reading {path}") from error
        self.name = str(path)
        with _readable(self.name, Exception), warnings.catch_warnings():
            warnings.filterwarnings("error", message=_FITS_DAMAGE)
            # The file stays open: rows are mapped into memory and read when they are needed.
            self._file = fits.open(path, memmap=True)
            tables = [hdu for hdu in self._file if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            data = [hdu.data for hdu in tables[:1]]
        if not data:
            raise UserError(f"{path}: there is no table in this FITS file")
        self._data = data[0]
        self._names = list(tables[0].columns.names)
        self.rows = len(self._data)
        self.schema = self._slice(self._names, 0, 1).schema

    def points_per_row(self, column: str) -> float:
        sample = self._data[column][:1000]
        return (
            float(np.mean([np.size(cell) for cell in sample])) if len(sample) and sample.dtype.kind not in "SU" else 1.0
        )

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        for first in range(skip * rows, self.rows, rows):
            yield first, self._slice(names, first, first + rows)

    def pieces(self, rows: int) -> int | None:
        return -(-self.rows // rows)

    def _slice(self, names: Sequence[str], first: int, last: int) -> Any:
        with _readable(self.name, Exception):
            arrays = [arrow_array(self._data[name][first:last]) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=list(names))


class MemoryTable:
    """A table that is in memory already."""

    def __init__(self, table: Any, name: str) -> None:
        self.name = name
        self.schema = table.schema
        self.rows = table.num_rows
        self._table = table

    def points_per_row(self, column: str) -> float:
        kind = self.schema.field(column).type
        cells = self._table[column]
        if pa.types.is_struct(kind):
            cells = pc.struct_field(cells, [0])
        if not is_list(cells.type) or not self.rows:
            return 1.0
        return (pc.sum(pc.list_value_length(cells)).as_py() or 0) / self.rows

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        chosen = self._table.select(list(names))
        for first in range(skip * rows, self.rows, rows):
            arrays = [pa.concat_arrays(column.chunks) for column in chosen.slice(first, rows).columns]
            yield first, pa.RecordBatch.from_arrays(arrays, names=chosen.schema.names)

    def pieces(self, rows: int) -> int | None:
        return -(-self.rows // rows)


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any sort."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def arrow_array(values: Any) -> Any:
    """An Arrow array of a numpy column: of numbers, of text, or of one array a row."""
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(np.asarray(values.data), mask=np.ma.getmaskarray(values))
    array = np.asarray(values)
    if array.dtype.kind not in "OSU" and array.ndim <= 2:
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        return pa.array(native if native.ndim == 1 else list(native))
    if array.dtype.kind == "S":
        return pa.array(np.char.decode(array, "utf-8").tolist(), type=pa.string())
    if array.dtype.kind == "U":
        return pa.array(array.tolist(), type=pa.string())
    cells = [np.asarray(c, dtype=c.dtype.newbyteorder("=")) if isinstance(c, np.ndarray) else c for c in array]
    return pa.array(cells)
