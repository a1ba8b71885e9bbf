"""Tables that come one by one, from a generator or a collection, as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from astroco_fast.data.columns import Columns, find, map_tables
from astroco_fast.data.objects import object_table
from astroco_fast.data.streams import StreamTable
from astroco_fast.data.tables import Table
from astroco_fast.data.units import unit_of
from astroco_fast.errors import UserError

_ID = "id"
_ROWS = 250_000  # of an item that are read at a time


def items_table(first: Any, start: Callable[[], Iterator[Any]], once: bool, columns: Columns) -> Table | None:
    """Tables that come one by one, as one table; None: the first is no table.

    Tables with a column of ids are pieces of one table. A table without one is one star, which gets such a column.

    Args:
        first: the first item.
        start: returns the items from the first.
        once: whether they come only once.
        columns: the user's choice of columns.

    Raises:
        UserError: a column is missing in the first.
    """
    table = object_table(first, called="0")
    if table is None:
        return None
    kind = f"tables ({type(first).__name__})"
    schema = table.schema
    a_star_each = columns.id is None and find("id", list(table.fields()), None) is None
    if a_star_each:
        map_tables(table, columns)  # refuses columns that may be of ids
        schema = schema.append(pa.field(_ID, pa.string()))

    def batches(names: Sequence[str]) -> Iterator[Any]:
        stars: set[str] = set()
        own = [name for name in names if not (a_star_each and name == _ID)]
        for place, item in enumerate(start()):
            piece = _like(item, place, table, own)
            star = piece.star or piece.called
            if a_star_each and star in stars:
                raise UserError(f"{kind}: two are of a star {star!r}; join them, or give each a column of ids")
            stars.add(star)
            for _, batch in piece.batches(own, _ROWS):
                yield batch.append_column(_ID, pa.repeat(star, batch.num_rows)) if a_star_each else batch

    return StreamTable(kind, schema, batches, once=once, called="0")


def _like(item: Any, place: int, first: Table, names: Sequence[str]) -> Table:
    """An item as a table with the first one's columns, in the first one's units."""
    piece = object_table(item, called=str(place))
    if piece is None:
        raise UserError(f"item {place + 1} is a {type(item).__name__}, but the first is a {first.name}")
    for name in names:
        if name not in piece.schema.names:
            raise UserError(f"item {place + 1} has no column {name!r}, which the first has")
        one, other = unit_of(first.schema.field(name)), unit_of(piece.schema.field(name))
        if one != other:
            raise UserError(f"item {place + 1}: column {name!r} is in {other!r}, but that of the first is in {one!r}")
    return piece
