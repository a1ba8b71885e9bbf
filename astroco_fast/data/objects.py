"""Light curves that are Python objects already: arrays, frames, astropy tables, lightkurve's curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data.columns import Columns
from astroco_fast.data.layout import Layout, open_layout
from astroco_fast.data.tables import MemoryTable, arrow_array
from astroco_fast.errors import UserError

# Where astropy and lightkurve objects keep the name of what was observed.
_NAME_KEYS = ("label", "LABEL", "OBJECT", "TARGETID", "targetid", "object")


def layout_of_object(source: Any, columns: Columns, fixed_id: str) -> Layout | None:
    """The columns of a table-like object, or None where it is none.

    Taken are a pandas frame, an Arrow table, an astropy table or time series, and whatever has `time` and `flux`
    (lightkurve). An object without an id column is one star, named by its own metadata or else `fixed_id`; a pandas
    or Arrow table must have one.

    Raises:
        UserError: a column is missing or of the wrong type.
    """
    kind = type(source).__name__
    if isinstance(source, pa.Table):
        return open_layout(MemoryTable(source, kind), columns)
    if _is_frame(source):
        try:
            table = pa.Table.from_pandas(source)
        except pa.ArrowException as error:
            raise UserError(f"{kind}: a column mixes types: {' '.join(str(error).split())}") from error
        return open_layout(MemoryTable(table, kind), columns)
    if hasattr(source, "colnames") and hasattr(source, "columns"):
        arrays = {str(name): _numpy(source[name]) for name in source.colnames}
    elif hasattr(source, "time") and hasattr(source, "flux"):
        names = ("time", "flux", "flux_err")
        arrays = {name: _numpy(getattr(source, name)) for name in names if getattr(source, name, None) is not None}
    else:
        return None
    table = pa.table({name: arrow_array(values) for name, values in arrays.items()})
    return open_layout(MemoryTable(table, kind), columns, fixed_id=_name(source) or fixed_id)


def is_curve_list(source: Any) -> bool:
    """Whether this is a sequence of arrays, or an array (n, L, 3) of light curves of one length."""
    if isinstance(source, np.ndarray):
        return source.ndim == 3
    return isinstance(source, Sequence) and not isinstance(source, str | bytes)


def _is_frame(source: Any) -> bool:
    return hasattr(source, "to_parquet") and hasattr(source, "columns")


def _numpy(values: Any) -> Any:
    """Plain values of an astropy column: times as MJD, quantities without their unit."""
    if hasattr(values, "mjd"):
        values = values.mjd
    return getattr(values, "value", values)


def _name(source: Any) -> str | None:
    meta = getattr(source, "meta", None) or {}
    for key in _NAME_KEYS:
        if meta.get(key) not in (None, ""):
            return str(meta[key])
    return None
