"""`astroco pretrain`: pretrain an encoder by masked reconstruction, on one process or many.

python -m astroco_fast.pretrain                                             # tiny, on a simulated survey
torchrun --nproc_per_node 4 -m astroco_fast.pretrain --preset S --data survey.parquet
"""

from collections.abc import Sequence

from astroco_fast.commands import parse
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig
from astroco_fast.pretrain.launch import on_ranks
from astroco_fast.pretrain.start import pretrain

__all__ = ["PretrainConfig", "TrainConfig", "main", "pretrain"]

_DESCRIPTION = (
    "Pretrain an encoder by masked reconstruction of light curves. Without any argument: the preset 'tiny' on a "
    "simulated survey. SIGTERM, SIGINT and SIGUSR1 save and exit with status 75; the same command then goes on."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved."""
    return on_ranks(
        lambda: parse(PretrainConfig, "astroco pretrain", _DESCRIPTION, argv),
        lambda config: config.train.device,
        pretrain,
    )
