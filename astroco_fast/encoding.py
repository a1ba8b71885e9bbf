"""What a model makes of clean light curves: vectors, the states of their points, or their magnitudes once more.

A vector is made of parts, which `layout` finds in it:

- time_mean, time_spread: the mean and the standard deviation of the encoder's states over the points of the curve, each
  seen in a window of the time view;
- folded_mean, folded_spread: the same in the folded view; a light curve without a period has the time view here, too;
- period: the period, its power and the shares of its harmonics (`astroco_fast.data.summary.period_numbers`);
- shape: Fourier parameters of the folded curve (`shape_numbers` there);
- magnitudes: amplitude, moments, number of points and span (`magnitude_numbers` there).

By default a model that was pretrained on the time view gives time_mean alone, the paper's mean pooling (section 3.1).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astroco_fast.data.batches import WindowBatches
from astroco_fast.data.copies import Arrivals, to_device
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import Periods, find_periods
from astroco_fast.data.summary import (
    MAGNITUDE_NUMBERS,
    PERIOD_NUMBERS,
    SHAPE_NUMBERS,
    magnitude_numbers,
    period_numbers,
    shape_numbers,
)
from astroco_fast.data.views import Views
from astroco_fast.data.windows import NOT_DEALT, view_table
from astroco_fast.errors import UserError
from astroco_fast.reference.config import ModelConfig
from astroco_fast.reference.encoder import AstroCoOutput

Part = Literal["time_mean", "time_spread", "folded_mean", "folded_spread", "period", "shape", "magnitudes"]
PARTS: tuple[Part, ...] = get_args(Part)
View = Literal["time", "folded"]
# The spread of the states beside their mean earned nothing (docs/results/recipe.md).
_FOLDED: tuple[Part, ...] = ("folded_mean", "period", "shape", "magnitudes")
_DEFAULT: dict[Views, tuple[Part, ...]] = {"time": ("time_mean",), "folded": _FOLDED, "both": ("time_mean", *_FOLDED)}


def choose_parts(model: nn.Module, views: Views | None = None, parts: Sequence[str] | None = None) -> tuple[Part, ...]:
    """The parts of a vector: those given, else the views' own, else those of the views that the model was trained on.

    Raises:
        UserError: a part that does not exist or comes twice, or an empty list.
    """
    if parts is None:
        return _DEFAULT[views or views_of(model)]
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"parts: no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"parts: name each part once, and at least one, of {', '.join(PARTS)}")
    return cast(tuple[Part, ...], tuple(parts))


def views_of(model: nn.Module) -> Views:
    """The views of light curves that a model was pretrained on."""
    return cast(Views, getattr(model, "views", "time"))


def layout(model: nn.Module, parts: Sequence[str] | None = None) -> dict[str, slice]:
    """Where each part lies in a model's vectors: `vectors[:, layout(model)["period"]]`.

    Args:
        model: the encoder.
        parts: as given to `embed`.
    """
    sizes = {"period": PERIOD_NUMBERS, "shape": SHAPE_NUMBERS, "magnitudes": MAGNITUDE_NUMBERS}
    slices, first = {}, 0
    for part in choose_parts(model, parts=parts):
        slices[str(part)] = slice(first, first + sizes.get(part, config_of(model).width))
        first = slices[part].stop
    return slices


def dimensions(model: nn.Module, parts: Sequence[str] | None = None) -> int:
    """D, how many numbers a model's vectors have."""
    return max(part.stop for part in layout(model, parts).values())


def config_of(model: nn.Module) -> ModelConfig:
    """A model's hyperparameters, of which its width and its window are needed here."""
    return cast(ModelConfig, model.config)


class Rows(NamedTuple):
    """R rows of results: each is of a light curve, or of a window of one.

    Attributes:
        curve: int64 (R,), the light curve of each row, never falling.
        number: int32 (R,), the window's number among those of its light curve; 0 for a whole light curve.
        points: int64 (R,), how many points a row is of.
    """

    curve: NDArray[np.int64]
    number: NDArray[np.int32]
    points: NDArray[np.int64]


def rows_of(model: nn.Module, curves: CurveBatch, periods: Periods | None, view: View, by_window: bool) -> Rows:
    """The rows of light curves: one each, or one for each of their windows in a view."""
    if by_window:
        windows = _Windows(model, curves, periods, view)
        return Rows(windows.table.curve, windows.number, windows.table.length.astype(np.int64))
    return Rows(np.arange(len(curves)), np.zeros(len(curves), dtype=np.int32), curves.lengths)


def need_periods(parts: Sequence[Part]) -> bool:
    """Whether parts of a vector depend on the light curve's period."""
    return any(part.startswith(("folded", "period", "shape")) for part in parts)


def search_periods(curves: CurveBatch, needed: bool) -> Periods | None:
    """The light curves' periods if they are needed: those that their store has, or else found now."""
    if not needed:
        return None
    if curves.periods is not None:
        return curves.periods
    return find_periods(curves) if len(curves) else Periods.empty(0)


def points_seen(curves: CurveBatch, windows: str, size: int) -> NDArray[np.bool_]:
    """(P,) which points a policy for long light curves takes: the `first` or `last` `size` of each curve, or all."""
    place = np.arange(curves.n_points) - np.repeat(curves.offsets[:-1], curves.lengths)
    if windows == "first":
        return place < size
    if windows == "last":
        return place >= np.repeat(curves.lengths, curves.lengths) - size
    return np.ones(curves.n_points, dtype=bool)


def vectors_of(
    model: nn.Module,
    curves: CurveBatch,
    periods: Periods | None,
    parts: Sequence[Part],
    batch_size: int,
    windows: str = "mean",
) -> NDArray[np.float32]:
    """Vectors of clean light curves, none of them empty: float32 (R, D), in the order of `rows_of`.

    Args:
        model: the encoder.
        curves: n light curves.
        periods: their periods, where a part needs them.
        parts: the vector's parts.
        batch_size: windows in a forward pass.
        windows: "mean" over a curve's windows, weighted by their points, "first" or "last" of them, or "all". The parts
            `period`, `shape` and `magnitudes` are of the whole light curve in any case.
    """
    seen = curves.select_points(points_seen(curves, windows, config_of(model).window))
    by_window = windows == "all"
    columns: dict[str, NDArray[np.float32]] = {}
    for view in get_args(View):
        wanted = [part for part in parts if part.startswith(view)]
        if wanted:
            with_spread = f"{view}_spread" in wanted
            states = _pooled_states(model, seen, periods, view, batch_size, with_spread, by_window)
            columns.update(zip((f"{view}_mean", f"{view}_spread"), states, strict=False))
    curve = rows_of(model, seen, periods, first_view(parts), by_window).curve
    if "period" in parts and periods is not None:
        columns["period"] = period_numbers(periods)[curve]
    if "shape" in parts and periods is not None:
        columns["shape"] = shape_numbers(curves, periods)[curve]
    if "magnitudes" in parts:
        columns["magnitudes"] = magnitude_numbers(curves)[curve]
    return np.concatenate([columns[part] for part in parts], axis=1)


def first_view(parts: Sequence[Part]) -> View:
    """The view of the first part that has one; the time view if none has."""
    return "folded" if next((p for p in parts if p.startswith(get_args(View))), "").startswith("folded") else "time"


def states_of(
    model: nn.Module, curves: CurveBatch, periods: Periods | None, view: View, batch_size: int, reconstruct: bool
) -> NDArray[np.float32]:
    """What a model gives for each point of clean light curves: float32 (P, width), row p for point p.

    Args:
        model: the encoder.
        curves: light curves with P points in all.
        periods: their periods, where the view is folded.
        view: the view in which the points are seen.
        batch_size: windows in a forward pass.
        reconstruct: give the reconstructed magnitudes, (P,), instead of states. The model gives them relative to the
            mean of a window, which is added here.
    """
    values = np.empty(curves.n_points if reconstruct else (curves.n_points, config_of(model).width), dtype=np.float32)
    windows = _Windows(model, curves, periods, view)

    def wanted(out: AstroCoOutput) -> list[Tensor]:
        return [(out.reconstruction if reconstruct else out.sequence).float()]

    for chosen, (given,) in windows.passes(batch_size, wanted):
        for row, points in zip(given, windows.points(chosen), strict=True):
            middle = curves.mag[points].mean(dtype=np.float64) if reconstruct else 0.0
            values[points] = row[: len(points)] + np.float32(middle)
    return values


def points_by_window(model: nn.Module, curves: CurveBatch, periods: Periods | None, view: View) -> NDArray[np.int64]:
    """The points (P,) of light curves, window after window in the order of `rows_of`, by time inside a window."""
    windows = _Windows(model, curves, periods, view)
    points = windows.points(np.arange(len(windows.table)))
    return np.concatenate([np.empty(0, dtype=np.int64), *map(np.sort, points)])


def _pooled_states(
    model: nn.Module,
    curves: CurveBatch,
    periods: Periods | None,
    view: View,
    batch_size: int,
    with_spread: bool,
    by_window: bool,
) -> list[NDArray[np.float32]]:
    """The mean of the encoder's states over the points of each row, and if wanted their standard deviation, (R, width).

    A window's embedding is the mean over its points, so the curve's is that of its windows, weighted by their points.
    """
    windows = _Windows(model, curves, periods, view)
    length = windows.table.length
    row, points = (np.arange(len(length)), length) if by_window else (windows.table.curve, curves.lengths)
    total, squares = (np.zeros((len(points), config_of(model).width)) for _ in range(2))

    def wanted(out: AstroCoOutput) -> list[Tensor]:
        # States are zero at padding.
        return [out.embedding.double(), *([out.sequence.double().square().sum(1)] if with_spread else [])]

    for chosen, (vectors, *of_points) in windows.passes(batch_size, wanted):
        np.add.at(total, row[chosen], vectors * length[chosen, None])
        for values in of_points:
            np.add.at(squares, row[chosen], values)
    mean = total / points[:, None]
    if not with_spread:
        return [mean.astype(np.float32)]
    spread = np.sqrt(np.maximum(squares / points[:, None] - mean**2, 0))
    return [mean.astype(np.float32), spread.astype(np.float32)]


class _Windows:
    """The windows of light curves in one view, and a model's passes over them.

    Attributes:
        table: W windows, curve by curve.
        number: int32 (W,), each window's number among those of its light curve.
    """

    def __init__(self, model: nn.Module, curves: CurveBatch, periods: Periods | None, view: View) -> None:
        size = config_of(model).window
        periodic = np.zeros(len(curves), dtype=bool) if periods is None else periods.found
        table = view_table(curves.offsets, size, view, periodic)
        number = np.where(table.part == NOT_DEALT, (table.start - curves.offsets[table.curve]) // size, table.part)
        order = np.lexsort((number, table.curve))
        self.table, self.number = table.select(order), number[order].astype(np.int32)
        self._model = model
        self._batches = WindowBatches(curves, self.table, size, seed=0, periods=periods)

    def points(self, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The points of some windows, in the order in which the model sees them."""
        places = self._batches.points(chosen)
        return [place[:length] for place, length in zip(places, self.table.length[chosen], strict=True)]

    def passes(
        self, batch_size: int, wanted: Callable[[AstroCoOutput], Sequence[Tensor]]
    ) -> Iterator[tuple[NDArray[np.int64], list[NDArray[Any]]]]:
        """The places (B,) of the windows of each forward pass, `batch_size` at most, and what is `wanted` of it.

        A pass's results are read when the next pass has been launched, so that a GPU always has work.
        """
        device = next(self._model.parameters()).device
        before: tuple[NDArray[np.int64], Arrivals] | None = None
        for first in range(0, len(self.table), batch_size):
            chosen = np.arange(first, min(first + batch_size, len(self.table)))
            batch = self._batches.assemble(chosen, epoch=None)
            time, mag, err = (to_device(x, device) for x in (batch.time, batch.mag, batch.err))
            with torch.inference_mode():
                out = self._model(time, mag, err, centered=True, lengths=torch.from_numpy(batch.lengths))
                arrivals = Arrivals(wanted(out))
            if before is not None:
                yield before[0], before[1].arrays()
            before = chosen, arrivals
        if before is not None:
            yield before[0], before[1].arrays()
