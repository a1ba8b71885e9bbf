"""Files of Arrow's inter-process format, which Feather is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.streams import recut
from astroco_fast.data.tables import mean_length, readable, without_views
from astroco_fast.data.units import with_stated_units


class ArrowTable(FileTable):
    """A Feather file (version 2), as pyarrow, pandas and polars write it. Only the columns asked for are read."""

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        with self._open([]) as file:
            self._names = list(file.schema.names)
            self.schema = with_stated_units(without_views(file.schema))
            self._read = file.num_record_batches
        with self._open(self._names[:1]) as file:
            self.rows = sum(file.get_batch(i).num_rows for i in range(self._read))

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        with self._open(names) as file:
            found = (self._batch(file, i, names) for i in range(self._read))
            for index, batch in enumerate(recut(found, rows)):
                if index >= skip:
                    yield index * rows, batch

    def points_per_row(self, column: str) -> float:
        batches = (batch for _, batch in self.batches([column], max(self.rows, 1)))
        return next((mean_length(batch.column(0)) for batch in batches), 1.0)

    def _batch(self, file: Any, index: int, names: Sequence[str]) -> Any:
        batch = file.get_batch(index).select(list(names))
        batch.validate(full=True)  # of a damaged file, which functions of Arrow trust
        return without_views(batch)

    @contextmanager
    def _open(self, names: Sequence[str]) -> Iterator[Any]:
        """The file, of which only these columns are decoded."""
        with readable(self.name), self.opened() as source:
            mapped = pa.memory_map(str(source)) if isinstance(source, Path) else source
            options = pa.ipc.IpcReadOptions(included_fields=[self._names.index(name) for name in names] or None)
            with pa.ipc.open_file(mapped, options=options) as file:
                yield file
