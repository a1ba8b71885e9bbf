"""Tables of light curves, read as streams of Arrow record batches in bounded memory.

A table may have one row a point (columns of numbers) or one row a light curve (columns of lists); which columns hold
the times, magnitudes and so on is found later, by their names (`columns`). Tables in files are in `formats`, tables
that are Python objects in `objects`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from astroco_fast.data.units import unit_of
from astroco_fast.errors import UserError

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
        star: the id of the only star, as the table's metadata say, for a table without a column of ids; or None.
        called: what to call the only star of such a table if nothing else says its name.
        quality: the column of quality flags that the table's survey says to heed, or None.
        folders: column -> the value of all rows, for columns that folders' names give (band=r/part-0.parquet).
        remarks: what the user should know of the table.
    """

    name: str
    schema: Any
    rows: int
    star: str | None = None
    called: str
    quality: str | None = None
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

    def is_simulated(self) -> bool:
        """Whether the table says that its light curves are simulated, as those of `astroco simulate` do.

        It says so in its metadata (`simulated: true`) or, where a program has lost these, in any row of its column
        `survey` ("simulated").
        """
        if (self.schema.metadata or {}).get(_SIMULATED.encode()) == b"true":
            return True
        if self.folders.get(SURVEY) == _SIMULATED:
            return True
        if SURVEY not in self.schema.names:
            return False
        return any(says_simulated(batch.column(0)) for _, batch in self.batches([SURVEY], _SURVEY_ROWS))

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


def says_simulated(surveys: Any) -> bool:
    """Whether a column of surveys names simulated light curves in any row."""
    return bool(pc.any(pc.equal(_text_only(surveys), _SIMULATED)).as_py())


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


def without_views(data: Any) -> Any:
    """An Arrow table, record batch or schema without views of text and lists, which few functions of Arrow know.

    Polars and others hand them out.
    """
    schema = data if isinstance(data, pa.Schema) else data.schema
    fields = [field.with_type(_without_views(field.type)) for field in schema]
    if fields == list(schema):
        return data
    plain = pa.schema(fields, schema.metadata)
    if isinstance(data, pa.Schema):
        return plain
    columns = [_plain(column, field.type) for column, field in zip(data.columns, fields, strict=True)]
    return type(data).from_arrays(columns, schema=plain)


def _plain(array: Any, kind: Any) -> Any:
    """A column with its views replaced, of the type `_without_views` of its own.

    Arrow's cast of views of lists (26.0) reads beyond their offsets, so lists are made anew.
    """
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([_plain(chunk, kind) for chunk in array.chunks], kind)
    if array.type == kind:
        return array
    if pa.types.is_struct(kind):
        parts = [_plain(part, field.type) for part, field in zip(array.flatten(), kind, strict=True)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    if pa.types.is_large_list(kind):
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()))
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
        values = _plain(array.flatten(), kind.value_type)
        return pa.LargeListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
    return array.cast(kind)


def _without_views(kind: Any) -> Any:
    plain = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}.get(str(kind))
    if plain is not None:
        return plain
    if str(kind).startswith(("list_view", "large_list_view")):
        return pa.large_list(_without_views(kind.value_type))
    if is_list(kind) and _without_views(kind.value_type) != kind.value_type:
        return pa.large_list(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_struct(kind):
        fields = [field.with_type(_without_views(field.type)) for field in kind]
        return kind if fields == list(kind) else pa.struct(fields)
    return kind


def _value_type(kind: Any) -> Any:
    return kind.value_type if is_list(kind) else kind


@contextmanager
def readable(name: str, *complaints: type[Exception]) -> Iterator[None]:
    """Turn errors of reading, and `complaints`, into one line that names the input.

    Of an input by its URL, every error is one of reading: the libraries for other machines have many kinds.
    """
    remote = [Exception] if "://" in name else []
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, *complaints, *remote) as error:
        raise UserError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
