"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from astroco_fast.data.curves import MOST_POINTS, too_long
from astroco_fast.data.formats.file import FileTable
from astroco_fast.data.tables import readable, without_views
from astroco_fast.data.units import with_stated_units

_PARQUET_BUFFER = 1 << 20  # bytes of a column that are read at a time


class ParquetTable(FileTable):
    """A Parquet file. Only the columns asked for are read, a part of a row group at a time."""

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path, root)
        # The file is opened again for reading: a catalogue may have more files than a process can hold open. It is
        # opened once for all row groups, because opening takes time in proportion to their number.
        with readable(self.name), self.opened() as source, pyarrow.parquet.ParquetFile(source) as file:
            self.schema = with_stated_units(without_views(file.schema_arrow))
            metadata = file.metadata
        self.rows = metadata.num_rows
        self._group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        first = 0
        with (
            readable(self.name),
            self.opened() as source,
            pyarrow.parquet.ParquetFile(source, buffer_size=_PARQUET_BUFFER) as file,
        ):
            for groups in self._together(rows):
                in_groups = sum(self._group_rows[group] for group in groups)
                pieces = -(-in_groups // rows)
                if skip >= pieces:
                    skip -= pieces
                else:
                    read = file.iter_batches(batch_size=rows, row_groups=groups, columns=list(names))
                    for start, batch in enumerate(read):
                        if start >= skip:
                            yield first + start * rows, without_views(batch)
                    skip = 0
                first += in_groups

    def pieces(self, rows: int) -> int:
        return sum(-(-sum(self._group_rows[i] for i in groups) // rows) for groups in self._together(rows))

    def points_per_row(self, column: str) -> float:
        leaf, path = next((i, p) for i, p in enumerate(self._leaves) if f"{p}.".startswith(f"{column}."))
        with readable(self.name), self.opened() as source, pyarrow.parquet.ParquetFile(source) as file:
            # Decodes the column in little memory, and finds damage, of which the metadata below would end the process.
            file.scan_contents(columns=[path])
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            mean = sum(group.column(leaf).num_values for group in groups) / max(self.rows, 1)
        if mean > MOST_POINTS:
            raise too_long(self.name, None)
        return mean

    def _together(self, rows: int) -> Iterator[list[int]]:
        """The row groups, in runs: small ones are read together, as long as they make one piece."""
        run: list[int] = []
        in_run = 0
        for group, in_group in enumerate(self._group_rows):
            if run and in_run + in_group > rows:
                yield run
                run, in_run = [], 0
            run.append(group)
            in_run += in_group
        if run:
            yield run
