"""Small tables of text, such as labels and splits."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.columns import find, listed
from astroco_fast.data.tables import open_table
from astroco_fast.data.values import Place, to_objects, to_text
from astroco_fast.errors import UserError

Text = NDArray[np.object_]

_ROWS = 200_000


def read_text(path: str | Path, needed: dict[str, str | None], optional: tuple[str, ...] = ()) -> dict[str, Text]:
    """Columns of a CSV, Parquet or FITS table as text, without surrounding blanks.

    Args:
        path: of the table.
        needed: what has to be there, "id" and "label" by their aliases, and the column's name where the user chose one.
        optional: columns that may be there.

    Returns:
        (rows,) object arrays of str by what was asked for; "" where an optional column has no value.

    Raises:
        UserError: a column is missing, a value of a needed one is, or the file cannot be read.
    """
    table = open_table(Path(path))
    names = table.schema.names
    columns = {role: _column(role, names, chosen, str(path)) for role, chosen in needed.items()}
    columns |= {name: name for name in optional if name in names}
    parts: dict[str, list[Text]] = {role: [np.empty(0, dtype=object)] for role in columns}
    for first_row, batch in table.batches(list(dict.fromkeys(columns.values())), _ROWS):
        for role, name in columns.items():
            place = Place(str(path), name, first_row)
            text = to_objects(to_text(batch.column(name), place, required=role in needed))
            parts[role].append(np.array([value.strip() for value in text], dtype=object))
    return {role: np.concatenate(arrays) for role, arrays in parts.items()}


def _column(role: str, names: list[str], chosen: str | None, source: str) -> str:
    if role in ("id", "label"):
        found = find(role, names, chosen if chosen in names else None, source)
    else:
        found = role if role in names else None
    if found is None:
        raise UserError(f"{source}: no column {role!r}; found: {listed(names)}")
    return found
