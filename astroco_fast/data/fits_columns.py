"""Columns of a FITS table as Arrow arrays, some rows at a time, with the header's TNULL as missing values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.arrays import arrow_array

_SAMPLE = 1000  # rows from which the mean length of a column's arrays is taken


def hdus(file: Any) -> Iterator[Any]:
    """The header-and-data units of an open FITS file.

    Raises:
        ValueError: the sizes in a header lead backwards, so that the units would never end.
    """
    last = -1
    for hdu in file:
        place = hdu.fileinfo()
        if place["hdrLoc"] <= last or hdu.size < 0 or place["datSpan"] < 0:
            raise ValueError("the header gives a negative size")
        last = place["hdrLoc"]
        yield hdu


def read_column(data: Any, piece: Any, rows: slice, index: int) -> Any:
    """The Arrow array of some rows of a column.

    Args:
        data: astropy's `FITS_rec` of the whole table.
        piece: `data[rows]`, so that astropy converts these rows alone.
        rows: the rows.
        index: the column's place.

    Raises:
        ValueError: the arrays of a column do not fit into the file.
        pa.ArrowException, TypeError: the column has no form that Arrow knows (images, complex numbers ...).
    """
    column, raw = data.columns[index], _raw(data, index)[rows]
    if _has_lists(column):
        _check_lists(raw, column, data._heapsize)
        cells = np.empty(len(raw), dtype=object)
        for row, cell in enumerate(piece.field(index)):
            if np.size(cell) != raw[row, 0]:
                raise ValueError(f"the arrays of column {column.name!r} lie outside the file")
            cells[row] = cell if column.null is None else np.ma.array(cell, mask=cell == _scaled_null(column))
        return arrow_array(cells)
    values = piece.field(index)
    if raw.dtype.kind == "S" and values.dtype.kind not in "SU":  # the numbers of an ASCII table
        text = np.char.strip(raw)
        return arrow_array(np.ma.array(values, mask=(text == b"") | (text == str(column.null).strip().encode())))
    if column.null is not None and raw.dtype.kind in "iu":
        return arrow_array(np.ma.array(values, mask=raw == column.null))
    return arrow_array(values)


def points_per_row(data: Any, index: int) -> float:
    """The mean number of values in a row of a column, about."""
    column, raw = data.columns[index], _raw(data, index)
    if _has_lists(column):
        _check_lists(raw[:_SAMPLE], column, data._heapsize)
        return float(np.mean(raw[:_SAMPLE, 0])) if len(raw) else 1.0
    return float(np.prod(raw.shape[1:]))


def _raw(data: Any, index: int) -> NDArray[Any]:
    """A column as it stands in the file: numbers before scaling, the (length, offset) of arrays that vary in length."""
    return np.asarray(data.view(np.ndarray)[data.dtype.names[index]])


def _has_lists(column: Any) -> bool:
    return getattr(column.format, "format", "") in ("P", "Q")


def _check_lists(places: NDArray[Any], column: Any, heap: int) -> None:
    """Refuse (length, offset) that lead out of the heap, or to the same numbers again and again: a small file may ask
    for any amount of memory by them."""
    lengths, offsets = places[:, 0].astype(np.int64), places[:, 1].astype(np.int64)
    size = np.dtype(column.format.recformat.dtype).itemsize or 1
    if (lengths < 0).any() or (offsets < 0).any() or ((offsets + lengths * size)[lengths > 0] > heap).any():
        raise ValueError(f"the arrays of column {column.name!r} lie outside the file")
    if lengths.sum() * size > heap:
        raise ValueError(f"the arrays of column {column.name!r} overlap")


def _scaled_null(column: Any) -> Any:
    """What TNULL has become where astropy has scaled the column."""
    scale = 1 if column.bscale in (None, "") else column.bscale
    zero = 0 if column.bzero in (None, "") else column.bzero
    return column.null * scale + zero
