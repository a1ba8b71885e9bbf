"""Notes: what the user should know of an input although it can be read."""

from __future__ import annotations

from collections.abc import Iterator

from astroco_fast.text import printable


class Notes:
    """Remarks on tables, each of which is told once, however many tables it is about."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, None]] = {}  # remark -> tables, in order

    def __bool__(self) -> bool:
        return bool(self._tables)

    def add(self, table: str, remark: str) -> None:
        """Add a remark on a table."""
        self._tables.setdefault(remark, {})[table] = None

    def update(self, other: Notes) -> None:
        """Add all remarks of other notes."""
        for remark, tables in other._tables.items():
            self._tables.setdefault(remark, {}).update(tables)

    def __iter__(self) -> Iterator[str]:
        """A line for each remark, with the name of the first table and the number of the others."""
        for remark, tables in self._tables.items():
            first, more = next(iter(tables)), len(tables) - 1
            yield printable(f"{first}{f' and {more:,} more' if more else ''}: {remark}")
