"""Tables of light curves, read as streams of Arrow record batches in bounded memory.

A table may have one row a point (columns of numbers) or one row a light curve (columns of lists); which columns hold
the times, magnitudes and so on is found later, by their names (`columns`). Tables in files are in `formats`, tables
that are Python objects in `objects`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from astroco_fast.data.units import unit_of

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
