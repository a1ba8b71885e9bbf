"""Processes that count their disk changes, are killed before one of them, or may write only small files."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from astroco_fast.files import write_text
from tests.crash import commands
from tests.ports import free_port

# Children are forked from a server that has imported the package, and never run anything itself.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.crash.preload"])
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
TIMEOUT = 300
_GRACE = 30  # seconds that torchrun gives a rank between SIGTERM and SIGKILL
ONE, OTHER, ALL = "one rank", "the other rank", "all ranks"  # of several ranks, those that are killed


@dataclass(frozen=True)
class Ended:
    """The end of a child.

    Attributes:
        code: its exit status; negative: the signal that ended it; None: it hung, and was killed.
        said: its output, stdout and stderr together.
        value: what it returned.
    """

    code: int | None
    said: str
    value: Any


def call(function: Any, *args: Any, log: Path) -> Ended:
    """Call a function in a child of its own."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_child, args=(log, sender, function, args))
    process.start()
    sender.close()
    value = None
    if receiver.poll(TIMEOUT):
        try:
            value = receiver.recv()
        except EOFError:  # it was killed
            value = None
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
    return Ended(process.exitcode, log.read_text(errors="replace"), value)


def call_ranks(world: int, function: Any, *args: Any, killed: str, log: Path) -> list[Ended]:
    """Call a function on several ranks, with torchrun's environment; the first argument is the rank's number.

    When a rank ends badly, the others get what torchrun sends them: SIGTERM, and SIGKILL after 30 seconds. If all ranks
    are to be killed, they get SIGKILL at once.
    """
    port, ranks = free_port(), []
    for rank in range(world):
        receiver, sender = _context.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        environment = {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own_log = log.with_suffix(f".{rank}.log")
        process = _context.Process(target=_child, args=(own_log, sender, function, (rank, *args), environment))
        process.start()
        sender.close()
        ranks.append((process, receiver, own_log))
    deadline, asked = time.monotonic() + TIMEOUT, False
    while living := [process for process, *_ in ranks if process.exitcode is None]:
        wait([process.sentinel for process in living], max(0.0, deadline - time.monotonic()))
        if time.monotonic() >= deadline:
            for process in living:
                process.kill()
        elif not asked and any(process.exitcode for process, *_ in ranks):
            asked, deadline = True, time.monotonic() + _GRACE
            for process in living:
                process.kill() if killed == ALL else process.terminate()
    values = [receiver.recv() if process.exitcode == 0 else None for process, receiver, _ in ranks]
    return [
        Ended(process.exitcode, own_log.read_text(errors="replace"), value)
        for (process, _, own_log), value in zip(ranks, values, strict=True)
    ]


def run_rank(
    rank: int, name: str, arguments: Sequence[str], work: Path, kill_before: int | None, killed: str
) -> tuple[int, int]:
    """Run a command as one of two ranks; returns as `run`, with the disk changes of this rank.

    Args:
        rank: this rank's number. The changes of rank 0 count, since it writes the files.
        name, arguments, work: as for `run`.
        kill_before: the change of rank 0 before which a rank is killed.
        killed: which rank that is, rank 0 (`ONE`, and `ALL`, where the caller kills the others), or rank 1 (`OTHER`).
    """
    told = work.with_name(f"{work.name}.pid")
    if rank == 1:
        write_text(told, str(os.getpid()))

    def kill() -> None:
        while killed == OTHER and not told.exists():
            time.sleep(0.01)
        os.kill(int(told.read_text()) if killed == OTHER else os.getpid(), signal.SIGKILL)

    return _counted(name, arguments, work, kill_before if rank == 0 else None, kill)


def run(
    name: str, arguments: Sequence[str], work: Path, kill_before: int | None, largest: int | None
) -> tuple[int, int]:
    """Run a command; returns its exit status and the number of disk changes below `work`.

    Args:
        name, arguments: the command and its arguments.
        work: the folder whose changes count.
        kill_before: the change, counted from 0, before which the process is killed.
        largest: the size in bytes beyond which no file can grow.
    """
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    return _counted(name, arguments, work, kill_before, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _counted(
    name: str, arguments: Sequence[str], work: Path, kill_before: int | None, kill: Callable[[], None]
) -> tuple[int, int]:
    changes = 0

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        nonlocal changes
        if not _is_change(event, args, str(work)):
            return
        if changes == kill_before:
            kill()
        changes += 1

    sys.addaudithook(on_event)
    return commands.run(name, arguments), changes


def _is_change(event: str, args: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        path, _, flags = args
        return bool(flags & _WRITES) and str(path).startswith(folder)
    if event not in _CHANGES:
        return False
    # Names below an open folder are relative; only removing whole folders uses them.
    return str(args[0]).startswith(folder) or not str(args[0]).startswith("/")


def _child(
    log: Path, sender: Any, function: Any, args: tuple[Any, ...], environment: dict[str, str] | None = None
) -> None:
    os.environ.update(environment or {})
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sender.send(function(*args))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
