"""`astroco report RUN`: prints the best evaluation of a pretraining run as a table and draws plots in RUN/plots."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from astroco_fast import commands


@dataclass
class ReportConfig:
    """Show a run's best evaluation and draw its plots.

    Args:
        run: the run's folder.
        data: the store of the run's light curves, if it has been moved.
    """

    run: str
    data: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: print a run's best evaluation, draw its plots, print their paths.

    Returns:
        The exit status: 0, or 2 where the folder holds no run or its light curves are missing.
    """

    def body() -> int:
        description = "Print the best evaluation of a pretraining run and draw its plots."
        config = commands.parse(ReportConfig, "astroco report", description, argv, positional=("run",))

        from astroco_fast.pretrain.report import evaluation_table, plot_run, read_metrics

        paths = plot_run(Path(config.run), config.data)
        print("\n".join([*evaluation_table(read_metrics(Path(config.run))), "", *map(str, paths)]))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
