"""`astroco reproduce`: the paper's tables and its figure of macro-F1 with our figures beside the printed ones.

astroco reproduce --data survey.parquet --classes '[RRab, RRc, EA]'
torchrun --nproc_per_node 4 -m astroco_fast.reproduce --data macho.store --budget paper
"""

from collections.abc import Sequence

from astroco_fast.commands import parse
from astroco_fast.pretrain.launch import on_ranks
from astroco_fast.reproduce.config import ReproduceConfig
from astroco_fast.reproduce.run import reproduce

__all__ = ["ReproduceConfig", "main", "reproduce"]

_DESCRIPTION = (
    "Pretrain AstroCo, its ablations and the Astromer baselines on one survey under one budget, probe them, and write "
    "the paper's Table 1, Table 2 and Figure 3 with our figures beside the printed ones; or, with --budget choices, "
    "try what the paper leaves open, one change at a time. SIGTERM and SIGINT save and exit with status 75; the same "
    "command then continues."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved."""
    return on_ranks(
        lambda: parse(ReproduceConfig, "astroco reproduce", _DESCRIPTION, argv), lambda config: config.device, reproduce
    )
