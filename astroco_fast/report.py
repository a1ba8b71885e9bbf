"""`astroco report RUN`: prints the best evaluation of a pretraining run as a table and draws plots in RUN/plots.

It also names what shows the model's vectors: files in the run's folder, or the commands that make them.
"""

import shlex
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


# What shows a model's vectors: the file in the run's folder, and the command that makes it.
_VIEWS = {
    "embeddings.parquet": "astroco embed {data} {file} --model {run}/checkpoints/best",
    "explore.html": "astroco explore {run}/embeddings.parquet --curves {data} --out {file}",
    "anomalies.parquet": "astroco anomalies {run}/embeddings.parquet --out {file}",
    "neighbours.index": "astroco neighbours {run}/embeddings.parquet --index {file}",
}


def vector_views(run: Path, data: str) -> list[str]:
    """Lines on what shows the vectors of a run's best model: a file that is there, or else the command that makes it.

    Args:
        run: the run's folder.
        data: the store of its light curves.
    """
    if not (run / "checkpoints" / "best").is_dir():
        return []
    lines = ["Its vectors:"]
    for name, command in _VIEWS.items():
        words = {"run": shlex.quote(str(run)), "data": shlex.quote(data), "file": shlex.quote(str(run / name))}
        lines.append(str(run / name) if (run / name).is_file() else command.format(**words))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: print a run's best evaluation, draw its plots, print their paths and what shows its vectors.

    Returns:
        The exit status: 0, or 2 where the folder holds no run or its light curves are missing.
    """

    def body() -> int:
        description = "Print the best evaluation of a pretraining run and draw its plots."
        config = commands.parse(ReportConfig, "astroco report", description, argv, positional=("run",))

        from astroco_fast.pretrain.report import evaluation_table, plot_run, read_config, read_metrics, store_of

        run = Path(config.run)
        paths = plot_run(run, config.data)
        views = vector_views(run, str(store_of(run, read_config(run), config.data)))
        print("\n".join([*evaluation_table(read_metrics(run)), "", *map(str, paths), *([""] * bool(views)), *views]))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
