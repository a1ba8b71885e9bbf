"""Some light curves, cleaned and embedded, as an Arrow table: one row each, or one for each of their windows."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from astroco_fast.data.clean import SHORT_CURVES, clean
from astroco_fast.data.curves import CurveBatch, offsets_of
from astroco_fast.data.periods import Periods
from astroco_fast.embedding_choice import Choice, Short
from astroco_fast.encoding import (
    Rows,
    config_of,
    dimensions,
    layout,
    points_by_window,
    points_seen,
    rows_of,
    search_periods,
    states_of,
    vectors_of,
)
from astroco_fast.kernels.int8 import int8

NOT_FINITE = "curves: embedding not finite"
NO_RESULT = (SHORT_CURVES, NOT_FINITE)  # reasons why a light curve has no result


def nothing_left(dropped: Counter[str], short: Short, rows: int) -> bool:
    """Whether light curves were read of which none has a result, which is an error unless `short` was asked for.

    With short "nan", light curves of too few points have the rows of NaN that they should have.
    """
    without = sum(dropped[reason] for reason in NO_RESULT)
    return without > 0 and (rows == 0 if short == "drop" else dropped[NOT_FINITE] > 0 and rows == without)


def embed_curves(model: nn.Module, raw: CurveBatch, choice: Choice) -> tuple[pa.RecordBatch, Counter[str]]:
    """Clean light curves and embed them.

    Args:
        model: the encoder, in evaluation mode.
        raw: the light curves as they were read.
        choice: what to compute.

    Returns:
        A table with the columns that `embed` describes, and how many points and curves have no result, by reason. The
        metadata of the embedding's field give the place of each part as JSON, such as {"folded_mean": [0, 128],
        "period": [128, 156]}.
    """
    kept, reasons = clean(raw, choice.cleaning, keep_short=True)
    long_enough = kept.lengths >= choice.min_points
    curves = kept.select(long_enough)
    periods = search_periods(curves, choice.needs_periods)
    with _arithmetic(model, choice.precision):
        result = _compute(model, curves, periods, choice)
    odd = np.unique(result.rows.curve[~result.finite()])
    if len(odd):
        reasons[NOT_FINITE] = len(odd)
    if choice.short == "nan":
        result.values[np.isin(result.curve_of_value(), odd)] = np.nan
    table = _table(model, curves, periods, result, choice)
    if choice.short == "drop":
        return (table.filter(pa.array(~np.isin(result.rows.curve, odd))) if len(odd) else table), reasons
    if long_enough.all():
        return table, reasons
    few = kept.select(~long_enough)
    none = Periods.empty(len(few)) if choice.needs_periods else None
    nothing = _table(model, few, none, _nothing(model, few, choice), choice)
    order = np.argsort(
        np.concatenate([np.flatnonzero(long_enough)[result.rows.curve], np.flatnonzero(~long_enough)]), kind="stable"
    )
    rows = pa.Table.from_batches([table, nothing]).take(pa.array(order)).combine_chunks()
    return rows.to_batches()[0], reasons


def empty_table(model: nn.Module, choice: Choice) -> pa.RecordBatch:
    """The table of no light curves, whose columns and types are those of any."""
    return embed_curves(model, CurveBatch.from_arrays([], []), choice)[0]


@dataclass
class _Result:
    """What was computed of light curves.

    Attributes:
        rows: the rows.
        values: float32 (R, D), a vector a row; or (P, width) or (P,), a state or magnitude of each of P points.
        points: int64 (P,), in the latter case those points, row after row, as places in the light curves.
    """

    rows: Rows
    values: NDArray[np.float32]
    points: NDArray[np.int64] | None = None

    def curve_of_value(self) -> NDArray[np.int64]:
        """The light curve of each of the values."""
        return self.rows.curve if self.points is None else np.repeat(self.rows.curve, self.rows.points)

    def finite(self) -> NDArray[np.bool_]:
        """(R,) whether all numbers of a row are finite."""
        finite = np.asarray(np.isfinite(self.values).all(axis=tuple(range(1, self.values.ndim))))
        if self.points is None or not len(self.rows.curve):
            return finite
        return np.logical_and.reduceat(finite, offsets_of(self.rows.points)[:-1])


def _compute(model: nn.Module, curves: CurveBatch, periods: Periods | None, choice: Choice) -> _Result:
    """The result of clean light curves, none of them empty."""
    by_window = choice.windows == "all"
    taken = points_seen(curves, choice.windows, config_of(model).window)
    seen = curves.select_points(taken)
    rows = rows_of(model, seen, periods, choice.view, by_window)
    if choice.output == "embedding":
        return _Result(rows, vectors_of(model, curves, periods, choice.parts, choice.batch_size, choice.windows))
    values = states_of(model, seen, periods, choice.view, choice.batch_size, choice.output == "reconstruction")
    points = np.flatnonzero(taken)
    if by_window:
        order = points_by_window(model, seen, periods, choice.view)
        values, points = values[order], points[order]
    return _Result(rows, values, points)


def _nothing(model: nn.Module, curves: CurveBatch, choice: Choice) -> _Result:
    """Rows of NaN, one for each light curve."""
    rows = rows_of(model, curves, None, choice.view, by_window=False)
    if choice.output == "embedding":
        return _Result(rows, np.full((len(curves), dimensions(model, choice.parts)), np.nan, dtype=np.float32))
    shape = (curves.n_points, config_of(model).width)[: 1 if choice.output == "reconstruction" else 2]
    return _Result(rows, np.full(shape, np.nan, dtype=np.float32), np.arange(curves.n_points))


def _table(
    model: nn.Module, curves: CurveBatch, periods: Periods | None, result: _Result, choice: Choice
) -> pa.RecordBatch:
    rows = result.rows
    columns = {
        "id": pa.array(curves.ids[rows.curve], pa.string()),
        "band": pa.array(curves.band[rows.curve], pa.string()),
        "label": pa.array(curves.label[rows.curve], pa.string()),
        "n_points": pa.array(rows.points, pa.int64()),
    }
    if periods is not None:
        columns["period"] = pa.array(periods.period[rows.curve], pa.float64())
    if choice.windows == "all":
        columns["window"] = pa.array(rows.number, pa.int32())
    values = pa.array(result.values.reshape(-1), pa.float32())
    if result.values.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, result.values.shape[1])
    if result.points is not None:
        offsets = pa.array(offsets_of(rows.points).astype(np.int32))
        columns["time"] = pa.ListArray.from_arrays(offsets, pa.array(curves.time[result.points]))
        columns["mag"] = pa.ListArray.from_arrays(offsets, pa.array(curves.mag[result.points]))
        values = pa.ListArray.from_arrays(offsets, values)
    columns[choice.output] = values
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    if choice.output == "embedding":
        places = {part: [place.start, place.stop] for part, place in layout(model, choice.parts).items()}
        fields[-1] = fields[-1].with_metadata({"parts": json.dumps(places)})
    metadata = {"simulated": "true"} if curves.simulated else None
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata))


@contextmanager
def _arithmetic(model: nn.Module, precision: str | None) -> Iterator[None]:
    """Arithmetic of this precision for as long as the context lasts; None: as it is."""
    device = next(model.parameters()).device.type
    if precision is None:
        yield
    elif precision == "int8":
        with int8():
            yield
    else:
        with int8(enabled=False), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            yield
