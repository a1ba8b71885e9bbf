"""A command that trains, on one rank or many: they join, do its work, and end with one exit status and one message."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import NoReturn, TypeVar

import torch.distributed as dist

from astroco_fast.commands import is_rank_zero, one_line, system_error
from astroco_fast.errors import UserError
from astroco_fast.pretrain.agreement import require_same_start
from astroco_fast.pretrain.ranks import (
    Diverged,
    Interrupted,
    Ranks,
    SharedError,
    StopRequest,
    join,
)
from astroco_fast.pretrain.watch import BAD_INPUT, DIVERGED, INTERRUPTED, LOST

Config = TypeVar("Config")


def on_ranks(work: Callable[[Config, Ranks, StopRequest], int], config: Config, device: str) -> int:
    """Join the other ranks, run a command that trains, and leave.

    Args:
        work: the command's own part; it returns the exit status.
        config: the command's settings, which `work` is given.
        device: where to compute: "cpu", "cuda" or "auto".

    Returns:
        The exit status: 0 done, 2 bad input, 3 diverged, 75 interrupted and saved. The process ends with 1 if it loses
        the connection to another rank.
    """
    try:
        ranks = Ranks.start(device)
    except UserError as error:
        status = refuse(error)
    else:
        with StopRequest() as stop:
            if ranks.watch is not None:
                ranks.watch.asked_to_stop = lambda: stop.requested
            try:
                require_same_start(ranks, asdict(config))  # type: ignore[call-overload]
                status = work(config, ranks, stop)
            except Diverged as error:
                status = DIVERGED
                _say(f"diverged: {error}")
            except Interrupted:
                status = INTERRUPTED
                _say("interrupted before training began: the same command goes on")
            except (UserError, OSError) as error:
                if ranks.world > 1 and not isinstance(error, SharedError):
                    _leave_alone(f"error: rank {ranks.rank} of {ranks.world}: {error}", BAD_INPUT)
                status = BAD_INPUT
                _say(f"error: {system_error(error) if isinstance(error, OSError) else error}")
            except RuntimeError as error:
                if ranks.watch is None or not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
                    raise
                why = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0]
                _leave_alone(f"{ranks.name(ranks.rank)} has lost another rank in {ranks.watch.doing}: {why}", LOST)
            ranks.close()  # but not after any other exception, of which the other ranks know nothing
    if status:
        _ignore_torchrun()
    return status


def refuse(error: UserError) -> int:
    """Exit because of a mistake that is found before the ranks work together, such as a wrong argument.

    Torchrun ends all ranks as soon as one exits, and rank 0, which reports the error, may be the last to find it. So
    the ranks wait for one another first. If the mistake is one of this machine alone, the others learn of it.

    Returns:
        The exit status.
    """
    _ignore_torchrun()
    _say(f"error: {error}")
    if "RANK" in os.environ:
        # A fast rank may close its connections before a slower rank has opened all of them, which then raises.
        with contextlib.suppress(RuntimeError):
            if not dist.is_initialized():
                join("gloo", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), str(error)).end()
            dist.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()
    return BAD_INPUT


def _say(text: str) -> None:
    if is_rank_zero():
        print(f"astroco: {one_line(text)}", file=sys.stderr, flush=True)


def _ignore_torchrun() -> None:
    """Ignore torchrun's signal, which would change the exit status of this rank while it is exiting."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave_alone(text: str, status: int) -> NoReturn:
    """Say why, and exit at once, without waiting for the other ranks, which may be in any collective, or gone.

    This rank's connections close, so the others fail, and torchrun ends the remaining ones. The process also skips the
    interpreter's shutdown, in which the threads of its process group would hang.
    """
    print(f"astroco: {one_line(text)}", file=sys.stderr, flush=True)
    os._exit(status)
