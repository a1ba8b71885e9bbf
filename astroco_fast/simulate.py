"""`astroco simulate OUT`: simulate a survey of variable stars, as a table or as a packed store."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from astroco_fast import commands
from astroco_fast.data.convert import convert
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


@dataclass
class SimulateConfig:
    """Settings of `astroco simulate`.

    Args:
        output: what to write: a table with one row a star and list columns, if the name ends in .parquet; else the
            folder of a packed store.
        stars: number of stars.
        seed: seed of the survey; the same seed gives the same stars.
    """

    output: str
    stars: int = 3000
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 bad input."""
    return commands.run(lambda: _simulate(argv))


def _simulate(argv: Sequence[str] | None) -> int:
    config = commands.parse(
        SimulateConfig,
        prog="astroco simulate",
        description="Make a simulated survey of variable stars: periodic shapes, seasons and errors like real ones.",
        argv=argv,
        positional=("output",),
    )
    if config.stars < 1:
        raise UserError(f"--stars must be at least 1, not {config.stars}")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"--seed must be a whole number from 0 to 2^63 - 1, not {config.seed}")
    output = Path(config.output)
    if output.suffix == ".parquet":
        points = write_table(output, config.stars, config.seed)
        print(f"{output}: {config.stars:,} SIMULATED light curves, {points:,} points, seed {config.seed}")
    else:
        curves = (batch for batch, _ in _shown(config.stars, config.seed))
        provenance = {"simulated": True, "survey": SURVEY, "stars": config.stars, "seed": config.seed}
        report = convert(curves, output, provenance=provenance)
        print(f"{report}\n{output}: these light curves are SIMULATED, seed {config.seed}")
    return 0


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
        for batch, period in _shown(n_stars, seed):
            offsets = pa.array(batch.offsets.astype(np.int32))
            lists = [pa.ListArray.from_arrays(offsets, pa.array(v)) for v in (batch.time, batch.mag, batch.err)]
            survey = pa.repeat(pa.scalar(SURVEY), len(batch))
            texts = [pa.array(batch.ids), survey, pa.array(batch.band), pa.array(batch.label)]
            writer.write_table(pa.table([*texts, pa.array(period), *lists], schema=schema))
            points += batch.n_points
    return points


def _shown(n_stars: int, seed: int) -> Iterator[tuple[CurveBatch, Float64Array]]:
    """The survey's portions, with a progress bar on a terminal."""
    bar = tqdm(total=n_stars, unit="star", desc="simulating", disable=None)
    with bar:
        for batch, period in simulate_portions(n_stars, seed):
            yield batch, period
            bar.update(len(batch))


if __name__ == "__main__":
    sys.exit(main())
