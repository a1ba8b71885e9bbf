"""A simulated survey as a Parquet table."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.simulate import SURVEY, Float64Array, simulate_portions
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("survey", pa.string()),
        ("band", pa.string()),
        ("label", pa.string()),
        ("period", pa.float64()),
        ("mjd", pa.list_(pa.float64())),
        ("mag", pa.list_(pa.float32())),
        ("err", pa.list_(pa.float32())),
    ]
)


def write_table(path: Path, n_stars: int, seed: int) -> int:
    """Write a simulated survey as a Parquet table, one row a star. The file appears once it is whole.

    Columns: id, survey ("simulated"), band, label, period (true, days), mjd (list of float64), mag, err (lists of
    float32). The file's metadata hold `simulated: true` and the seed.

    Returns:
        The number of points of all stars together.

    Raises:
        UserError: `path` exists already, or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already: remove it, or choose another name")
    schema = _SCHEMA.with_metadata({"simulated": "true", "seed": str(seed)})
    points = 0
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for batch, period in portions(n_stars, seed):
            offsets = pa.array(batch.offsets.astype(np.int32))
            lists = [pa.ListArray.from_arrays(offsets, pa.array(v)) for v in (batch.time, batch.mag, batch.err)]
            survey = pa.repeat(pa.scalar(SURVEY), len(batch))
            texts = [pa.array(batch.ids), survey, pa.array(batch.band), pa.array(batch.label)]
            writer.write_table(pa.table([*texts, pa.array(period), *lists], schema=schema))
            points += batch.n_points
    return points


def portions(n_stars: int, seed: int) -> Iterator[tuple[CurveBatch, Float64Array]]:
    """The survey's portions, with a progress bar on a terminal."""
    bar = tqdm(total=n_stars, unit="star", desc="simulating", disable=None)
    with bar:
        for batch, period in simulate_portions(n_stars, seed):
            yield batch, period
            bar.update(len(batch))
