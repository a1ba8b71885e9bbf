"""Embeddings of light curves: from light curves of any kind to vectors with ids, piece by piece.

`embed` is what `model.embed` does; `astroco_fast.embed` is the command. `embedding_choice` has the settings,
`embedding_curves` what is done to some light curves, and `encoding` how a model computes a vector and of what parts.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import nn

from astroco_fast.data.batch_sources import ArraySource
from astroco_fast.data.clean import COPY, SHORT_CURVES, because
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.extent import progress_bar
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import Source, open_source
from astroco_fast.data.views import Views
from astroco_fast.embedding_choice import Choice, Output, Precision, Short, Windows, choose
from astroco_fast.embedding_curves import NO_RESULT, NOT_FINITE, embed_curves, empty_table, nothing_left
from astroco_fast.encoding import choose_parts, dimensions, layout, need_periods, search_periods, vectors_of
from astroco_fast.errors import UserError
from astroco_fast.kernels.prepared import recheck
from astroco_fast.machine import give_back_memory

__all__ = [
    "Choice",
    "choose",
    "choose_parts",
    "dimensions",
    "embed",
    "embed_batch",
    "embed_curves",
    "embed_tables",
    "empty_table",
    "layout",
]

# A batch of a source is embedded in pieces of at most this many light curves, and about this many points.
PIECE_CURVES = 4096
PIECE_POINTS = 100_000
# A batch of fewer leaves little memory to give back, which would take as long as the rest of Python's work on one star.
FEW_POINTS = 10_000


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
        precision: "fp32"; "bf16": about twice as fast where the processor multiplies bfloat16; "int8": faster still,
            and less exact, on CPUs with AVX512-VNNI and AVX512-BF16; "auto": bf16 or fp32, whichever is fast here, and
            inside `torch.autocast` what that says.
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
    if short is None and nothing_left(dropped, choice.short, sum(table.num_rows for table in tables)):
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
    with evaluating(model), progress_bar(source.extent, "embed", progress) as advance:
        for batch in source.batches(progress=progress):
            seen.check(batch)
            for piece in pieces(batch):
                table, reasons = embed_curves(model, piece, choice)
                dropped.update(reasons)
                advance(piece)
                yield table
            if batch.n_points >= FEW_POINTS:
                give_back_memory()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, for as long as the context lasts; then each part has its own mode again."""
    parts = [model]
    for part in parts:  # which grows; `modules()` takes as long as all that is done to read a star
        parts += (child for child in part._modules.values() if child is not None)
    training = [part for part in parts if part.training]
    if training:
        model.eval()
    recheck(parts)
    try:
        yield
    finally:
        for part in training:
            part.training = True


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


def embed_batch(
    model: nn.Module, curves: CurveBatch, batch_size: int = 256, parts: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Embeddings (n, D) of n clean light curves, none of them empty. The model's mode and device stay as they are."""
    chosen = choose_parts(model, parts=parts)
    periods = search_periods(curves, need_periods(chosen))
    return vectors_of(model, curves, periods, chosen, batch_size)


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
