"""Embeddings of light curves: one vector a curve, with its id.

A curve longer than a window is cut into sequential windows, and its vector is the mean of their embeddings weighted by
their points: the mean over all of its points. As a command: `astroco embed IN OUT --model FOLDER`.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from astroco_fast import commands
from astroco_fast.data.batches import WindowBatches
from astroco_fast.data.clean import SHORT_CURVES, CleanConfig, clean
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.readers import ArraySource, Source, open_source
from astroco_fast.data.seen import Seen
from astroco_fast.data.split import star_hash
from astroco_fast.data.windows import window_table
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file
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
        curves: whatever `astroco_fast.data.readers.read_curves` takes: a list of (L, 3) arrays with columns time
            (days), magnitude, uncertainty; a pandas, Arrow or astropy table; the path of a file, a folder or a store.
        batch_size: windows a forward pass.
        columns: which columns hold what; default by alias.
        band: only this band.
        min_points: curves with fewer good points have no embedding.

    Returns:
        For a list of arrays: float32 (n, D), row i for curve i; NaN where a curve has too few good points, with a
        warning that counts them. For everything else: a pandas frame with the columns id, band, label, n_points and
        embedding (a float32 array (D,) each), without the curves that have too few good points, with a warning that
        counts them.

    Raises:
        UserError: input that cannot be read, an (id, band) that comes twice, or nothing left; see `read_curves`.
    """
    dropped: Counter[str] = Counter()
    source = open_source(curves, columns, band)
    tables = list(embed_tables(model, source, dropped, batch_size, min_points))
    if isinstance(source, ArraySource):
        return _aligned(tables, len(curves), model)
    if not tables:
        raise UserError(f"no light curve left to embed{_because(dropped)}")
    if dropped[SHORT_CURVES]:
        warnings.warn(f"left out of the embeddings{_because(dropped)}", stacklevel=2)
    return pa.Table.from_batches(tables).to_pandas()


def embed_tables(
    model: nn.Module, source: Source, dropped: Counter[str], batch_size: int = 256, min_points: int = 1
) -> Iterator[pa.RecordBatch]:
    """The rows of `embed` as Arrow batches, in bounded memory; adds to `dropped` what was left out, by reason."""
    config = CleanConfig(min_points=min_points)
    seen = Seen()
    was_training = model.training
    model.eval()
    try:
        for raw in source.batches():
            seen.check(raw, star_hash(raw.ids))
            batch, reasons = clean(raw, config)
            dropped.update(reasons)
            if len(batch):
                yield _table(batch, embed_batch(model, batch, batch_size))
    finally:
        model.train(was_training)


@torch.inference_mode()
def embed_batch(model: nn.Module, curves: CurveBatch, batch_size: int = 256) -> NDArray[np.float32]:
    """Embeddings (n, D) of n clean light curves, none of them empty; the model is taken as it is (mode, device)."""
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
    """Rows put back to the places of the list's items, whose ids are their places."""
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


def _because(dropped: Counter[str]) -> str:
    return f"; dropped {', '.join(f'{count} {reason}' for reason, count in dropped.items())}" if dropped else ""


@dataclass
class EmbedConfig:
    """Embed light curves.

    Args:
        source: table or folder of light curves (CSV, Parquet, FITS), or a store.
        out: Parquet file to write: id, band, label, n_points, embedding, a row a light curve; replaced if it exists.
        model: folder of saved weights, such as RUN/checkpoints/best, or a Hub id.
        batch_size: windows a forward pass.
        band: only this band.
        columns: which columns hold what; default by alias.
        min_points: curves with fewer good points are left out, and counted.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.
    """

    source: str
    out: str
    model: str
    batch_size: int = 256
    band: str | None = None
    columns: Columns = field(default_factory=Columns)
    min_points: int = 1
    device: str = "auto"


def write_embeddings(config: EmbedConfig) -> int:
    """Run the command; gives the number of light curves embedded. The file appears once it is whole."""
    from astroco_fast.pretrain.weights import load_model

    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {config.batch_size}")
    out = Path(config.out)
    if out.exists() and Path(config.source).exists() and out.samefile(config.source):
        raise UserError(f"{out}: holds the light curves; choose another output")
    model = load_model(config.model).to(pick_device(config.device))
    dropped: Counter[str] = Counter()
    rows = 0
    with whole_file(out) as partial, ExitStack() as stack:
        writer = None
        progress = stack.enter_context(tqdm(desc="embed", unit=" curves", disable=None))
        source = open_source(config.source, config.columns, config.band)
        for table in embed_tables(model, source, dropped, config.batch_size, config.min_points):
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, table.schema))
            writer.write_batch(table)
            rows += table.num_rows
            progress.update(table.num_rows)
        if writer is None:
            raise UserError(f"{config.source}: no light curve left to embed{_because(dropped)}")
    print(f"{out}: {rows} light curves, {model.config.width} numbers each{_because(dropped)}")
    return rows


def pick_device(name: str) -> torch.device:
    """The device of that name; auto: a GPU if there is one. Raises UserError where it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def main(argv: Sequence[str] | None = None) -> int:
    """The command `astroco embed`."""

    def body() -> int:
        write_embeddings(commands.parse(EmbedConfig, "astroco embed", "Embed light curves.", argv, ("source", "out")))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
