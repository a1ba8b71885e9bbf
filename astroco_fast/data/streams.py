"""Tables that arrive in pieces: readers of Arrow, results of databases, lazy frames; read in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from astroco_fast.data.tables import SURVEY, Table, mean_length, readable, says_simulated, without_views
from astroco_fast.data.units import with_stated_units
from astroco_fast.errors import UserError

# A stream does not say how long it is. Points are cut as finely as for this many (`points.partitions`).
_ROWS_ASSUMED = 200_000_000

# The names of the columns to read -> Arrow record batches, which may have other columns, too.
Start = Callable[[Sequence[str]], Iterable[Any]]


class StreamTable(Table):
    """A table whose rows an object hands out from the first to the last.

    Args:
        name: the input's name in error messages.
        schema: the Arrow schema of all columns.
        start: begins to read.
        once: whether the object can be read only once.
        called: what to call its only star, if there is no column of ids.
    """

    def __init__(self, name: str, schema: Any, start: Start, *, once: bool, called: str) -> None:
        self.name = name
        self.schema = with_stated_units(without_views(schema))
        self.rows = _ROWS_ASSUMED
        self.called = called
        self._start = start
        self._once = once
        self._begun = False
        self._rest: Iterator[Any] | None = None  # of a stream that is read once
        self._head: list[Any] = []  # what was read of it to look at

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        if self._begun and self._once:
            raise UserError(
                f"{self.name}: can be read only once; give what makes it anew, or a table in memory or a file"
            )
        self._begun = True
        for index, batch in enumerate(recut((without_views(batch.select(names)) for batch in self._read(names)), rows)):
            if index >= skip:
                yield index * rows, batch

    def pieces(self, rows: int) -> None:
        return None

    def points_per_row(self, column: str) -> float:
        return mean_length(without_views(batch).column(column)) if (batch := self._first([column])) is not None else 1.0

    def is_simulated(self) -> bool:
        if not self._once or SURVEY not in self.schema.names:
            return super().is_simulated()
        first = self._first([SURVEY])
        return first is not None and says_simulated(first.column(SURVEY))

    def _read(self, names: Sequence[str]) -> Iterator[Any]:
        with readable(self.name, Exception):
            if not self._once:
                yield from self._start(names)
                return
            real = SURVEY in self.schema.names and not self.is_simulated()
            for batch in chain(self._head, self._all()):
                if real and says_simulated(batch.column(SURVEY)):
                    raise UserError(
                        f"{self.name}: simulated light curves follow others; write all to a file, and read that"
                    )
                yield batch

    def _all(self) -> Iterator[Any]:
        if self._rest is None:
            self._rest = iter(self._start(self.schema.names))
        return self._rest

    def _first(self, names: Sequence[str]) -> Any:
        """The first batch that has rows; None: there is none."""
        with readable(self.name, Exception):
            if not self._once:
                return next((batch for batch in self._start(names) if batch.num_rows), None)
            while not self._head and (batch := next(self._all(), None)) is not None:
                self._head += [batch] if batch.num_rows else []
            return self._head[0] if self._head else None


def recut(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """The rows of record batches in batches of `rows`, but for the last: pieces do not depend on how they came."""
    waiting: list[Any] = []
    held = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, rows - held)
            batch = batch.slice(part.num_rows)
            waiting.append(part)
            held += part.num_rows
            if held == rows:
                yield _joined(waiting)
                waiting, held = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(batches: Sequence[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    columns = pa.concat_tables(tables, promote_options="permissive")  # whole numbers in one piece, floats in the next
    return pa.RecordBatch.from_arrays([pa.concat_arrays(c.chunks) for c in columns.columns], schema=columns.schema)
