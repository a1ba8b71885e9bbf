"""Text whose columns are apart by blanks, as OGLE's light curves are."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.tables import readable
from astroco_fast.errors import UserError

_NAMES = ["time", "mag", "err"]
_FOLDERS = {"I", "V"}  # of OGLE's archive, for its two bands
_BYTES_PER_ROW = 26  # as in OGLE's files


class DatTable(FileTable):
    """A file without header and with three columns: time, magnitude, uncertainty, such as OGLE-LMC-CEP-0001.dat.

    It is of one star. In a folder called I or V, as OGLE has them, it is in that band. Lines that start with # are
    comments. Every column is read as text, so that a value that is not a number can be named by its row.
    """

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        if path.parent.name in _FOLDERS and "band" not in self.folders:
            self.folders = MappingProxyType({**self.folders, "band": path.parent.name})
        self.schema = pa.schema([(name, pa.string()) for name in _NAMES])
        self.rows = path.stat().st_size // _BYTES_PER_ROW
        with self._open(1) as frames:
            first = next(iter(frames), None)
        if first is not None and first.shape[1] != 3:
            raise UserError(
                f"{path}: has {first.shape[1]} columns; a .dat file has three, time, magnitude and uncertainty, with "
                "blanks between; write a CSV file with a header that names its columns"
            )

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        with self._open(rows) as frames:
            for index, frame in enumerate(frames):
                if index >= skip:
                    columns = [pa.array(frame[_NAMES.index(name)].tolist(), pa.string()) for name in names]
                    yield index * rows, pa.RecordBatch.from_arrays(columns, names=list(names))

    def pieces(self, rows: int) -> None:
        return None

    @contextmanager
    def _open(self, rows: int) -> Iterator[Any]:
        import pandas as pd  # here, because few files need it

        with readable(self.name, ValueError, EOFError, zlib.error), self.unpacked() as file:
            # All values are text: pandas would make nothing of words that a table may have.
            options: dict[str, Any] = {"sep": r"\s+", "header": None, "comment": "#", "dtype": str}
            try:
                with pd.read_csv(file, chunksize=rows, keep_default_na=False, **options) as frames:
                    yield frames
            except pd.errors.EmptyDataError:  # comments only
                yield []
