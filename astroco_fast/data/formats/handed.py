"""Open files, in memory or elsewhere, from which a table is read."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import weakref
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from astroco_fast.data.formats import SUFFIXES, open_table
from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.tables import readable
from astroco_fast.errors import UserError

# The first bytes of each kind of file.
_BEGINNINGS = {
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"SIMPLE  =": ".fits",
    b"# %ECSV": ".ecsv",
    b"<?xml": ".vot",
    b"<VOTABLE": ".vot",
    b"{": ".jsonl",
}
_HEAD = 4096


def is_file(source: Any) -> bool:
    """Whether this is an open file, as Python, `io.BytesIO`, fsspec and `urllib` make them."""
    return hasattr(source, "read") and not hasattr(source, "colnames") and not hasattr(source, "columns")


def table_of_file(source: Any) -> FileTable:
    """The table of an open file, which is copied to a temporary one: readers go back and forth, and read it twice.

    Its format is told by its name, or else by its first bytes.

    Raises:
        UserError: it cannot be read, or is of an unknown kind.
    """
    name = getattr(source, "name", None) or getattr(source, "path", None) or getattr(source, "full_name", None)
    name = name if isinstance(name, str) else type(source).__name__
    folder = Path(tempfile.mkdtemp(prefix="astroco-"))
    try:
        with readable(name, Exception):
            copy = folder / "table"
            with copy.open("wb") as file:
                first = source.read(_HEAD)
                as_bytes = (lambda text: text.encode()) if isinstance(first, str) else bytes
                file.write(as_bytes(first))
                while block := source.read(1 << 20):
                    file.write(as_bytes(block))
            # Python's own reader of HTTP takes a connection that breaks off for the end.
            if isinstance(source, HTTPResponse) and source.length:
                raise OSError(f"the connection broke off, {source.length:,} bytes before the end")
            suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), None)
            whole = copy.rename(folder / (Path(name).name if suffix else f"{Path(name).name}{_suffix(copy)}"))
        table = open_table(whole)
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(str(error).replace(f"{folder}/", "")) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    table.name = name
    weakref.finalize(table, shutil.rmtree, folder, True)
    return table


def _suffix(path: Path) -> str:
    """The suffix of the format that a file's first bytes show."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    packed = ""
    if head.startswith(b"\x1f\x8b"):
        packed = ".gz"
        with gzip.open(path) as file:
            head = file.read(_HEAD)
    for beginning, suffix in _BEGINNINGS.items():
        if head.lstrip(b"\xef\xbb\xbf").startswith(beginning):
            return suffix + packed
    line = head.partition(b"\n")[0]
    return (".tsv" if b"\t" in line else ".csv" if b"," in line else ".dat") + packed
