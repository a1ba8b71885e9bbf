"""Light curves that are Python objects already: arrays, frames, astropy tables, lightkurve's curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data.columns import Columns, resolve
from astroco_fast.data.fields import MappedTable, map_table
from astroco_fast.data.tables import SURVEY, MemoryTable, arrow_array
from astroco_fast.errors import UserError

# Where astropy and lightkurve objects keep the name of what was observed.
_NAME_KEYS = ("label", "LABEL", "OBJECT", "TARGETID", "targetid", "object")


def map_object(source: Any, columns: Columns, fixed_id: str) -> MappedTable | None:
    """The columns of a table-like object, or None where it is none.

    Taken are a pandas frame, an Arrow table, an astropy table or time series, and whatever has `time` and `flux`
    (lightkurve). An object without an id column is one star, named by its own metadata or else `fixed_id`; a pandas
    or Arrow table must have one.

    Raises:
        UserError: a column is missing.
    """
    kind = type(source).__name__
    if isinstance(source, pa.Table):
        return map_table(MemoryTable(source, kind), columns)
    if _is_frame(source):
        return map_table(MemoryTable(_of_frame(source), kind), columns)
    if hasattr(source, "colnames") and hasattr(source, "columns"):
        names = [str(name) for name in source.colnames]
        get = source.__getitem__
    elif hasattr(source, "time") and hasattr(source, "flux"):
        names = [name for name in ("time", "flux", "flux_err") if getattr(source, name, None) is not None]
        get = partial(getattr, source)
    else:
        return None
    # Only what is needed: other columns may hold what has no place in a table (coordinates, images ...).
    needed = dict.fromkeys([*resolve(names, columns, kind, need_id=False).values(), *({SURVEY} & set(names))])
    table = pa.table({name: arrow_array(_plain(get(name))) for name in needed})
    return map_table(MemoryTable(table, kind), columns, fixed_id=_name(source) or fixed_id)


def is_curve_list(source: Any) -> bool:
    """Whether this is a sequence of arrays, or an array (n, L, 3) of light curves of one length."""
    if isinstance(source, np.ndarray):
        return source.ndim == 3
    return isinstance(source, Sequence) and not isinstance(source, str | bytes)


def _is_frame(source: Any) -> bool:
    return hasattr(source, "to_parquet") and hasattr(source, "columns")


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


def _plain(values: Any) -> Any:
    """Plain values of an astropy column: times as MJD, quantities without their unit, masked values as NaN."""
    values = getattr(values, "mjd", values)
    values = getattr(values, "value", values)
    if hasattr(values, "unmasked"):
        values = np.where(values.mask, np.nan, values.unmasked)
    return values


def _name(source: Any) -> str | None:
    meta = getattr(source, "meta", None) or {}
    for key in _NAME_KEYS:
        if meta.get(key) not in (None, ""):
            return str(meta[key])
    return None
