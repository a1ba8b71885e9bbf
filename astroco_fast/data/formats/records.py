"""TFRecord files of Astromer's code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data import tfrecord
from astroco_fast.data.formats.file import PART_NAMES, FileTable
from astroco_fast.errors import UserError


class TFRecordTable(FileTable):
    """A TFRecord file as Astromer's code writes it: one record, which is one row, a light curve.

    The columns are the records' names: text for what a record says of the star, lists of float32 for its points. The
    older generation's dim_0, dim_1 and dim_2 are called mjd, mag and errmag, as in the newer one.

    Where a label is only a number, it is replaced by the name of the class's folder, in which the file then lies.
    """

    may_be_empty = True  # a file without records
    hides_other_tables = True  # Astromer's code keeps tables about the records beside them

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        is_class = path.parent != root and path.parent.name.lower() not in PART_NAMES
        self._folder = path.parent.name.rpartition("=")[2] if is_class else None
        context, lists = next(tfrecord.read(path), ({"id": ""}, dict.fromkeys(tfrecord.POINTS)))
        text = [(name, pa.string()) for name in context]
        self.schema = pa.schema([*text, *((name, pa.list_(pa.float32())) for name in lists)])

    @cached_property
    def rows(self) -> int:  # type: ignore[override]
        return tfrecord.count(self._path)

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        waiting: list[tfrecord.Record] = []
        first = skip * rows
        for record in tfrecord.read(self._path, skip=first):
            waiting.append(record)
            if len(waiting) == rows:
                yield first, self._batch(waiting, names, first)
                first += rows
                waiting = []
        if waiting:
            yield first, self._batch(waiting, names, first)

    def points_per_row(self, column: str) -> float:
        bytes_a_point = 12
        return self._path.stat().st_size / bytes_a_point / max(self.rows, 1)

    def _batch(self, records: Sequence[tfrecord.Record], names: Sequence[str], first: int) -> Any:
        columns = []
        for name in names:
            if pa.types.is_string(self.schema.field(name).type):
                columns.append(pa.array([self._text(name, context) for context, _ in records], pa.string()))
                continue
            for row, (_, lists) in enumerate(records, start=first + 1):
                if name not in lists:
                    raise UserError(f"{self.name}, record {row}: no {name!r}, which other records of the file have")
            columns.append(_list_array([lists[name] for _, lists in records]))
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    def _text(self, name: str, context: dict[str, Any]) -> str | None:
        value = context.get(name)
        if self._folder is not None and isinstance(value, int) and name.lower() in ("label", "class"):
            return self._folder
        return None if value is None else str(value)


def _list_array(lists: Sequence[Any]) -> Any:
    """An Arrow array of float32 lists."""
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in lists])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(lists)))
