"""`astroco simulate OUT`: simulate a survey of variable stars, as a table or as a packed store."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from astroco_fast import commands
from astroco_fast.errors import UserError
from astroco_fast.settings import check_seed


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
    check_seed(config.seed, "--seed")

    from astroco_fast.data.convert import convert
    from astroco_fast.data.formats import format_of
    from astroco_fast.data.simulate import SURVEY
    from astroco_fast.data.simulated_table import portions, write_table

    output = Path(config.output)
    is_table = output.suffix.lower() == ".parquet"
    if format_of(output) is not None and not is_table:
        raise UserError(f"{output}: a table is simulated as .parquet, a store as a folder; give a name of either kind")
    if is_table:
        points = write_table(output, config.stars, config.seed)
        print(f"{output}: {config.stars:,} SIMULATED light curves, {points:,} points, seed {config.seed}")
    else:
        curves = (batch for batch, _ in portions(config.stars, config.seed))
        provenance = {"simulated": True, "survey": SURVEY, "stars": config.stars, "seed": config.seed}
        report = convert(curves, output, provenance=provenance)
        print(f"{report}\n{output}: these light curves are SIMULATED, seed {config.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
