"""Arrays of other libraries in the package's two forms: Arrow arrays with nulls, float arrays with NaN.

Masks are read here alone, those of numpy and of astropy's columns and quantities. Whatever is
masked becomes null or NaN, and the cleaning counts it as not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astroco_fast.data import units

Mask = NDArray[np.bool_]


def float_array(values: Any, dtype: Any = np.float64) -> NDArray[Any]:
    """A contiguous float array of any array of numbers (numpy, torch, nested lists ...); masked values become NaN.

    Values that are too large for the type become infinite, which the cleaning drops.

    Raises:
        TypeError, ValueError, RuntimeError: the values are no numbers, or have a unit.
    """
    if unit := units.text(getattr(values, "unit", None)):
        raise TypeError(f"it has the unit {unit!r}; take its values in days and magnitudes")
    data, mask = _without_mask(values)
    data = np.asarray(data)
    if data.dtype.kind == "c":
        raise TypeError("its numbers are complex")
    with np.errstate(over="ignore", under="ignore"):
        numbers = np.ascontiguousarray(data, dtype=dtype)
    return numbers if mask is None else np.where(mask, dtype(np.nan), numbers)


def arrow_array(values: Any) -> Any:
    """An Arrow array of a column of numbers, of text, or of one array a row; masked values become null.

    Raises:
        pa.ArrowException, TypeError, ValueError: the column has no such form (images, coordinates ...).
    """
    data, mask = _without_mask(values)
    data = np.asarray(data)
    if data.dtype.kind == "O":
        return _of_cells(data, mask)
    if data.ndim > 2:
        raise TypeError(f"a column with {data.ndim - 1} dimensions a row")
    if data.dtype.kind == "S":
        data = np.char.decode(data, "utf-8")
    if data.dtype.kind == "U":
        data = data.astype(object)
    else:
        data = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))
    kind = pa.string() if data.dtype.kind == "O" else None
    flat = pa.array(data.reshape(-1), type=kind, mask=None if mask is None else mask.reshape(-1))
    return flat if data.ndim == 1 else _lists(flat, [data.shape[1]] * len(data))


def is_array(values: Any) -> bool:
    """Whether this is an array of numpy or a tensor of torch."""
    return isinstance(values, np.ndarray) or _is_tensor(values)


def _is_tensor(values: Any) -> bool:
    return hasattr(values, "detach") and not getattr(values, "is_nested", False)


def _without_mask(values: Any) -> tuple[Any, Mask | None]:
    """The values, and which of them are masked, of the same shape; None: nothing is."""
    if _is_tensor(values):  # tensors, which numpy refuses if they have gradients or lie on a GPU
        return values.detach().cpu(), None
    if hasattr(values, "unmasked"):
        return np.asarray(values.unmasked), np.asarray(values.mask)
    if isinstance(values, np.ma.MaskedArray):
        return values.data, np.ma.getmaskarray(values)
    if isinstance(values, list | tuple) and any(_has_mask(item) for item in values):
        parts = [_without_mask(item) for item in values]
        masks = [np.zeros(np.shape(data), dtype=bool) if mask is None else mask for data, mask in parts]
        return np.array([data for data, _ in parts]), np.array(masks)
    return values, None


def holds_values(cell: Any) -> bool:
    """Whether a cell of a table is an array, rather than one value or a list."""
    return is_array(cell) or _has_mask(cell)


def _has_mask(values: Any) -> bool:
    return isinstance(values, np.ma.MaskedArray) or hasattr(values, "unmasked")


def _of_cells(cells: NDArray[np.object_], mask: Mask | None) -> Any:
    """An Arrow array of a column of Python objects: text, numbers, or an array each."""
    missing = np.array([cell is None or cell is np.ma.masked for cell in cells], dtype=bool)
    if mask is not None:
        missing |= mask
    cells = cells.copy()
    cells[missing] = None
    if not any(holds_values(cell) for cell in cells):
        return pa.array(cells.tolist(), from_pandas=True)
    parts = [_cell([] if gone else cell) for cell, gone in zip(cells, missing, strict=True)]
    filled = [part for part in parts if len(part)] or [np.ma.empty(0)]
    return _lists(arrow_array(np.ma.concatenate(filled)), [len(part) for part in parts], missing)


def _cell(cell: Any) -> Any:
    """The array of one cell, as numpy's masked array."""
    if unit := units.text(getattr(cell, "unit", None)):
        raise TypeError(f"cells with the unit {unit!r}, which the column should have")
    data, mask = _without_mask(cell)
    data = np.atleast_1d(np.asarray(data))
    return np.ma.MaskedArray(data, mask=np.ma.nomask if mask is None else np.atleast_1d(mask))


def _lists(values: Any, lengths: Sequence[int], missing: Mask | None = None) -> Any:
    """An Arrow array of lists of these lengths, whose values lie end to end."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    kind = pa.ListArray if offsets[-1] < 2**31 else pa.LargeListArray
    offsets = pa.array(offsets, pa.int32() if kind is pa.ListArray else pa.int64())
    return kind.from_arrays(offsets, values, mask=None if missing is None else pa.array(missing))
