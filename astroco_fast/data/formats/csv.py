"""Comma- and tab-separated text."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.tables import readable
from astroco_fast.errors import UserError

_CSV_BLOCK = 8 << 20  # bytes that are decoded at a time
_CSV_HEAD = 4096  # bytes by which text is told from other encodings
_BYTES_PER_CSV_ROW = 30  # a guess, from which the number of rows is estimated


class CsvTable(FileTable):
    """A comma- or tab-separated file, plain or gzipped, with one header line.

    Every column is read as text, so that a value that is not a number can be named by its row.
    """

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        self._delimiter = "\t" if ".tsv" in path.name.lower() else ","
        packed = path.name.lower().endswith(".gz")
        with self._utf8():
            with self.unpacked() as text:
                head = text.read(_CSV_HEAD)
            if b"\0" in head:  # every other byte of UTF-16
                raise UnicodeError("zeros between the characters")
            self._check_delimiter(head.partition(b"\n")[0].decode(errors="replace").strip())
            with self._open(1 << 20, pyarrow.csv.ConvertOptions()) as pieces:
                self.schema = pieces.schema
                self.schema.names  # noqa: B018 - decodes them
        self.rows = path.stat().st_size * (4 if packed else 1) // _BYTES_PER_CSV_ROW

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        types = dict.fromkeys(names, pa.string())
        options = pyarrow.csv.ConvertOptions(include_columns=list(names), column_types=types)
        first = 0
        with self._utf8(), self._open(_CSV_BLOCK, options) as pieces:
            for index, batch in enumerate(pieces):
                if index >= skip:
                    yield first, batch
                first += batch.num_rows

    def pieces(self, rows: int) -> None:
        return None

    def _check_delimiter(self, header: str) -> None:
        """Refuse a header line without the delimiter, but with others' between its names."""
        other = next((mark for mark in ",;\t| " if header.count(mark) >= 2), None)
        if self._delimiter not in header and other is not None:
            raise UserError(
                f"{self.name}: its columns are separated by {other!r}; write a .csv file with commas, or a .tsv file "
                "with tabs"
            )

    @contextmanager
    def _utf8(self) -> Iterator[None]:
        """Turn errors of reading into one line, which says what to do with text that is not UTF-8."""
        with readable(self.name, EOFError, zlib.error):
            try:
                yield
            except (UnicodeError, pa.ArrowInvalid) as error:
                if not isinstance(error, UnicodeError) and "UTF8" not in str(error):
                    raise
                raise UserError(
                    f"{self.name}: its text is not UTF-8; convert it, by `iconv -f LATIN1 -t UTF-8`, or `-f UTF-16`, "
                    "whichever it is"
                ) from error

    @contextmanager
    def _open(self, block: int, options: Any) -> Iterator[Any]:
        # Arrow unpacks files on this machine itself.
        with nullcontext(str(self._path)) if isinstance(self._path, Path) else self.unpacked() as source:
            yield pyarrow.csv.open_csv(
                source,
                read_options=pyarrow.csv.ReadOptions(block_size=block),
                parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter),
                convert_options=options,
            )
