"""Tables of light curves in files, read as streams of Arrow record batches in bounded memory.

To read another kind of file: write a subclass of `FileTable` (here, or in a module of its own that this one imports),
add its suffixes to `FORMATS`, and add a writer of such files to `WRITERS` in tests/test_formats.py, which tries the
whole way from the file to embeddings. No other code in the package knows what kinds of files there are.

A table may have one row a point (columns of numbers) or one row a light curve (columns of lists); which columns hold
the times, magnitudes and so on is found later, by their names (`columns`).
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from astroco_fast.data import fits_columns, tfrecord
from astroco_fast.data.curves import MOST_POINTS, too_long
from astroco_fast.data.units import text, unit_of, with_stated_units, with_unit
from astroco_fast.errors import MissingExtraError, UserError

_CSV_BLOCK = 8 << 20  # bytes of a CSV file that are decoded at a time
_PARQUET_BUFFER = 1 << 20  # bytes of a Parquet column that are read at a time
_CSV_HEAD = 4096  # bytes by which text is told from other encodings
_BYTES_PER_CSV_ROW = 30  # a guess, from which the number of rows is estimated

# Astropy warns of a damaged table, or raises errors of many kinds.
_FITS_DAMAGE = "File may have been truncated|Error validating header"

_NO_FOLDER_VALUE = "__HIVE_DEFAULT_PARTITION__"  # in a folder's name: no value

# A table says that its light curves are simulated in a column of this name, or in its metadata.
SURVEY, _SIMULATED = "survey", "simulated"
_SURVEY_ROWS = 1_000_000

# A field's metadata say by this name why its column cannot be read.
PROBLEM = b"problem"


@dataclass(frozen=True)
class Field:
    """Where the values of one role stand: in a column, or in one field of a nested column.

    Attributes:
        name: the user's name for the place: `column` or `column.field`.
        column: the table's column.
        sub: the field of a column of structs or of lists of structs; None for a plain column.
        listed: whether a row holds a list of values.
        kind: the Arrow type of the values.
        unit: their unit, as the table states it, or None.
        mask: the table's column that is true where a value is missing, or None.
    """

    name: str
    column: str
    sub: str | None
    listed: bool
    kind: Any
    unit: str | None = None
    mask: str | None = None


class Table(ABC):
    """A table that is read in pieces.

    Attributes:
        name: the input's name in error messages.
        schema: the Arrow schema of all columns. The types of a text file's columns are guesses.
        rows: the number of rows, or an estimate of it.
        star: the id of the only star, for a table that needs no id column; None: an id column is needed.
        folders: column -> the value of all rows, for columns that folders' names give (band=r/part-0.parquet).
        remarks: what the user should know of the table.
    """

    name: str
    schema: Any
    rows: int
    star: str | None = None
    folders: Mapping[str, str] = MappingProxyType({})
    remarks: Sequence[str] = ()

    @abstractmethod
    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        """Read some columns.

        Args:
            names: columns of the schema.
            rows: about how many rows a piece has.
            skip: leave out this many pieces at the start.

        Yields:
            The number of a piece's first row, from 0, and the piece as an Arrow record batch of these columns.

        Raises:
            UserError: the file is damaged.
        """

    def pieces(self, rows: int) -> int | None:
        """The number of pieces that `batches` yields; None if only reading the table tells."""
        return -(-self.rows // rows)

    def points_per_row(self, column: str) -> float:
        """The mean number of values in a row of a list column; 1 for a plain column."""
        return 1.0

    def fields(self) -> dict[str, Field]:
        """The place of the values of every name that a user may give for a column.

        Fields of a nested column are known as `column.field`, and as `field` where no other column has that name.
        """
        # Astropy writes a masked column to Parquet as two, `name` and `name.mask`.
        masks = {*self.schema.names} if b"table_meta_yaml" in (self.schema.metadata or {}) else set()
        named = {}
        for f in self.schema:
            mask = f"{f.name}.mask" if f"{f.name}.mask" in masks else None
            named[f.name] = Field(f.name, f.name, None, is_list(f.type), _value_type(f.type), unit_of(f), mask)
        short: dict[str, list[Field]] = {}
        for column in self.schema:
            in_list = is_list(column.type)
            structs = _value_type(column.type)
            if pa.types.is_struct(structs):
                for sub in structs:
                    name, in_lists = f"{column.name}.{sub.name}", in_list or is_list(sub.type)
                    named[name] = Field(name, column.name, sub.name, in_lists, _value_type(sub.type), unit_of(sub))
                    short.setdefault(sub.name, []).append(named[name])
        for name, candidates in short.items():
            if len(candidates) == 1:
                named.setdefault(name, candidates[0])
        return named


class FileTable(Table):
    """A table in a file.

    Args:
        path: the file.
        root: the folder that the user named, in which the file was found; the file's own folder if the user named the
            file.

    Attributes:
        may_be_empty: whether a file of no bytes is a table without rows, rather than an error.
        hides_other_tables: whether other kinds of tables in the same folder are ignored.
    """

    may_be_empty = False
    hides_other_tables = False

    def __init__(self, path: Path, root: Path) -> None:
        self.name = str(path)
        self.folders = _folder_values(path)
        self._path = path


def _folder_values(path: Path) -> dict[str, str]:
    """The columns that the folders above a file give, as programs of the Hadoop world write them: key=value, quoted."""
    pairs = [part.split("=", 1) for part in path.absolute().parent.parts if "=" in part]
    values = {unquote(key): unquote(value) for key, value in pairs}
    return {key: "" if value == _NO_FOLDER_VALUE else value for key, value in values.items()}


class ParquetTable(FileTable):
    """A Parquet file. Only the columns asked for are read, a part of a row group at a time."""

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        # The file is opened again for reading: a catalogue may have more files than a process can hold open. It is
        # opened once for all row groups, because opening takes time in proportion to their number.
        with _readable(self.name), pyarrow.parquet.ParquetFile(path) as file:
            self.schema = with_stated_units(file.schema_arrow)
            metadata = file.metadata
        self.rows = metadata.num_rows
        self._group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        first = 0
        with (
            _readable(self.name),
            pyarrow.parquet.ParquetFile(self._path, buffer_size=_PARQUET_BUFFER) as file,
        ):
            for groups in self._together(rows):
                in_groups = sum(self._group_rows[group] for group in groups)
                pieces = -(-in_groups // rows)
                if skip >= pieces:
                    skip -= pieces
                else:
                    read = file.iter_batches(batch_size=rows, row_groups=groups, columns=list(names))
                    for start, batch in enumerate(read):
                        if start >= skip:
                            yield first + start * rows, batch
                    skip = 0
                first += in_groups

    def pieces(self, rows: int) -> int:
        return sum(-(-sum(self._group_rows[i] for i in groups) // rows) for groups in self._together(rows))

    def points_per_row(self, column: str) -> float:
        leaf, path = next((i, p) for i, p in enumerate(self._leaves) if f"{p}.".startswith(f"{column}."))
        with _readable(self.name), pyarrow.parquet.ParquetFile(self._path) as file:
            # Decodes the column in little memory, and finds damage, of which the metadata below would end the process.
            file.scan_contents(columns=[path])
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            mean = sum(group.column(leaf).num_values for group in groups) / max(self.rows, 1)
        if mean > MOST_POINTS:
            raise too_long(self.name, None)
        return mean

    def _together(self, rows: int) -> Iterator[list[int]]:
        """The row groups, in runs: small ones are read together, as long as they make one piece."""
        run: list[int] = []
        in_run = 0
        for group, in_group in enumerate(self._group_rows):
            if run and in_run + in_group > rows:
                yield run
                run, in_run = [], 0
            run.append(group)
            in_run += in_group
        if run:
            yield run


class CsvTable(FileTable):
    """A comma- or tab-separated file, plain or gzipped, with one header line.

    Every column is read as text, so that a value that is not a number can be named by its row.
    """

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        self._delimiter = "\t" if ".tsv" in path.name.lower() else ","
        packed = path.name.lower().endswith(".gz")
        with self._utf8():
            with gzip.open(path) if packed else path.open("rb") as file:
                if b"\0" in file.read(_CSV_HEAD):  # every other byte of UTF-16
                    raise UnicodeError("zeros between the characters")
            self.schema = self._open(1 << 20, pyarrow.csv.ConvertOptions()).schema
            self.schema.names  # noqa: B018 - decodes them
        self.rows = path.stat().st_size * (4 if packed else 1) // _BYTES_PER_CSV_ROW

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        types = dict.fromkeys(names, pa.string())
        options = pyarrow.csv.ConvertOptions(include_columns=list(names), column_types=types)
        first = 0
        with self._utf8():
            for index, batch in enumerate(self._open(_CSV_BLOCK, options)):
                if index >= skip:
                    yield first, batch
                first += batch.num_rows

    def pieces(self, rows: int) -> None:
        return None

    @contextmanager
    def _utf8(self) -> Iterator[None]:
        """Turn errors of reading into one line, which says what to do with text that is not UTF-8."""
        with _readable(self.name, EOFError, zlib.error):
            try:
                yield
            except (UnicodeError, pa.ArrowInvalid) as error:
                if not isinstance(error, UnicodeError) and "UTF8" not in str(error):
                    raise
                raise UserError(
                    f"{self.name}: its text is not UTF-8; convert it, by `iconv -f LATIN1 -t UTF-8`, or `-f UTF-16`, "
                    "whichever it is"
                ) from error

    def _open(self, block: int, options: Any) -> Any:
        return pyarrow.csv.open_csv(
            str(self._path),
            read_options=pyarrow.csv.ReadOptions(block_size=block),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter),
            convert_options=options,
        )


class FitsTable(FileTable):
    """The first table of a FITS file; others are remarked on. A column may hold one number, text, or an array a row.

    Raises:
        MissingExtraError: astropy is not installed.
        UserError: the file is not FITS, or has no table.
    """

    def __init__(self, path: Path, root: Path) -> None:
        try:
            from astropy.io import fits
            from astropy.utils.exceptions import AstropyWarning
        except ImportError as error:
            raise MissingExtraError("astropy", "fits", f"reading {path}") from error
        super().__init__(path, root)
        with _readable(self.name, Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # on the style of headers
            warnings.filterwarnings("error", message=_FITS_DAMAGE)
            # The file stays open: rows are mapped into memory and read when they are needed.
            self._file = fits.open(path, memmap=True)
            tables = [hdu for hdu in fits_columns.hdus(self._file) if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            data = [hdu.data for hdu in tables[:1]]
        if not data:
            raise UserError(f"{path}: there is no table in this FITS file")
        if len(tables) > 1:
            self.remarks = [f"only the first of its {len(tables)} tables is read; write others to their own files"]
        self._data = data[0]
        self._names = list(tables[0].columns.names)
        self.rows = len(self._data)
        if self.rows and not self._data.dtype.itemsize:
            raise UserError(f"{path}: the table's {self.rows} rows are empty")
        first = fits_columns.Piece(self._data, slice(0, 1))
        self.schema = pa.schema([self._field(first, i, column) for i, column in enumerate(tables[0].columns)])

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        for first in range(skip * rows, self.rows, rows):
            yield first, self._slice(names, first, first + rows)

    def points_per_row(self, column: str) -> float:
        with _readable(self.name, Exception):
            return fits_columns.points_per_row(self._data, self._names.index(column))

    def _field(self, piece: fits_columns.Piece, index: int, column: Any) -> Any:
        """The Arrow field of a column, whose type some rows tell."""
        try:
            return with_unit(pa.field(column.name, piece.column(index).type), text(column.unit))
        except Exception as error:  # astropy's, of many kinds
            return unreadable(column.name, error)

    def _slice(self, names: Sequence[str], first: int, last: int) -> Any:
        piece = fits_columns.Piece(self._data, slice(first, last))
        with _readable(self.name, Exception):
            arrays = [piece.column(self._names.index(name)) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=list(names))


class TFRecordTable(FileTable):
    """A TFRecord file as Astromer's code writes it: one record, which is one row, a light curve.

    The columns are the records' names: text for what a record says of the star, lists of float32 for its points. The
    older generation's dim_0, dim_1 and dim_2 are called mjd, mag and errmag, as in the newer one.

    Where a label is only a number, it is replaced by the name of the class's folder, in which the file then lies.
    """

    may_be_empty = True  # a file without records
    hides_other_tables = True  # Astromer's code keeps tables about the records beside them

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        is_class = path.parent != root and path.parent.name.lower() not in PART_NAMES
        self._folder = path.parent.name.rpartition("=")[2] if is_class else None
        context, lists = next(tfrecord.read(path), ({"id": ""}, dict.fromkeys(tfrecord.POINTS)))
        text = [(name, pa.string()) for name in context]
        self.schema = pa.schema([*text, *((name, pa.list_(pa.float32())) for name in lists)])

    @cached_property
    def rows(self) -> int:  # type: ignore[override]
        return tfrecord.count(self._path)

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        waiting: list[tfrecord.Record] = []
        first = skip * rows
        for record in tfrecord.read(self._path, skip=first):
            waiting.append(record)
            if len(waiting) == rows:
                yield first, self._batch(waiting, names, first)
                first += rows
                waiting = []
        if waiting:
            yield first, self._batch(waiting, names, first)

    def points_per_row(self, column: str) -> float:
        bytes_a_point = 12
        return self._path.stat().st_size / bytes_a_point / max(self.rows, 1)

    def _batch(self, records: Sequence[tfrecord.Record], names: Sequence[str], first: int) -> Any:
        columns = []
        for name in names:
            if pa.types.is_string(self.schema.field(name).type):
                columns.append(pa.array([self._text(name, context) for context, _ in records], pa.string()))
                continue
            for row, (_, lists) in enumerate(records, start=first + 1):
                if name not in lists:
                    raise UserError(f"{self.name}, record {row}: no {name!r}, which other records of the file have")
            columns.append(_list_array([lists[name] for _, lists in records]))
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    def _text(self, name: str, context: dict[str, Any]) -> str | None:
        value = context.get(name)
        if self._folder is not None and isinstance(value, int) and name.lower() in ("label", "class"):
            return self._folder
        return None if value is None else str(value)


# Names of folders that hold a part of split data, rather than a class of stars, and the part.
PART_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

# Suffixes, in lower case, and the class that reads such files.
FORMATS: dict[tuple[str, ...], type[FileTable]] = {
    (".csv", ".csv.gz", ".tsv", ".tsv.gz"): CsvTable,
    (".parquet", ".pq"): ParquetTable,
    (".fits", ".fit", ".fits.gz"): FitsTable,
    (".record", ".records", ".tfrecord", ".tfrecords"): TFRecordTable,
}
SUFFIXES = tuple(suffix for suffixes in FORMATS for suffix in suffixes)


def open_table(path: Path, root: Path | None = None) -> FileTable:
    """Open a file by its suffix.

    Args:
        path: the file.
        root: the folder that the user named, in which the file was found; None if the user named the file.

    Raises:
        UserError: the file is missing, empty, unreadable, or of an unknown kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    kind = format_of(path)
    if kind is None:
        raise UserError(f"{path}: unknown kind of file; light curves are read from {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0 and not kind.may_be_empty:
        raise UserError(f"{path}: the file is empty")
    return kind(path, root or path.parent)


def format_of(path: Path) -> type[FileTable] | None:
    """The class that reads files of this name; None if their kind is unknown."""
    name = path.name.lower()
    return next((kind for suffixes, kind in FORMATS.items() if name.endswith(suffixes)), None)


def is_simulated(table: Table) -> bool:
    """Whether a table says that its light curves are simulated, as the tables of `astroco simulate` do.

    It says so in its metadata (`simulated: true`) or, where a program has lost these, in any row of its column `survey`
    ("simulated").
    """
    if (table.schema.metadata or {}).get(_SIMULATED.encode()) == b"true":
        return True
    if table.folders.get(SURVEY) == _SIMULATED:
        return True
    if SURVEY not in table.schema.names:
        return False
    columns = (batch.column(0) for _, batch in table.batches([SURVEY], _SURVEY_ROWS))
    return any(pc.any(pc.equal(_text_only(column), _SIMULATED)).as_py() for column in columns)


def _text_only(column: Any) -> Any:
    """A column of text as it is, any other column as missing text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return column.cast(pa.string()) if is_text else pa.nulls(len(column), pa.string())


def unreadable(name: str, why: object) -> Any:
    """The Arrow field of a column that cannot be read, to be refused if it is needed."""
    return pa.field(name, pa.null(), metadata={PROBLEM: " ".join(str(why).split())})


def mean_length(column: Any) -> float:
    """The mean number of values in a row of an Arrow column of lists; 1 for a column of single values."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, [0])
    if not is_list(column.type) or not len(column):
        return 1.0
    return (pc.sum(pc.list_value_length(column)).as_py() or 0) / len(column)


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any sort."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _value_type(kind: Any) -> Any:
    return kind.value_type if is_list(kind) else kind


def _list_array(lists: Sequence[Any]) -> Any:
    """An Arrow array of float32 lists."""
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in lists])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(lists)))


@contextmanager
def _readable(name: str, *complaints: type[Exception]) -> Iterator[None]:
    """Turn errors of reading, and `complaints`, into one line that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, *complaints) as error:
        raise UserError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
