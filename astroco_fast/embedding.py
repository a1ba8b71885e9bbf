"""Embeddings of light curves: one vector for each curve, with its id.

A curve that is longer than a window is cut into sequential windows. Its vector is the mean of their embeddings,
weighted by their numbers of points, which is the mean over all points of the curve.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from astroco_fast.data.batches import WindowBatches
from astroco_fast.data.clean import SHORT_CURVES, CleanConfig, clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import ArraySource, Source, open_source
from astroco_fast.data.windows import window_table
from astroco_fast.errors import UserError
from astroco_fast.reference.config import ModelConfig


def embed(
    model: nn.Module,
    curves: Any,
    *,
    batch_size: int = 256,
    columns: Columns | None = None,
    band: str | None = None,
    min_points: int = 1,
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

    Returns:
        For a list of arrays: float32 (n, D), row i for curve i; NaN where a curve has too few good points. For
        everything else: a pandas frame with the columns id, band, label, n_points and embedding (a float32 array (D,)
        each), without the curves that have too few good points. Either way a warning counts these curves.

    Raises:
        UserError: input that cannot be read, an (id, band) that comes twice, or nothing left; see `open_source`.
    """
    dropped: Counter[str] = Counter()
    source = open_source(curves, columns, band)
    tables = list(embed_tables(model, source, dropped, batch_size, min_points))
    if isinstance(source, ArraySource):
        return _aligned(tables, len(curves), model)
    if not tables:
        raise UserError(f"no light curve left to embed{because(dropped)}")
    if dropped[SHORT_CURVES]:
        warnings.warn(f"left out of the embeddings{because(dropped)}", stacklevel=2)
    return pa.Table.from_batches(tables).to_pandas()


def embed_tables(
    model: nn.Module, source: Source, dropped: Counter[str], batch_size: int = 256, min_points: int = 1
) -> Iterator[pa.RecordBatch]:
    """Embed a source in bounded memory.

    Args:
        model: as for `embed`.
        source: the light curves.
        dropped: is increased by the points and curves that were left out, by reason.
        batch_size: windows in a forward pass.
        min_points: light curves with fewer good points are left out.

    Yields:
        Arrow record batches with the columns id, band, label, n_points and embedding, one row a light curve.
    """
    config = CleanConfig(min_points=min_points)
    seen = Seen()
    was_training = model.training
    model.eval()
    try:
        for raw in source.batches():
            seen.check(raw)
            batch, reasons = clean(raw, config)
            dropped.update(reasons)
            if len(batch):
                yield _table(batch, embed_batch(model, batch, batch_size))
    finally:
        model.train(was_training)


@torch.inference_mode()
def embed_batch(model: nn.Module, curves: CurveBatch, batch_size: int = 256) -> NDArray[np.float32]:
    """Embeddings (n, D) of n clean light curves, none of them empty. The model's mode and device stay as they are."""
    size = _config(model).window
    device = next(model.parameters()).device
    table = window_table(curves.offsets, size)
    batches = WindowBatches(curves, table, size, seed=0)
    total: NDArray[np.float64] | None = None
    for first in range(0, len(table), batch_size):
        windows = np.arange(first, min(first + batch_size, len(table)))
        batch = batches.assemble(windows, epoch=None)
        time, mag, err = (torch.from_numpy(x).to(device) for x in (batch.time, batch.mag, batch.err))
        out = model(time, mag, err, centered=True, lengths=torch.from_numpy(batch.lengths))
        vectors = out.embedding.double().cpu().numpy()
        if total is None:
            total = np.zeros((len(curves), vectors.shape[1]))
        np.add.at(total, table.curve[windows], vectors * batch.lengths[:, None])
    assert total is not None
    return (total / curves.lengths[:, None]).astype(np.float32)


def _table(curves: CurveBatch, vectors: NDArray[np.float32]) -> pa.RecordBatch:
    columns = {
        "id": pa.array(curves.ids, pa.string()),
        "band": pa.array(curves.band, pa.string()),
        "label": pa.array(curves.label, pa.string()),
        "n_points": pa.array(curves.lengths),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    metadata = {"simulated": "true"} if curves.simulated else None
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns), metadata=metadata)


def _aligned(tables: Sequence[pa.RecordBatch], n: int, model: nn.Module) -> NDArray[np.float32]:
    """Embeddings (n, D) in the order of a list's n items, whose ids are their places in the list."""
    out = np.full((n, _config(model).width), np.nan, dtype=np.float32)
    missing = n - sum(table.num_rows for table in tables)
    for table in tables:
        rows = [int(place) for place in table.column("id").to_pylist()]
        out[rows] = table.column("embedding").flatten().to_numpy().reshape(len(rows), -1)
    if missing:
        warnings.warn(f"{missing} of {n} light curves have too few good points: their rows are NaN", stacklevel=3)
    return out


def _config(model: nn.Module) -> ModelConfig:
    return cast(ModelConfig, model.config)


def because(dropped: Counter[str]) -> str:
    """The end of a message that says what was left out, and why; empty if nothing was."""
    return f"; dropped {', '.join(f'{count} {reason}' for reason, count in dropped.items())}" if dropped else ""
