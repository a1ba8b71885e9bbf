"""Columns of a FITS table as Arrow arrays, some rows at a time, with the header's TNULL as missing values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.arrays import arrow_array
from astroco_fast.data.words import is_no_value

_SAMPLE = 1000  # rows from which the mean length of a column's arrays is taken

# Where headers name the star of a light curve.
_STAR_KEYS = ("OBJECT", "TICID", "KEPLERID", "TARGETID")
# A point of these surveys is good if its flag is 0.
_SURVEYS_WITH_FLAGS, _QUALITY = ("kepler", "k2", "tess"), ("sap_quality", "quality")


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


def told(primary: Any, header: Any, names: Sequence[str]) -> tuple[str | None, str | None]:
    """What the headers of a file say: the id of its star, and the column of flags, of Kepler and TESS."""
    said = [str(place.get(key, "")).strip() for key in _STAR_KEYS for place in (header, primary)]
    star = next((name for name in said if not is_no_value(name) and name != "0"), None)
    survey = str(primary.get("TELESCOP", header.get("TELESCOP", ""))).strip().lower()
    flags = [name for name in names if name.lower() in _QUALITY] if survey in _SURVEYS_WITH_FLAGS else []
    return star, next(iter(flags), None)


class Piece:
    """Some rows of a table.

    Args:
        data: astropy's `FITS_rec` of the whole table.
        rows: the rows.
    """

    def __init__(self, data: Any, rows: slice) -> None:
        self._data = data
        self._rows = rows

    @cached_property
    def _converted(self) -> Any:
        """The rows as astropy converts them, which takes time in proportion to the table's columns; few need it."""
        return self._data[self._rows]

    def column(self, index: int) -> Any:
        """The Arrow array of a column, given its place.

        Raises:
            ValueError: the arrays of a column do not fit into the file.
            pa.ArrowException, TypeError: the column has no form that Arrow knows (images, complex numbers ...).
        """
        column, raw = self._data.columns[index], _raw(self._data, index)[self._rows]
        if _has_lists(column):
            return arrow_array(self._lists(index, column, raw))
        values = raw if _is_plain(column) else self._converted.field(index)
        if raw.dtype.kind == "S" and values.dtype.kind not in "SU":  # the numbers of an ASCII table
            text = np.char.strip(raw)
            return arrow_array(np.ma.array(values, mask=(text == b"") | (text == str(column.null).strip().encode())))
        if column.null is not None and raw.dtype.kind in "iu":
            return arrow_array(np.ma.array(values, mask=raw == column.null))
        return arrow_array(values)

    def _lists(self, index: int, column: Any, places: NDArray[Any]) -> NDArray[np.object_]:
        _check_lists(places, column, self._data._heapsize)
        cells = np.empty(len(places), dtype=object)
        for row, cell in enumerate(self._converted.field(index)):
            if np.size(cell) != places[row, 0]:
                raise ValueError(f"the arrays of column {column.name!r} lie outside the file")
            cells[row] = cell if column.null is None else np.ma.array(cell, mask=cell == _scaled_null(column))
        return cells


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


def _is_plain(column: Any) -> bool:
    """Whether a column's values stand in the file as they are."""
    scaled = column.bscale not in (None, "", 1) or column.bzero not in (None, "", 0)
    return not scaled and column.dim is None and not column.ascii and column.format.format in "ABIJKED"


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
