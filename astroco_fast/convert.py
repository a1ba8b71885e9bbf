"""`astroco convert IN OUT`: convert light curves of any kind into a packed store."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from astroco_fast import commands
from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns


@dataclass
class ConvertConfig:
    """Settings of `astroco convert`.

    Args:
        input: table of light curves (CSV, Parquet, Feather, JSON lines, FITS, VOTable, ECSV; one row a point, or one
            row a light curve with list columns), TFRecord file as Astromer's code writes it, OGLE's .dat, folder of
            such files, HATS catalogue, Astromer folder (with metadata.parquet), pattern in quotes, or URL.
        output: folder of the store to make.
        band: convert only this band.
        columns: names of columns that are not found by themselves.
        clean: which points and light curves are kept.
    """

    input: str
    output: str
    band: str | None = None
    columns: Columns = field(default_factory=Columns)
    clean: CleanConfig = field(default_factory=CleanConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 bad input."""
    return commands.run(lambda: _convert(argv))


def _convert(argv: Sequence[str] | None) -> int:
    config = commands.parse(
        ConvertConfig,
        prog="astroco convert",
        description="Convert light curves into a packed store, for training and embedding.",
        argv=argv,
        positional=("input", "output"),
    )

    from astroco_fast.data.convert import convert

    report = convert(
        config.input, config.output, columns=config.columns, band=config.band, clean=config.clean, progress=True
    )
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
