"""Processes that count their disk changes, are killed before one of them, or may write only small files."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash import commands

# Children are forked from a server that has imported the package, and never run anything itself.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.crash.preload"])
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
TIMEOUT = 300


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
    changes = 0

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        nonlocal changes
        if not _is_change(event, args, str(work)):
            return
        if changes == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    sys.addaudithook(on_event)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    return commands.run(name, arguments), changes


def _is_change(event: str, args: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        path, _, flags = args
        return bool(flags & _WRITES) and str(path).startswith(folder)
    if event not in _CHANGES:
        return False
    # Names below an open folder are relative; only removing whole folders uses them.
    return str(args[0]).startswith(folder) or not str(args[0]).startswith("/")


def _child(log: Path, sender: Any, function: Any, args: tuple[Any, ...]) -> None:
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sender.send(function(*args))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
