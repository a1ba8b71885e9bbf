"""JSON lines: a JSON object a line."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.streams import recut
from astroco_fast.data.tables import mean_length, readable
from astroco_fast.errors import UserError

_BLOCK = 8 << 20  # bytes of whole lines that are decoded at a time
_BYTES_PER_ROW = 60  # a guess, from which the number of rows is estimated


class JsonTable(FileTable):
    """JSON lines, plain or gzipped: an object a line, of a point or, with arrays, of a light curve.

    Python's own reader decodes them: Arrow's ends the process at some files that are damaged (pyarrow 26).
    """

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        self._first = next(self._blocks(), pa.table({}))
        self.schema = self._first.schema
        packed = path.name.lower().endswith(".gz")
        self.rows = path.stat().st_size * (4 if packed else 1) // _BYTES_PER_ROW

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        found = (batch for table in self._blocks() for batch in _with_columns(table, names).to_batches())
        with readable(self.name):
            for index, batch in enumerate(recut(found, rows)):
                if index >= skip:
                    yield index * rows, batch

    def pieces(self, rows: int) -> None:
        return None

    def points_per_row(self, column: str) -> float:
        return mean_length(self._first[column])

    def _blocks(self) -> Iterator[Any]:
        line = 0
        with readable(self.name, EOFError, zlib.error), self.unpacked() as file:
            while lines := file.readlines(_BLOCK):
                rows = [self._row(text, line + i) for i, text in enumerate(lines, start=1) if text.strip()]
                line += len(lines)
                if rows:
                    names = dict.fromkeys(name for row in rows for name in row)
                    yield pa.table({name: _column([row.get(name) for row in rows]) for name in names})

    def _row(self, text: bytes, line: int) -> dict[str, Any]:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.name}: line {line} is not JSON: {str(error)[:200]}") from error
        if not isinstance(row, dict):
            raise UserError(f"{self.name}: line {line} is no JSON object, of columns and their values")
        return row


def _column(values: list[Any]) -> Any:
    """An Arrow array of values; those of different kinds become text, of which the reading says which is wrong."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(
            [None if text is None else text.encode(errors="replace").decode() for text in texts], pa.string()
        )


def _with_columns(table: Any, names: Sequence[str]) -> Any:
    """Some columns of a table; one that none of these lines has is missing."""
    columns = [table[name] if name in table.schema.names else pa.nulls(table.num_rows) for name in names]
    return pa.table(columns, names=list(names))
