"""Embeddings of light curves: from light curves of any kind to vectors with ids, piece by piece.

`embed` is what `model.embed` does; `astroco_fast.embed` is the command. What a vector is made of, and how a model
computes it, is in `astroco_fast.encoding`.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from astroco_fast.data.batch_sources import ArraySource
from astroco_fast.data.clean import COPY, SHORT_CURVES, CleanConfig, because, clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch, offsets_of
from astroco_fast.data.periods import Periods
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import Source, open_source
from astroco_fast.data.views import Views
from astroco_fast.encoding import (
    Part,
    Rows,
    View,
    choose_parts,
    config_of,
    dimensions,
    first_view,
    layout,
    need_periods,
    points_by_window,
    points_seen,
    rows_of,
    search_periods,
    states_of,
    vectors_of,
    views_of,
)
from astroco_fast.errors import UserError
from astroco_fast.machine import pick_precision

Windows = Literal["mean", "first", "last", "all"]
Output = Literal["embedding", "sequence", "reconstruction"]
Short = Literal["nan", "drop"]
Precision = Literal["auto", "fp32", "bf16"]

NOT_FINITE = "curves: embedding not finite"
NO_RESULT = (SHORT_CURVES, NOT_FINITE)  # reasons why a light curve has no result

# A batch of a source is embedded in pieces of at most this many light curves, and about this many points.
PIECE_CURVES = 4096
PIECE_POINTS = 100_000


@dataclass(frozen=True)
class Choice:
    """What is computed of light curves, and how; `choose` makes it.

    Attributes:
        output: vectors, states or reconstructed magnitudes.
        windows: the policy for light curves longer than a window.
        parts: the parts of vectors.
        view: the view of states and reconstructed magnitudes.
        min_points: light curves with fewer good points have no result.
        short: what becomes of light curves without a result.
        precision: the arithmetic of the encoder; None: as the caller has set `torch.autocast`.
        batch_size: windows in a forward pass.
    """

    output: Output
    windows: Windows
    parts: tuple[Part, ...]
    view: View
    min_points: int
    short: Short
    precision: Literal["fp32", "bf16"] | None
    batch_size: int
    cleaning: CleanConfig = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cleaning", CleanConfig(min_points=self.min_points))

    @property
    def needs_periods(self) -> bool:
        """Whether the result depends on the light curves' periods."""
        if self.output != "embedding":
            return self.view == "folded"
        return need_periods(self.parts)


def choose(
    model: nn.Module,
    *,
    min_points: int = 1,
    short: str = "drop",
    windows: str = "mean",
    output: str = "embedding",
    views: str | None = None,
    parts: Sequence[str] | None = None,
    precision: str = "auto",
    batch_size: int = 256,
) -> Choice:
    """Check the arguments of `embed`, which describes them, and fill in what they leave to the model and the machine.

    Raises:
        UserError: names the argument that is wrong.
    """
    wanted = {
        "short": (short, Short),
        "windows": (windows, Windows),
        "output": (output, Output),
        "views": (views, Views),
        "precision": (precision, Precision),
    }
    for name, (value, kind) in wanted.items():
        if value not in get_args(kind) and not (name == "views" and value is None):
            raise UserError(f"{name}: there is no {value!r}; there are: {', '.join(get_args(kind))}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    chosen = choose_parts(model, views, parts)  # type: ignore[arg-type]
    view = views or views_of(model)
    if output == "embedding":
        view = first_view(chosen)
    elif parts is not None:
        raise UserError(f"parts: only vectors have parts; leave it out for output {output!r}")
    elif view == "both":
        raise UserError(f"views: output {output!r} is of one view; give views 'time' or 'folded'")
    device = next(model.parameters()).device
    return Choice(output, windows, chosen, view, min_points, short, pick_precision(precision, device), batch_size)  # type: ignore[arg-type]


def embed(
    model: nn.Module,
    curves: Any,
    *,
    columns: Columns | None = None,
    band: str | None = None,
    min_points: int = 1,
    short: Short | None = None,
    windows: Windows = "mean",
    output: Output = "embedding",
    views: Views | None = None,
    parts: Sequence[str] | None = None,
    precision: Precision = "auto",
    batch_size: int = 256,
    progress: bool = False,
) -> Any:
    """Embed light curves. The command `astroco embed` takes the same settings, and is for inputs larger than memory.

    A light curve's result does not depend, in any bit, on which others come with it, on their order, or on
    `batch_size`.

    Args:
        model: an encoder with AstroCo's call and `config.window`; used in evaluation mode, on its device.
        curves: whatever `astroco_fast.data.sources.open_source` takes: a list of (L, 3) arrays with columns time
            (days), magnitude, uncertainty; a pandas, Arrow or astropy table; the path of a file, a folder or a store.
        columns: names of columns that are not found by themselves.
        band: embed only this band.
        min_points: light curves with fewer good points have no result.
        short: what becomes of a light curve without a result, because it has too few good points or numbers so large
            that its result is not finite: "nan", a row of NaN, or "drop", no row. A warning counts them. None: "nan"
            for a list of arrays, whose rows stay aligned with it; "drop" for all else, where it is an error if none of
            the light curves is left.
        windows: the policy for light curves longer than the model's window (`model.config.window` points). "mean": the
            mean over all windows, weighted by their points; "first", "last": only the curve's first or last points, as
            many as fill a window; "all": a row for each window. The parts `period`, `shape` and `magnitudes` are of
            the whole light curve in any case.
        output: "embedding": one vector a row; "sequence": the encoder's state of each point; "reconstruction": the
            magnitude of each point as the model gives it back.
        views: "time", "folded" or "both": how the model sees the light curves, and so the default parts; None: as it
            was pretrained. Sequences and reconstructions are of one view.
        parts: the vector's parts, in this order (`astroco_fast.encoding` lists them); None: those of the views.
        precision: "fp32"; "bf16": about twice as fast where the processor multiplies bfloat16; "auto": bf16 there, fp32
            elsewhere, and inside `torch.autocast` what that says.
        batch_size: windows in a forward pass, which take memory.
        progress: show a progress bar, on a terminal.

    Returns:
        For a list of arrays, vectors and one row a curve: float32 (n, D), row i for curve i ("drop": only the curves
        with a result).

        For everything else: a pandas frame, one row a light curve or window, in the source's order, with the columns

        - id, band, label: str, the last two "" where unknown; a list's ids are "0", "1", ...;
        - n_points: int64, how many good points the row is of;
        - period: float64, days, NaN where none was found; only if the result depends on periods;
        - window: int32, from 0, with windows "all";
        - embedding: a float32 array (D,) each; or for the other outputs
        - time, mag: float64 (L,), days, and float32 (L,), magnitudes, of the good points in time order, and
        - sequence: float32 (L, width), or reconstruction: float32 (L,), magnitudes.

        Input without light curves gives the same columns and types without rows; an empty list, float32 (0, D).

    Raises:
        UserError: input that cannot be read, an (id, band) that comes twice, an argument that is out of range, or
            nothing left; see `open_source`.
    """
    source = open_source(curves, columns, band)
    is_list = isinstance(source, ArraySource)
    choice = choose(
        model, min_points=min_points, short=short or ("nan" if is_list else "drop"), windows=windows,
        output=output, views=views, parts=parts, precision=precision, batch_size=batch_size,
    )  # fmt: skip
    dropped: Counter[str] = Counter()
    tables = list(embed_tables(model, source, choice, dropped, progress))
    copies = [f"dropped {dropped[COPY]} {COPY}"] if dropped[COPY] else []
    for note in [*source.notes, *copies]:
        warnings.warn(note, stacklevel=2)
    without = sum(dropped[reason] for reason in NO_RESULT)
    rows = sum(table.num_rows for table in tables)
    lost = without and (rows == 0 if choice.short == "drop" else dropped[NOT_FINITE] and rows == without)
    if lost and short is None:
        raise UserError(f"no light curve left to embed{because(dropped)}")
    table = pa.Table.from_batches(tables or [empty_table(model, choice)])
    if without:
        warnings.warn(without_result(dropped, choice.short, curves_in(table)), stacklevel=2)
    if is_list and output == "embedding" and windows != "all":
        return _values(table["embedding"])
    return _frame(table, output)


def curves_in(table: Any) -> int:
    """The number of light curves in a table of results."""
    return int(pc.sum(pc.equal(table["window"], 0)).as_py() or 0) if "window" in table.schema.names else table.num_rows


def without_result(dropped: Counter[str], short: Short, curves: int) -> str:
    """The remark on light curves without a result, of so many that have a row."""
    if short == "drop":
        return f"left out of the embeddings{because(dropped)}"
    kinds = ((SHORT_CURVES, "have too few good points"), (NOT_FINITE, "have an embedding that is not finite"))
    reasons = [f"{dropped[reason]:,} of {curves:,} light curves {words}" for reason, words in kinds if dropped[reason]]
    return f"{', and '.join(reasons)}: their rows are NaN"


def embed_tables(
    model: nn.Module, source: Source, choice: Choice, dropped: Counter[str], progress: bool = False
) -> Iterator[pa.RecordBatch]:
    """Embed a source in bounded memory.

    Args:
        model: the encoder; used in evaluation mode, on its device.
        source: the light curves.
        choice: what to compute.
        dropped: is increased by the points and light curves that have no result, by reason.
        progress: show a progress bar, on a terminal.

    Yields:
        Arrow record batches, as `embed_curves` returns them.
    """
    seen = Seen()
    with evaluating(model), tqdm(desc="embed", unit=" curves", disable=None if progress else True) as bar:
        for batch in source.batches(progress=progress):
            seen.check(batch)
            for piece in pieces(batch):
                table, reasons = embed_curves(model, piece, choice)
                dropped.update(reasons)
                bar.update(len(piece))
                yield table


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, for as long as the context lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def pieces(batch: CurveBatch) -> Iterator[CurveBatch]:
    """The light curves of a batch in pieces, in order, at least one; they depend on the batch alone."""
    if len(batch) <= PIECE_CURVES and batch.n_points <= PIECE_POINTS:
        yield batch
        return
    curve, before = np.arange(len(batch)), batch.offsets[:-1]
    _, piece = np.unique(np.stack([curve // PIECE_CURVES, before // PIECE_POINTS]), axis=1, return_inverse=True)
    piece = piece.reshape(-1)
    for number in range(int(piece[-1]) + 1):
        yield batch.select(piece == number)


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
    curves, few = kept.select(long_enough), kept.select(~long_enough)
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
    if not len(few):
        return table, reasons
    none = Periods.empty(len(few)) if choice.needs_periods else None
    nothing = _table(model, few, none, _nothing(model, few, choice), choice)
    order = np.argsort(
        np.concatenate([np.flatnonzero(long_enough)[result.rows.curve], np.flatnonzero(~long_enough)]), kind="stable"
    )
    rows = pa.Table.from_batches([table, nothing]).take(pa.array(order)).combine_chunks()
    return rows.to_batches()[0], reasons


def embed_batch(
    model: nn.Module, curves: CurveBatch, batch_size: int = 256, parts: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Embeddings (n, D) of n clean light curves, none of them empty. The model's mode and device stay as they are."""
    chosen = choose_parts(model, parts=parts)
    periods = search_periods(curves, need_periods(chosen))
    return vectors_of(model, curves, periods, chosen, batch_size)


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


def _values(column: Any) -> NDArray[Any]:
    """The items of a column of lists, one after the other: (N,) numbers, or (N, width) of lists of a fixed size."""
    array = column.combine_chunks()
    array = array.flatten() if pa.types.is_list(array.type) else array
    if not pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), array.type.list_size)


def _frame(table: pa.Table, output: Output) -> Any:
    """The table as a pandas frame, in which a cell of a column of lists is an array."""
    if output == "embedding":
        return table.to_pandas()
    lists = [name for name in table.column_names if pa.types.is_list(table.schema.field(name).type)]
    frame = table.drop_columns(lists).to_pandas()
    cuts = np.cumsum(frame["n_points"].to_numpy())[:-1]
    for name in lists:
        cells = np.split(_values(table[name]), cuts) if len(frame) else []
        frame[name] = np.fromiter(cells, dtype=object, count=len(frame))
    return frame


@contextmanager
def _arithmetic(model: nn.Module, precision: str | None) -> Iterator[None]:
    """Autocast to bfloat16, or none, for as long as the context lasts; None: as it is."""
    device = next(model.parameters()).device.type
    with nullcontext() if precision is None else torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        yield
