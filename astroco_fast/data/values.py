"""Columns of Arrow tables as plain numbers and text, with the place of what can't be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.errors import UserError

# Spellings of "no value" in number columns of text files, in lower case.
_NO_VALUE = pa.array(["", "na", "n/a", "nan", "null", "none", "-", "--"])


@dataclass(frozen=True)
class Place:
    """Where a column's values stand: for messages. Rows count from 1, headers not counted."""

    source: str
    column: str
    first_row: int = 0

    def error(self, what: str, index: int | None = None) -> UserError:
        row = "" if index is None else f", row {self.first_row + index + 1}"
        return UserError(f"{self.source}: column {self.column!r}{row}: {what}")


def to_numbers(array: Any, place: Place, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """A float64 array of an Arrow array's values; missing values become NaN. Text that spells numbers is read.

    Args:
        array: Arrow array or chunked array of any numeric or text type.
        place: for messages.
        rows: (n,) row of each value, where that is not its position (values of list columns).

    Raises:
        UserError: a value is not a number; names file, column, and the first such row and value.
    """
    array = _plain(array)
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = _parse(array, place, rows)
    elif not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    ):
        hint = "; give times as days (MJD, JD ...)" if pa.types.is_temporal(kind) else ""
        raise place.error(f"numbers are needed, but it holds {kind}{hint}")
    array = pc.cast(array, pa.float64(), safe=False)
    if array.null_count:
        array = pc.fill_null(array, float("nan"))
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)


def to_text(array: Any, place: Place, *, required: bool = False) -> Any:
    """An Arrow string array of an array's values. Whole numbers are written without a point, missing values as "".

    Raises:
        UserError: the type has no plain text form, or a value is missing where `required`.
    """
    array = _plain(array)
    kind = array.type
    if pa.types.is_floating(kind):
        array = _float_text(array)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        try:
            array = pc.cast(pc.cast(array, pa.binary()), pa.string())
        except pa.ArrowInvalid as error:
            raise place.error("its bytes are no UTF-8 text") from error
    elif pa.types.is_nested(kind):
        raise place.error(f"one value a row is needed, but it holds {kind}")
    text = pc.fill_null(pc.cast(array, pa.string()), "")
    if required and len(text):
        missing = pc.equal(text, "").to_numpy(zero_copy_only=False)
        if missing.any():
            raise place.error("no value; every row needs one", int(np.argmax(missing)))
    return text


def to_objects(text: Any) -> NDArray[np.object_]:
    """An object array of str of an Arrow string array."""
    return np.asarray(text.to_numpy(zero_copy_only=False), dtype=object)


def constant_text(value: str, length: int) -> Any:
    """An Arrow string array that repeats one value."""
    return pa.repeat(pa.scalar(value, pa.string()), length)


def _plain(array: Any) -> Any:
    """One contiguous array, not dictionary-encoded."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # of no chunk, in some versions
            array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def _parse(array: Any, place: Place, rows: NDArray[np.int64] | None) -> Any:
    try:
        return pc.cast(array, pa.float64())
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim_whitespace(array)
        no_value = pc.is_in(pc.utf8_lower(trimmed), value_set=_NO_VALUE.cast(trimmed.type))
        trimmed = pc.if_else(no_value, pa.scalar(None, trimmed.type), trimmed)
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        for index, value in enumerate(trimmed):
            if value.is_valid and not _is_number(value.as_py()):
                row = index if rows is None else int(rows[index])
                raise place.error(f"not a number: {value.as_py()!r}", row) from None
        raise


def _is_number(text: str) -> bool:
    try:
        pc.cast(pa.scalar(text), pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _float_text(array: Any) -> Any:
    values = pc.cast(array, pa.float64())
    whole = pc.and_(pc.equal(values, pc.round(values)), pc.less(pc.abs(values), 2.0**63))
    as_whole = pc.cast(pc.cast(pc.if_else(whole, values, None), pa.int64(), safe=False), pa.string())
    missing = pc.or_(pc.is_null(values), pc.fill_null(pc.is_nan(values), True))
    return pc.if_else(missing, pa.scalar(None, pa.string()), pc.coalesce(as_whole, pc.cast(values, pa.string())))
