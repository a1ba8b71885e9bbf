"""Tables that are Python objects already: pandas frames, Arrow and astropy tables, lightkurve's light curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from astroco_fast.data.tables import Table, arrow_array, is_list
from astroco_fast.errors import UserError

# Where astropy and lightkurve objects keep the name of what was observed.
_NAME_KEYS = ("label", "LABEL", "OBJECT", "TARGETID", "targetid", "object")


class MemoryTable(Table):
    """An Arrow table in memory.

    Args:
        table: the Arrow table.
        name: the input's name in error messages.
        star: the id of its only star, if it needs no id column.
    """

    def __init__(self, table: Any, name: str, star: str | None = None) -> None:
        self.name = name
        self.schema = table.schema
        self.rows = table.num_rows
        self.star = star
        self._table = table

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        chosen = self._table.select(list(names))
        for first in range(skip * rows, self.rows, rows):
            arrays = [pa.concat_arrays(column.chunks) for column in chosen.slice(first, rows).columns]
            yield first, pa.RecordBatch.from_arrays(arrays, names=chosen.schema.names)

    def points_per_row(self, column: str) -> float:
        kind = self.schema.field(column).type
        cells = self._table[column]
        if pa.types.is_struct(kind):
            cells = pc.struct_field(cells, [0])
        if not is_list(cells.type) or not self.rows:
            return 1.0
        return (pc.sum(pc.list_value_length(cells)).as_py() or 0) / self.rows


def object_table(source: Any, star: str) -> Table | None:
    """A table-like object as a table; None for any other object.

    Table-like are a pandas frame, an Arrow table, an astropy table or time series, and objects with `time` and `flux`
    (lightkurve). A pandas or Arrow table must have an id column; another object without one is one star.

    Args:
        source: the object.
        star: the id of that star, if the object's own metadata do not name it.

    Raises:
        UserError: a frame has two columns of one name.
    """
    kind = type(source).__name__
    if isinstance(source, pa.Table):
        return MemoryTable(source, kind)
    if hasattr(source, "to_parquet") and hasattr(source, "columns"):
        return MemoryTable(_of_frame(source), kind)
    if hasattr(source, "colnames") and hasattr(source, "columns"):
        columns = {str(name): partial(source.__getitem__, name) for name in source.colnames}
    elif hasattr(source, "time") and hasattr(source, "flux"):
        columns = {name: partial(getattr, source, name) for name in ("time", "flux", "flux_err")}
    else:
        return None
    arrays = {name: _array(get) for name, get in columns.items()}
    table = pa.table({name: array for name, array in arrays.items() if array is not None})
    return MemoryTable(table, kind, star=_name(source) or star)


def _of_frame(frame: Any) -> Any:
    """An Arrow table of a pandas frame, its named index included. Columns of mixed types become text."""
    if not frame.columns.is_unique:
        names = ", ".join(map(str, frame.columns[frame.columns.duplicated()].unique()))
        raise UserError(f"DataFrame: has more than one column {names}; rename or remove one of them")
    try:
        return pa.Table.from_pandas(frame)
    except (pa.ArrowException, TypeError):
        return pa.Table.from_pandas(frame.apply(_unmixed))


def _unmixed(series: Any) -> Any:
    try:
        pa.Array.from_pandas(series)
    except (pa.ArrowException, TypeError):
        return series.map(str)
    return series


def _array(get: Any) -> Any:
    """The Arrow array of a column; None if it is absent or has no such form (coordinates, images ...).

    Times become MJD, quantities lose their unit, masked values become NaN.
    """
    try:
        values = get()
        values = getattr(values, "mjd", values)
        values = getattr(values, "value", values)
        if hasattr(values, "unmasked"):
            values = np.where(values.mask, np.nan, values.unmasked)
        return arrow_array(values)
    except (pa.ArrowException, AttributeError, TypeError, ValueError):
        return None


def _name(source: Any) -> str | None:
    meta = getattr(source, "meta", None) or {}
    for key in _NAME_KEYS:
        if meta.get(key) not in (None, ""):
            return str(meta[key])
    return None
