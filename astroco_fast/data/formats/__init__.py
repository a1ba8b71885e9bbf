"""Formats of files: a class for each kind, chosen by the file's suffix.

To read another kind of file: write a subclass of `FileTable` in a module of its own, add its suffixes to `FORMATS`, and
add a writer of such files to `WRITERS` in tests/test_formats.py, which tries the whole way from the file to embeddings.
No other code in the package knows what kinds of files there are.
"""

from __future__ import annotations

from pathlib import Path

from astroco_fast.data.formats.arrow import ArrowTable
from astroco_fast.data.formats.astropy_text import EcsvTable, VoTable
from astroco_fast.data.formats.blanks import DatTable
from astroco_fast.data.formats.csv import CsvTable
from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.formats.fits import FitsTable
from astroco_fast.data.formats.json import JsonTable
from astroco_fast.data.formats.parquet import ParquetTable
from astroco_fast.data.formats.records import TFRecordTable
from astroco_fast.data.tables import readable
from astroco_fast.errors import UserError

# Suffixes, in lower case, and the class that reads such files.
FORMATS: dict[tuple[str, ...], type[FileTable]] = {
    (".csv", ".csv.gz", ".tsv", ".tsv.gz"): CsvTable,
    (".parquet", ".pq", ".parq"): ParquetTable,
    (".feather", ".arrow", ".ipc"): ArrowTable,
    (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"): JsonTable,
    (".fits", ".fit", ".fits.gz"): FitsTable,
    (".ecsv", ".ecsv.gz"): EcsvTable,
    (".vot", ".vot.gz", ".votable"): VoTable,
    (".dat", ".dat.gz"): DatTable,
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
    with readable(str(path)):
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
