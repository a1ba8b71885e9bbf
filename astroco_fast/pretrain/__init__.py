"""`astroco pretrain`: pretrain an encoder by masked reconstruction, on one process or many.

    python -m astroco_fast.pretrain                                             # tiny, on a simulated survey
    torchrun --nproc_per_node 4 -m astroco_fast.pretrain --preset S --data survey.parquet

To see how it works, begin with `loop.py`.
"""

from collections.abc import Sequence

from astroco_fast.pretrain.command import run_on_ranks
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig

__all__ = ["PretrainConfig", "TrainConfig", "main"]

_DESCRIPTION = (
    "Pretrain an encoder by masked reconstruction of light curves. Without any argument, this trains the preset 'tiny' "
    "on a simulated survey. SIGTERM, SIGINT and SIGUSR1 save the run and end it with status 75; the same command then "
    "goes on with it."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None takes the process's own.

    Returns:
        The exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved.
    """
    return run_on_ranks(PretrainConfig, "astroco pretrain", _DESCRIPTION, argv, _start)


def _start(config: PretrainConfig) -> int:
    from astroco_fast.pretrain.run import pretrain
    from astroco_fast.pretrain.session import on_ranks

    return on_ranks(pretrain, config, config.train.device)
