"""The base of every table in a file, and what the names of the folders above a file say."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from astroco_fast.data.tables import Table

_NO_FOLDER_VALUE = "__HIVE_DEFAULT_PARTITION__"  # in a folder's name: no value

# Names of folders that hold a part of split data, rather than a class of stars, and the part.
PART_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class FileTable(Table):
    """A table in a file.

    Args:
        path: the file.
        root: the folder that the user named, in which the file was found; the file's own folder if the user named the
            file.

    Attributes:
        may_be_empty: whether a file of no bytes is a table without rows, rather than an error.
        hides_other_tables: whether other kinds of tables in the same folder are ignored.
    """

    may_be_empty = False
    hides_other_tables = False

    def __init__(self, path: Path, root: Path) -> None:
        self.name = str(path)
        self.called = Path(path.name.removesuffix(".gz")).stem
        self.folders = _folder_values(path)
        self._path = path

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """What libraries read: the path of a file on this machine, or an open file of another one."""
        if isinstance(self._path, Path):
            yield self._path
        else:
            with self._path.open("rb") as file:
                yield file

    @contextmanager
    def unpacked(self) -> Iterator[Any]:
        """The file's bytes, unpacked if its name ends in .gz."""
        with self._path.open("rb") as file:
            if self._path.name.lower().endswith(".gz"):
                with gzip.open(file) as inner:
                    yield inner
            else:
                yield file


def _folder_values(path: Path) -> dict[str, str]:
    """The columns that the folders above a file give, as programs of the Hadoop world write them: key=value, quoted."""
    pairs = [
        part.split("=", 1) for part in (path.absolute() if isinstance(path, Path) else path).parent.parts if "=" in part
    ]
    values = {unquote(key): unquote(value) for key, value in pairs}
    return {key: "" if value == _NO_FOLDER_VALUE else value for key, value in values.items()}
