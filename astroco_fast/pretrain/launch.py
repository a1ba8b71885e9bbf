"""What commands that train share, between their arguments and their exit status, on one process or many."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from astroco_fast.commands import one_line, run
from astroco_fast.errors import UserError
from astroco_fast.pretrain.distributed import Ranks, SharedError, meet
from astroco_fast.pretrain.exits import BAD_INPUT, DIVERGED, INTERRUPTED, Diverged, Interrupted
from astroco_fast.pretrain.signals import StopRequest

Config = TypeVar("Config")


def on_ranks(
    read: Callable[[], Config], device: Callable[[Config], str], work: Callable[[Config, Ranks, StopRequest], int]
) -> int:
    """Run a command that trains; returns its exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved.

    Args:
        read: the command's settings, from its arguments.
        device: which of them says where to compute: cpu, cuda or auto.
        work: the command's own part, which gives its status.
    """
    status = run(lambda: _on_ranks(read, device, work))
    if status and "TORCHELASTIC_RUN_ID" in os.environ:
        # Torchrun ends all ranks once it sees one end: the others, on their way out too, keep their own status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return status


def _on_ranks(
    read: Callable[[], Config], device: Callable[[Config], str], work: Callable[[Config, Ranks, StopRequest], int]
) -> int:
    with StopRequest() as stop:
        try:
            config = read()
            ranks = Ranks.start(device(config))
        except UserError:
            meet()
            raise
        try:
            status = work(config, ranks, stop)
        except Diverged as error:
            _say(ranks, f"diverged: {error}")
            status = DIVERGED
        except Interrupted:
            _say(ranks, "interrupted before training began: the same command goes on")
            status = INTERRUPTED
        except UserError as error:
            if ranks.world > 1 and not isinstance(error, SharedError):
                _leave_alone(ranks, error)
            _say(ranks, f"error: {error}")
            status = BAD_INPUT
        ranks.close()  # not after any other exception: the other ranks know nothing of it
        return status


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_first:
        print(f"astroco: {one_line(text)}", file=sys.stderr)


def _leave_alone(ranks: Ranks, error: UserError) -> NoReturn:
    """End this rank at once. The others know nothing of its error and may be in any collective: they must not be met.

    Their connections to this rank close, so they fail, and torchrun ends what is left. Nor does this rank pass through
    the end of the interpreter, which the threads of its group would survive.
    """
    text = one_line(f"error: rank {ranks.rank} of {ranks.world}: {error}")
    print(f"astroco: {text}", file=sys.stderr, flush=True)
    os._exit(BAD_INPUT)
