"""Tables that are Python objects already: frames, Arrow's tables and streams, astropy's, lightkurve's, xarray's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from astroco_fast.data import fits_columns
from astroco_fast.data.arrays import arrow_array, holds_values
from astroco_fast.data.streams import StreamTable
from astroco_fast.data.tables import Table, mean_length, readable, unreadable, without_views
from astroco_fast.data.units import text, with_stated_units, with_unit
from astroco_fast.data.words import is_no_value
from astroco_fast.errors import UserError

# Where astropy and lightkurve objects keep the name of what was observed.
_NAME_KEYS = ("label", "LABEL", "OBJECT", "TARGETID", "targetid", "object")

_ROWS_A_PIECE = 16_384  # rows that another library reads ahead of us


class MemoryTable(Table):
    """An Arrow table in memory.

    Args:
        table: the Arrow table.
        name: the input's name in error messages.
        called: what to call its only star, if there is no column of ids.
        star: the id of its only star, if its metadata say so.
    """

    def __init__(self, table: Any, name: str, called: str, star: str | None = None) -> None:
        self.name = name
        table = without_views(table)
        self.schema = with_stated_units(table.schema)
        self.rows = table.num_rows
        self.called = called
        self.star = star
        self._table = table

    def batches(self, names: Sequence[str], rows: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        chosen = self._table.select(list(names))
        for first in range(skip * rows, self.rows, rows):
            arrays = [pa.concat_arrays(column.chunks) for column in chosen.slice(first, rows).columns]
            yield first, pa.RecordBatch.from_arrays(arrays, names=chosen.schema.names)

    def points_per_row(self, column: str) -> float:
        return mean_length(self._table[column])


def object_table(source: Any, called: str) -> Table | None:
    """A table-like object as a table; None for any other object.

    Table-like are pandas frames, what hands out Arrow's data (Arrow, polars, DuckDB ...), astropy tables and time
    series, arrays of records, FITS tables and lists of HDUs, xarray's data sets, and objects with `time` and `flux`
    (lightkurve).

    Args:
        source: the object.
        called: what to call its only star, if there is no column of ids and its metadata do not name it.

    Raises:
        UserError: a frame has two columns of one name, or is not in memory; a data set or an array of records is no
            table; an HDU list has no table.
    """
    kind = type(source).__name__
    if isinstance(source, np.ndarray) and source.dtype.names:
        return _of_records(source, kind, called)
    if hasattr(source, "header") and hasattr(source, "columns"):  # astropy's HDU of a table
        return _of_hdu(source, source.header, kind, called)
    if hasattr(source, "fileinfo") and isinstance(source, list):  # astropy's HDUList
        return _of_hdus(source, kind, called)
    if isinstance(source, pa.Table):
        return MemoryTable(source, kind, called)
    if hasattr(source, "to_dataframe") and hasattr(source, "dims"):
        return MemoryTable(_of_frame(_of_xarray(source)), kind, called)
    if (stream := _stream(source, kind, called)) is not None:
        return stream
    if hasattr(source, "columns") and (hasattr(source, "compute") or hasattr(source, "collect")):
        raise UserError(
            f"{kind}: the table is not in memory; call its .compute() or .collect(), or write it to Parquet and give "
            "that folder"
        )
    if hasattr(source, "iloc") and hasattr(source, "columns") and not hasattr(source, "colnames"):  # pandas
        return MemoryTable(_of_frame(source), kind, called)
    if hasattr(source, "__arrow_c_array__"):
        try:
            return MemoryTable(pa.Table.from_batches([pa.record_batch(source)]), kind, called)
        except pa.ArrowInvalid:  # a single column
            return None
    if hasattr(source, "__arrow_c_stream__"):
        return _stream_of_arrow(source, kind, called)
    if hasattr(source, "colnames") and hasattr(source, "columns"):
        columns = {str(name): source[name] for name in source.colnames}
    elif _has(source, "time") and _has(source, "flux"):
        columns = {name: getattr(source, name) for name in ("time", "flux", "flux_err") if _has(source, name)}
    else:
        return None
    table = _of_columns({name: values for name, values in columns.items() if values is not None})
    return MemoryTable(table, kind, called, _name(source))


def columns_table(columns: Mapping[Any, Any], called: str) -> Table:
    """A dict of columns (arrays, lists, quantities) as a table.

    Raises:
        UserError: the columns differ in length.
    """
    lengths = {str(name): len(values) for name, values in columns.items()}
    if len({*lengths.values()}) > 1:
        raise UserError(f"dict: its columns differ in length: {', '.join(f'{n!r} {k}' for n, k in lengths.items())}")
    return MemoryTable(_of_columns({str(name): values for name, values in columns.items()}), "dict", called)


def _of_records(records: Any, kind: str, called: str) -> Table:
    """An array whose elements have named fields, of numpy or of a FITS table (`FITS_rec`)."""
    if records.ndim != 1:
        raise UserError(f"{kind}: has {records.ndim} dimensions, but a table has one; give it .ravel()")
    if hasattr(records, "columns"):
        return MemoryTable(_of_fits(records), kind, called)
    return MemoryTable(_of_columns({name: records[name] for name in records.dtype.names}), kind, called)


def _of_hdus(hdus: Any, kind: str, called: str) -> Table:
    tables = [hdu for hdu in hdus if hasattr(hdu, "columns")]
    if not tables:
        raise UserError(f"{kind}: there is no table in it")
    table = _of_hdu(tables[0], hdus[0].header, kind, called)
    if len(tables) > 1:
        table.remarks = [f"only the first of its {len(tables)} tables is read; give another itself"]
    return table


def _of_hdu(hdu: Any, primary: Any, kind: str, called: str) -> Table:
    star, quality = fits_columns.told(primary, hdu.header, hdu.columns.names)
    table = MemoryTable(_of_fits(hdu.data), kind, called, star)
    table.quality = quality
    return table


def _of_fits(data: Any) -> Any:
    """An Arrow table of astropy's `FITS_rec`."""
    piece = fits_columns.Piece(data, slice(None))
    names = data.columns.names
    units = {name: text(unit) for name, unit in zip(names, data.columns.units, strict=True)}
    return _table({name: partial(piece.column, index) for index, name in enumerate(names)}, units)


def _stream(source: Any, kind: str, called: str) -> Table | None:
    """A table that another library reads in pieces: a lazy frame of polars, a data set or scanner of Arrow, a result of
    DuckDB; None for any other object."""
    if hasattr(source, "collect_batches") and hasattr(source, "collect_schema"):  # polars, lazy
        with readable(kind, Exception):
            schema = source.head(0).collect().to_arrow().schema

        def frames(names: Sequence[str]) -> Iterator[Any]:
            for frame in source.select(list(names)).collect_batches(chunk_size=_ROWS_A_PIECE):
                yield from frame.to_arrow().to_batches()

        return StreamTable(kind, schema, frames, once=False, called=called)
    if hasattr(source, "scanner") and hasattr(source, "count_rows"):

        def scanned(names: Sequence[str]) -> Any:
            few = {"batch_size": _ROWS_A_PIECE, "batch_readahead": 2, "fragment_readahead": 1}
            return source.scanner(columns=list(names), **few).to_batches()

        return StreamTable(kind, source.schema, scanned, once=False, called=called)
    if hasattr(source, "projected_schema"):
        return StreamTable(kind, source.projected_schema, lambda _: source.to_batches(), once=True, called=called)
    if hasattr(source, "to_arrow_reader") and not hasattr(source, "__arrow_c_stream__"):  # what DuckDB executed
        with readable(kind, Exception):
            reader = source.to_arrow_reader()
        return StreamTable(kind, reader.schema, lambda _: reader, once=True, called=called)
    return None


def _stream_of_arrow(source: Any, kind: str, called: str) -> Table | None:
    """A table of Arrow's stream: in memory (polars), of a query, run anew (DuckDB), or of a reader, read once."""
    try:
        with readable(kind, Exception):
            reader = pa.RecordBatchReader.from_stream(source)
    except UserError as error:
        if isinstance(error.__cause__, pa.ArrowInvalid):  # a single column
            return None
        raise
    if hasattr(source, "__next__"):
        return StreamTable(kind, reader.schema, lambda _: reader, once=True, called=called)
    schema = reader.schema
    return StreamTable(kind, schema, lambda _: pa.RecordBatchReader.from_stream(source), once=False, called=called)


def _has(source: Any, name: str) -> bool:
    return getattr(source, name, None) is not None


def _of_xarray(dataset: Any) -> Any:
    """A pandas frame of a data set of xarray that is a table: whose variables lie along one dimension."""
    kind, dims = type(dataset).__name__, [str(dim) for dim in dataset.dims]
    if not hasattr(dataset, "data_vars"):
        raise UserError(
            f"{kind}: one variable is no table; give a Dataset with time, magnitude and error along one dimension"
        )
    if len(dims) != 1:
        raise UserError(
            f"{kind}: has {len(dims)} dimensions ({', '.join(dims)}), but a table has one; give a row for each point: "
            ".to_dataframe().reset_index(), without rows that are padding"
        )
    frame = dataset.to_dataframe()
    frame.attrs["units"] = {str(name): variable.attrs.get("units") for name, variable in dataset.variables.items()}
    return frame


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


def _of_columns(columns: Mapping[str, Any]) -> Any:
    """An Arrow table of named arrays, of astropy or plain."""
    units = {name: text(getattr(values, "unit", None)) for name, values in columns.items()}
    return _table({name: partial(_of_astropy, values) for name, values in columns.items()}, units)


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
    if isinstance(values, list | tuple):  # perhaps of lists of several lengths
        return pa.array(values, from_pandas=True)
    with np.errstate(over="ignore"):  # numpy's value for masked cells does not fit into float16
        return arrow_array(values.jd if hasattr(values, "jd") else getattr(values, "value", values))


def _name(source: Any) -> str | None:
    meta = getattr(source, "meta", None) or {}
    for key in _NAME_KEYS:
        name = str(meta.get(key, "")).strip()
        if not is_no_value(name):
            return name
    return None
