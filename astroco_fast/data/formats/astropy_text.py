"""Tables in the text formats that astropy reads: ECSV, and VOTables of the Virtual Observatory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.objects import object_table
from astroco_fast.data.tables import Table, readable
from astroco_fast.errors import MissingExtraError, UserError


class AstropyTable(FileTable):
    """A table that astropy reads into memory.

    Raises:
        MissingExtraError: astropy is not installed.
    """

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        try:
            import astropy.table  # noqa: F401 - tells that it is installed
        except ImportError as error:
            raise MissingExtraError("astropy", "fits", f"reading {path}") from error
        with readable(self.name, Exception), warnings.catch_warnings(), self.opened() as source:
            warnings.simplefilter("ignore")  # on the style of files
            table = object_table(self._read(source), called=self.called)
        if table is None:
            raise UserError(f"{path}: there is no table in it")
        self._table: Table = table
        self.schema, self.rows, self.star = table.schema, table.rows, table.star

    def _read(self, source: Any) -> Any:
        """The table, of astropy."""
        raise NotImplementedError(f"{type(self).__name__} reads no file")

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        return self._table.batches(names, rows, skip)

    def points_per_row(self, column: str) -> float:
        return self._table.points_per_row(column)


class EcsvTable(AstropyTable):
    """An ECSV file, with units, masked values and times."""

    def _read(self, source: Any) -> Any:
        from astropy.table import QTable

        return QTable.read(source, format="ascii.ecsv")


class VoTable(AstropyTable):
    """The first table of a VOTable; others are remarked on."""

    def _read(self, source: Any) -> Any:
        from astropy.io import votable

        tables = list(votable.parse(source, verify="ignore").iter_tables())
        if len(tables) > 1:
            self.remarks = [f"only the first of its {len(tables)} tables is read; write others to their own files"]
        return tables[0].to_table(use_names_over_ids=True) if tables else None
