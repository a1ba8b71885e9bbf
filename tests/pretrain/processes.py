"""A function run on several ranks, each in its own process, and the way in which each of them ended."""

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.ports import free_port

# Children are forked from a server that has imported PyTorch once, with the modules that optimisers import late, so
# that a rank starts in milliseconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "astroco_fast.pretrain.run", "tests.pretrain.patches"])
TIMEOUT = 120


@dataclass
class Ended:
    """The end of a rank: its exit code (negative: the signal that killed it), the function's result, and its output."""

    code: int | None
    value: Any
    out: str
    err: str


def on_ranks(world: int | None, function: Callable[..., Any], *args: Any, tmp_path: Path) -> list[Ended]:
    """Call `function(*args)` on `world` ranks with torchrun's environment; None: one process without torchrun.

    Raises:
        AssertionError: a rank does not end in time.
    """
    port = free_port()
    ranks = []
    for rank in range(world or 1):
        receiver, sender = _context.Pipe(duplex=False)
        logs = (tmp_path / f"rank{rank}.out", tmp_path / f"rank{rank}.err")
        process = _context.Process(target=_child, args=(rank, world, port, logs, sender, function, args))
        process.start()
        sender.close()
        ranks.append((process, receiver, logs))
    ended, deadline = [], time.monotonic() + TIMEOUT
    for process, receiver, logs in ranks:
        value = None
        with contextlib.suppress(EOFError):  # a killed rank sends no result
            if receiver.poll(max(0.0, deadline - time.monotonic())):
                value = receiver.recv()
        process.join(max(1.0, deadline - time.monotonic()))
        if process.exitcode is None:
            for other, _, _ in ranks:
                other.kill()
            raise AssertionError(f"a rank hangs; it has said: {logs[0].read_text()} {logs[1].read_text()}")
        ended.append(Ended(process.exitcode, value, *(log.read_text() for log in logs)))
    return ended


def _child(
    rank: int,
    world: int | None,
    port: int,
    logs: tuple[Path, Path],
    sender: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    for number, log in zip((1, 2), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if world is not None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        value = function(*args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sender.send(value)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(value if isinstance(value, int) else 0)
