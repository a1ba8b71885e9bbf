"""`astroco finetune`: an encoder trained further to tell labelled classes, on one process or many.

astroco finetune survey.parquet --model fold-small --out runs/fine
"""

from collections.abc import Sequence

from astroco_fast.finetune.config import FinetuneConfig
from astroco_fast.pretrain.command import run_on_ranks

__all__ = ["FinetuneConfig", "main"]

_DESCRIPTION = (
    "Fine-tune an encoder with a linear head to tell labelled classes, all classes weighted alike. SIGTERM, SIGINT and "
    "SIGUSR1 save the run and end it with status 75; the same command then goes on with it."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None takes the process's own.

    Returns:
        The exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved.
    """
    return run_on_ranks(FinetuneConfig, "astroco finetune", _DESCRIPTION, argv, _start, ("data",))


def _start(config: FinetuneConfig) -> int:
    from astroco_fast.finetune.task import Finetuning
    from astroco_fast.pretrain.run import train
    from astroco_fast.pretrain.session import on_ranks

    return on_ranks(
        lambda settings, ranks, stop: train(lambda: Finetuning(settings), ranks, stop), config, config.train.device
    )
