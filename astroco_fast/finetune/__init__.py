"""`astroco finetune`: an encoder trained further to tell labelled classes, on one process or many.

astroco finetune survey.parquet --model fold-small --out runs/fine
"""

from collections.abc import Sequence

from astroco_fast import commands
from astroco_fast.errors import UserError
from astroco_fast.finetune.config import FinetuneConfig

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

    def body() -> int:
        try:
            config = commands.parse(FinetuneConfig, "astroco finetune", _DESCRIPTION, argv, ("data",))
        except UserError as error:
            from astroco_fast.pretrain.ranks import refuse

            return refuse(error)
        # Imported only now: `--help` and mistakes in the arguments need no PyTorch.
        from astroco_fast.finetune.task import Finetuning
        from astroco_fast.pretrain.loop import train
        from astroco_fast.pretrain.ranks import on_ranks

        return on_ranks(
            lambda settings, ranks, stop: train(lambda: Finetuning(settings), ranks, stop), config, config.train.device
        )

    return commands.run(body)
