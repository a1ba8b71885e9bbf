"""JSON lines: a JSON object a line."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.streams import recut
from astroco_fast.data.tables import mean_length, readable

_BLOCK = 8 << 20  # bytes of whole lines that are decoded at a time
_BYTES_PER_ROW = 60  # a guess, from which the number of rows is estimated


class JsonTable(FileTable):
    """JSON lines, plain or gzipped: an object a line, of a point or, with arrays, of a light curve.

    The types of columns are those of the first lines; whole numbers and floats may alternate.
    """

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        self._first = next(self._blocks(), pa.table({}))
        self.schema = self._first.schema
        packed = path.name.lower().endswith(".gz")
        self.rows = path.stat().st_size * (4 if packed else 1) // _BYTES_PER_ROW

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        found = (batch for table in self._blocks() for batch in _with_columns(table, names).to_batches())
        for index, batch in enumerate(recut(found, rows)):
            if index >= skip:
                yield index * rows, batch

    def pieces(self, rows: int) -> None:
        return None

    def points_per_row(self, column: str) -> float:
        return mean_length(self._first[column])

    def _blocks(self) -> Iterator[Any]:
        with readable(self.name, EOFError, zlib.error), self.unpacked() as file:
            while lines := file.readlines(_BLOCK):
                text = b"".join(lines)
                if text.strip():
                    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
                    yield pyarrow.json.read_json(io.BytesIO(text), read_options=options).combine_chunks()


def _with_columns(table: Any, names: Sequence[str]) -> Any:
    """Some columns of a table; one that none of these lines has is missing."""
    columns = [table[name] if name in table.schema.names else pa.nulls(table.num_rows) for name in names]
    return pa.table(columns, names=list(names))
