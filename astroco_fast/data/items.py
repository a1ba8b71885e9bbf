"""Tables that come one by one, from a generator or a collection, as one table; pairs of a name and a light curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data.columns import Columns, find, map_tables
from astroco_fast.data.objects import object_table
from astroco_fast.data.streams import StreamTable
from astroco_fast.data.tables import Table
from astroco_fast.data.units import unit_of
from astroco_fast.errors import UserError

_ID = "id"
_ROWS = 250_000  # of an item that are read at a time


def is_pair(item: Any) -> bool:
    """Whether an item is a pair of a name and a light curve, as those of `dict.items()` and of pandas' groups."""
    if not isinstance(item, tuple) or len(item) != 2:
        return False
    # Two tuples are a light curve of two points.
    return _is_word(item[0]) or (_is_key(item[0]) and not _is_key(item[1]))


def named(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The names and light curves of pairs.

    Raises:
        UserError: an item is no pair, or its name is of several words.
    """
    for place, (key, curve) in enumerate(_checked(items)):
        yield _name(key, place), curve


def _checked(items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for place, item in enumerate(items):
        if not is_pair(item):
            raise UserError(f"item {place + 1} is no pair of an id and a light curve, but the first is")
        yield item


def _name(key: Any, place: int) -> str:
    words = key if isinstance(key, tuple) else (key,)
    if len(words) > 1:
        raise UserError(f"item {place + 1}: the key {key} is no id; group by the id alone, or keep the column of ids")
    return str(words[0])


def _is_word(key: Any) -> bool:
    return isinstance(key, str | int | np.integer)


def _is_key(key: Any) -> bool:
    """Whether this is the key of a group by several columns, or by a list of one."""
    return isinstance(key, tuple) and bool(key) and all(map(_is_word, key))


def items_table(first: Any, start: Callable[[], Iterator[Any]], once: bool, columns: Columns) -> Table | None:
    """Tables that come one by one, as one table; None: the first is no table.

    Tables with a column of ids are pieces of one table. A table without one is one star, which gets such a column: of
    the names, if the items are pairs.

    Args:
        first: the first item.
        start: returns the items from the first.
        once: whether they come only once.
        columns: the user's choice of columns.

    Raises:
        UserError: a column is missing in the first.
    """
    paired = is_pair(first)
    table = object_table(first[1] if paired else first, called="0")
    if table is None:
        return None
    kind = f"tables ({table.name})"
    schema = table.schema
    a_star_each = columns.id is None and find("id", list(table.fields()), None) is None
    if a_star_each:
        map_tables(table, columns)  # refuses columns that may be of ids
        schema = schema.append(pa.field(_ID, pa.string()))

    def batches(names: Sequence[str]) -> Iterator[Any]:
        stars: set[str] = set()
        own = [name for name in names if not (a_star_each and name == _ID)]
        for place, (key, item) in enumerate(_checked(start()) if paired else ((None, item) for item in start())):
            piece = _like(item, place, table, own)
            star = _name(key, place) if paired and a_star_each else piece.star or piece.called
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
