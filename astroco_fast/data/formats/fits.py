"""FITS tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from astroco_fast.data import fits_columns
from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.tables import readable, unreadable
from astroco_fast.data.units import text, with_unit
from astroco_fast.errors import MissingExtraError, UserError

# Astropy warns of a damaged table, or raises errors of many kinds.
_FITS_DAMAGE = "File may have been truncated|Error validating header"


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
        with readable(self.name, Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # on the style of headers
            warnings.filterwarnings("error", message=_FITS_DAMAGE)
            # The file stays open: rows are mapped into memory and read when they are needed.
            is_here = isinstance(path, Path)
            self._file = fits.open(path if is_here else path.open("rb"), memmap=is_here)
            tables = [hdu for hdu in fits_columns.hdus(self._file) if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            data = [hdu.data for hdu in tables[:1]]
        if not data:
            raise UserError(f"{path}: there is no table in this FITS file")
        if len(tables) > 1:
            self.remarks = [f"only the first of its {len(tables)} tables is read; write others to their own files"]
        self._data = data[0]
        self.star, self.quality = fits_columns.told(self._file[0].header, tables[0].header, tables[0].columns.names)
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
        with readable(self.name, Exception):
            return fits_columns.points_per_row(self._data, self._names.index(column))

    def _field(self, piece: fits_columns.Piece, index: int, column: Any) -> Any:
        """The Arrow field of a column, whose type some rows tell."""
        try:
            return with_unit(pa.field(column.name, piece.column(index).type), text(column.unit))
        except Exception as error:  # astropy's, of many kinds
            return unreadable(column.name, error)

    def _slice(self, names: Sequence[str], first: int, last: int) -> Any:
        piece = fits_columns.Piece(self._data, slice(first, last))
        with readable(self.name, Exception):
            arrays = [piece.column(self._names.index(name)) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=list(names))
