"""Tables that are Python objects already: pandas frames, Arrow and astropy tables, lightkurve's light curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data.arrays import arrow_array, holds_values
from astroco_fast.data.tables import Table, mean_length, unreadable
from astroco_fast.data.units import text, with_stated_units, with_unit
from astroco_fast.data.words import is_no_value
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
        self.schema = with_stated_units(table.schema)
        self.rows = table.num_rows
        self.star = star
        self._table = table

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        chosen = self._table.select(list(names))
        for first in range(skip * rows, self.rows, rows):
            arrays = [pa.concat_arrays(column.chunks) for column in chosen.slice(first, rows).columns]
            yield first, pa.RecordBatch.from_arrays(arrays, names=chosen.schema.names)

    def points_per_row(self, column: str) -> float:
        return mean_length(self._table[column])


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
    if hasattr(source, "columns") and (hasattr(source, "compute") or hasattr(source, "collect")):
        raise UserError(
            f"{kind}: the table is not in memory; call its .compute() or .collect(), or write it to Parquet and give "
            "that folder"
        )
    if hasattr(source, "to_parquet") and hasattr(source, "columns"):
        return MemoryTable(_of_frame(source), kind)
    if hasattr(source, "__arrow_c_stream__"):  # polars and others
        try:
            return MemoryTable(pa.table(source), kind)
        except pa.ArrowInvalid:  # a single column
            return None
    if hasattr(source, "colnames") and hasattr(source, "columns"):
        columns = {str(name): source[name] for name in source.colnames}
    elif _has(source, "time") and _has(source, "flux"):
        columns = {name: getattr(source, name) for name in ("time", "flux", "flux_err") if _has(source, name)}
    else:
        return None
    units = {name: text(getattr(values, "unit", None)) for name, values in columns.items()}
    table = _table(
        {name: partial(_of_astropy, values) for name, values in columns.items() if values is not None}, units
    )
    return MemoryTable(table, kind, star=_name(source) or star)


def _has(source: Any, name: str) -> bool:
    return getattr(source, name, None) is not None


def _of_frame(frame: Any) -> Any:
    """An Arrow table of a pandas frame, its named index included. Columns of mixed types become text."""
    if not frame.columns.is_unique:
        names = ", ".join(map(str, frame.columns[frame.columns.duplicated()].unique()))
        raise UserError(f"DataFrame: has more than one column {names}; rename or remove one of them")
    columns = {str(name): partial(_of_series, frame[name]) for name in frame.columns}
    for level, name in enumerate(frame.index.names):
        if name is not None:
            columns.setdefault(str(name), partial(_of_series, frame.index.get_level_values(level)))
    units = frame.attrs.get("units")
    return _table(columns, units if isinstance(units, dict) else {})


def _table(columns: Mapping[str, Callable[[], Any]], units: Mapping[str, Any]) -> Any:
    """An Arrow table of columns and their units. The field of a column that has no such form (coordinates, images ...)
    says why."""
    arrays: dict[str, Any] = {}
    fields = []
    for name, make in columns.items():
        try:
            arrays[name] = make()
            fields.append(with_unit(pa.field(name, arrays[name].type), text(units.get(name))))
        except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
            fields.append(unreadable(name, error))
    rows = max((len(array) for array in arrays.values()), default=0)
    return pa.Table.from_arrays(
        [arrays[f.name] if f.name in arrays else pa.nulls(rows) for f in fields], schema=pa.schema(fields)
    )


def _of_series(series: Any) -> Any:
    """The Arrow array of a frame's column or index."""
    if hasattr(series, "sparse"):
        series = series.sparse.to_dense()
    if series.dtype == object and any(map(holds_values, series)):
        return arrow_array(series.to_numpy())
    try:
        return pa.Array.from_pandas(series)
    except (pa.ArrowException, TypeError):
        return pa.array(series.map(str, na_action="ignore"))


def _of_astropy(values: Any) -> Any:
    """The Arrow array of a column, in which times are MJD and spans of time are days."""
    if hasattr(values, "mjd"):
        return arrow_array(values.mjd)
    with np.errstate(over="ignore"):  # numpy's value for masked cells does not fit into float16
        return arrow_array(values.jd if hasattr(values, "jd") else getattr(values, "value", values))


def _name(source: Any) -> str | None:
    meta = getattr(source, "meta", None) or {}
    for key in _NAME_KEYS:
        name = str(meta.get(key, "")).strip()
        if not is_no_value(name):
            return name
    return None
