"""The part that the commands have in common which may run on several ranks."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from astroco_fast import commands
from astroco_fast.errors import UserError

Config = TypeVar("Config")


def run_on_ranks(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None,
    start: Callable[[Config], int],
    positional: Sequence[str] = (),
) -> int:
    """Parse a command's arguments and run it. A mistake in them is told once, by rank 0, and ends all ranks.

    Args:
        config_class, prog, description, argv, positional: as for `commands.parse`.
        start: runs the command. What needs PyTorch is imported in it: `--help` and mistakes in the arguments do not.

    Returns:
        The exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved.
    """

    def body() -> int:
        try:
            config = commands.parse(config_class, prog, description, argv, positional)
        except UserError as error:
            from astroco_fast.pretrain.session import refuse

            return refuse(error)
        return start(config)

    return commands.run(body)
