"""`astroco reproduce`: the paper's tables and its figure of macro-F1 with our figures beside the printed ones.

astroco reproduce --data survey.parquet --classes '[RRab, RRc, EA]'
torchrun --nproc_per_node 4 -m astroco_fast.reproduce --data macho.store --budget paper
"""

from collections.abc import Sequence

from astroco_fast.pretrain.command import run_on_ranks
from astroco_fast.reproduce.config import ReproduceConfig

__all__ = ["ReproduceConfig", "main"]

_DESCRIPTION = (
    "Pretrain AstroCo, its ablations and the Astromer baselines on one survey under one budget, probe them, and write "
    "the paper's Table 1, Table 2 and Figure 3 with our figures beside the printed ones; or, with --budget choices, "
    "try what the paper leaves open, one change at a time. SIGTERM and SIGINT save and exit with status 75; the same "
    "command then continues."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None takes the process's own.

    Returns:
        The exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved.
    """
    return run_on_ranks(ReproduceConfig, "astroco reproduce", _DESCRIPTION, argv, _start)


def _start(config: ReproduceConfig) -> int:
    from astroco_fast.pretrain.session import on_ranks
    from astroco_fast.reproduce.run import reproduce

    return on_ranks(reproduce, config, config.device)
