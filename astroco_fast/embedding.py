"""Embeddings of light curves: one vector for each curve, with its id.

A vector is made of parts, which `layout` finds in it:

- time_mean, time_spread: the mean and the standard deviation of the encoder's states over all points of the curve, each
  seen in a window of the time view;
- folded_mean, folded_spread: the same in the folded view; a light curve without a period has the time view here, too;
- period: the period, its power and the shares of its harmonics (`astroco_fast.data.summary.period_numbers`);
- shape: Fourier parameters of the folded curve (`shape_numbers` there);
- magnitudes: amplitude, moments, number of points and span (`magnitude_numbers` there).

By default a model that was pretrained on the time view gives time_mean alone, the paper's mean pooling (section 3.1).
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from astroco_fast.data.batches import WindowBatches
from astroco_fast.data.clean import COPY, SHORT_CURVES, CleanConfig, because, clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import Periods, find_periods
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import ArraySource, Source, open_source
from astroco_fast.data.summary import (
    MAGNITUDE_NUMBERS,
    PERIOD_NUMBERS,
    SHAPE_NUMBERS,
    magnitude_numbers,
    period_numbers,
    shape_numbers,
)
from astroco_fast.data.views import Views
from astroco_fast.data.windows import view_table
from astroco_fast.errors import UserError
from astroco_fast.reference.config import ModelConfig

Part = Literal["time_mean", "time_spread", "folded_mean", "folded_spread", "period", "shape", "magnitudes"]
PARTS: tuple[Part, ...] = get_args(Part)
NOT_FINITE = "curves: embedding not finite"
# The spread of the states beside their mean earned nothing (docs/results/recipe.md).
_FOLDED: tuple[Part, ...] = ("folded_mean", "period", "shape", "magnitudes")
_DEFAULT: dict[Views, tuple[Part, ...]] = {"time": ("time_mean",), "folded": _FOLDED, "both": ("time_mean", *_FOLDED)}


def embed(
    model: nn.Module,
    curves: Any,
    *,
    batch_size: int = 256,
    columns: Columns | None = None,
    band: str | None = None,
    min_points: int = 1,
    parts: Sequence[str] | None = None,
) -> Any:
    """Embed light curves with a model in memory.

    Args:
        model: an encoder with AstroCo's call and `config.window`; used in evaluation mode, on its device.
        curves: whatever `astroco_fast.data.sources.open_source` takes: a list of (L, 3) arrays with columns time
            (days), magnitude, uncertainty; a pandas, Arrow or astropy table; the path of a file, a folder or a store.
        batch_size: windows in a forward pass.
        columns: names of columns that are not found by themselves.
        band: embed only this band.
        min_points: light curves with fewer good points get no embedding.
        parts: the vector's parts, in this order; by default those of the views that the model was pretrained on
            (`default_parts`).

    Returns:
        For a list of arrays: float32 (n, D), row i for curve i; NaN where a curve has too few good points. For
        everything else: a pandas frame with the columns id, band, label, n_points, period (days, NaN where none was
        found; only if a part needs periods) and embedding (a float32 array (D,) each), without the curves that have too
        few good points. A curve whose embedding is not finite, since its values are too large, for example, counts as
        one of these. Either way a warning counts them. Notes on the input and exact duplicates are warnings, too.

    Raises:
        UserError: input that cannot be read, an (id, band) that comes twice, an unknown part, or nothing left; see
            `open_source`.
    """
    dropped: Counter[str] = Counter()
    source = open_source(curves, columns, band)
    chosen = choose_parts(model, parts=parts)
    tables = list(embed_tables(model, source, dropped, batch_size, min_points, chosen))
    copies = [f"dropped {dropped[COPY]} {COPY}"] if dropped[COPY] else []
    for note in [*source.notes, *copies]:
        warnings.warn(note, stacklevel=2)
    if not tables and (dropped[NOT_FINITE] or not isinstance(source, ArraySource)):
        raise UserError(f"no light curve left to embed{because(dropped)}")
    if isinstance(source, ArraySource):
        return _aligned(tables, len(source), dimensions(model, chosen), dropped)
    if dropped[SHORT_CURVES] or dropped[NOT_FINITE]:
        warnings.warn(f"left out of the embeddings{because(dropped)}", stacklevel=2)
    return pa.Table.from_batches(tables).to_pandas()


def choose_parts(model: nn.Module, views: Views | None = None, parts: Sequence[str] | None = None) -> tuple[Part, ...]:
    """The parts of a vector: those given, else the views' own, else those of the views that the model was trained on.

    Raises:
        UserError: a part that does not exist or comes twice, or an empty list.
    """
    if parts is None:
        return _DEFAULT[views or cast(Views, getattr(model, "views", "time"))]
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"parts: no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"parts: name each part once, and at least one, of {', '.join(PARTS)}")
    return cast(tuple[Part, ...], tuple(parts))


def layout(model: nn.Module, parts: Sequence[str] | None = None) -> dict[str, slice]:
    """Where each part lies in a model's vectors: `vectors[:, layout(model)["period"]]`.

    Args:
        model: the encoder.
        parts: as given to `embed`.
    """
    width = _config(model).width
    sizes = {"period": PERIOD_NUMBERS, "shape": SHAPE_NUMBERS, "magnitudes": MAGNITUDE_NUMBERS}
    slices, first = {}, 0
    for part in choose_parts(model, parts=parts):
        slices[str(part)] = slice(first, first + sizes.get(part, width))
        first = slices[part].stop
    return slices


def dimensions(model: nn.Module, parts: Sequence[str] | None = None) -> int:
    """D, how many numbers a model's vectors have."""
    return max(part.stop for part in layout(model, parts).values())


def embed_tables(
    model: nn.Module,
    source: Source,
    dropped: Counter[str],
    batch_size: int = 256,
    min_points: int = 1,
    parts: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Embed a source in bounded memory.

    Args:
        model, parts: as for `embed`.
        source: the light curves.
        dropped: is increased by the points and curves that were left out, by reason; curves whose embedding is not
            finite are.
        batch_size: windows in a forward pass.
        min_points: light curves with fewer good points are left out.

    Yields:
        Arrow record batches with the columns id, band, label, n_points, period (if a part needs periods) and embedding,
        one row a light curve. The metadata of the embedding's field gives the place of each part as JSON, such as
        {"folded_mean": [0, 128], "period": [128, 156]}.
    """
    config = CleanConfig(min_points=min_points)
    chosen = choose_parts(model, parts=parts)
    seen = Seen()
    was_training = model.training
    model.eval()
    try:
        for raw in source.batches():
            seen.check(raw)
            batch, reasons = clean(raw, config)
            dropped.update(reasons)
            if len(batch):
                periods = _periods(batch, chosen)
                vectors = _vectors(model, batch, periods, batch_size, chosen)
                finite = np.isfinite(vectors).all(1)
                table = _table(batch, vectors, periods, layout(model, chosen))
                if not finite.all():
                    dropped[NOT_FINITE] += int(np.count_nonzero(~finite))
                    table = table.filter(pa.array(finite))
                if table.num_rows:
                    yield table
    finally:
        model.train(was_training)


def embed_batch(
    model: nn.Module, curves: CurveBatch, batch_size: int = 256, parts: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Embeddings (n, D) of n clean light curves, none of them empty. The model's mode and device stay as they are."""
    chosen = choose_parts(model, parts=parts)
    return _vectors(model, curves, _periods(curves, chosen), batch_size, chosen)


def _periods(curves: CurveBatch, parts: Sequence[Part]) -> Periods | None:
    """The light curves' periods if a part needs them: those that their store has, or else found now."""
    if not any(part.startswith(("folded", "period", "shape")) for part in parts):
        return None
    return find_periods(curves) if curves.periods is None else curves.periods


def _vectors(
    model: nn.Module, curves: CurveBatch, periods: Periods | None, batch_size: int, parts: Sequence[Part]
) -> NDArray[np.float32]:
    columns: dict[str, NDArray[np.float32]] = {}
    for view in ("time", "folded"):
        wanted = [part for part in parts if part.startswith(view)]
        if wanted:
            with_spread = f"{view}_spread" in wanted
            states = _pooled_states(model, curves, view, periods, batch_size, with_spread)
            columns.update(zip((f"{view}_mean", f"{view}_spread"), states, strict=False))
    if periods is not None:
        columns["period"] = period_numbers(periods)
        if "shape" in parts:
            columns["shape"] = shape_numbers(curves, periods)
    if "magnitudes" in parts:
        columns["magnitudes"] = magnitude_numbers(curves)
    return np.concatenate([columns[part] for part in parts], axis=1)


@torch.inference_mode()
def _pooled_states(
    model: nn.Module, curves: CurveBatch, view: Views, periods: Periods | None, batch_size: int, with_spread: bool
) -> list[NDArray[np.float32]]:
    """The mean over all points of each curve of the encoder's states, and if wanted their standard deviation, (n, D).

    A window's embedding is the mean over its points, so the curve's is that of its windows, weighted by their points.
    """
    size = _config(model).window
    device = next(model.parameters()).device
    periodic = np.zeros(len(curves), dtype=bool) if periods is None else periods.found
    table = view_table(curves.offsets, size, view, periodic)
    batches = WindowBatches(curves, table, size, seed=0, periods=periods)
    total, squares = (np.zeros((len(curves), _config(model).width)) for _ in range(2))
    for first in range(0, len(table), batch_size):
        windows = np.arange(first, min(first + batch_size, len(table)))
        batch = batches.assemble(windows, epoch=None)
        time, mag, err = (torch.from_numpy(x).to(device) for x in (batch.time, batch.mag, batch.err))
        out = model(time, mag, err, centered=True, lengths=torch.from_numpy(batch.lengths))
        vectors = out.embedding.double().cpu().numpy()
        np.add.at(total, table.curve[windows], vectors * batch.lengths[:, None])
        if with_spread:  # states are zero at padding
            np.add.at(squares, table.curve[windows], out.sequence.double().square().sum(1).cpu().numpy())
    mean = total / curves.lengths[:, None]
    if not with_spread:
        return [mean.astype(np.float32)]
    spread = np.sqrt(np.maximum(squares / curves.lengths[:, None] - mean**2, 0))
    return [mean.astype(np.float32), spread.astype(np.float32)]


def _table(
    curves: CurveBatch, vectors: NDArray[np.float32], periods: Periods | None, slices: dict[str, slice]
) -> pa.RecordBatch:
    columns = {
        "id": pa.array(curves.ids, pa.string()),
        "band": pa.array(curves.band, pa.string()),
        "label": pa.array(curves.label, pa.string()),
        "n_points": pa.array(curves.lengths),
    }
    if periods is not None:
        columns["period"] = pa.array(periods.period)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    places = {part: [place.start, place.stop] for part, place in slices.items()}
    fields[-1] = fields[-1].with_metadata({"parts": json.dumps(places)})
    metadata = {"simulated": "true"} if curves.simulated else None
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata))


def _aligned(tables: Sequence[pa.RecordBatch], n: int, size: int, dropped: Counter[str]) -> NDArray[np.float32]:
    """Embeddings (n, D = `size`) in the order of a list's n items, whose ids are their places in the list."""
    out = np.full((n, size), np.nan, dtype=np.float32)
    missing = n - sum(table.num_rows for table in tables)
    for table in tables:
        rows = [int(place) for place in table.column("id").to_pylist()]
        out[rows] = table.column("embedding").flatten().to_numpy().reshape(len(rows), -1)
    if missing:
        few, odd = missing - dropped[NOT_FINITE], dropped[NOT_FINITE]
        reasons = [f"{few} of {n} light curves have too few good points"] * (few > 0)
        reasons += [f"the embeddings of {odd} of {n} light curves are not finite"] * (odd > 0)
        warnings.warn(f"{', and '.join(reasons)}: their rows are NaN", stacklevel=3)
    return out


def _config(model: nn.Module) -> ModelConfig:
    return cast(ModelConfig, model.config)
