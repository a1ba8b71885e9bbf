"""SIGTERM, SIGINT and SIGUSR1 ask for a clean stop: save, then exit 75.

Torchrun passes SIGTERM and SIGINT on to its ranks. SIGUSR1 (Slurm's `--signal`, often) ends torchrun itself, unless its
environment has TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1. Ranks that it leaves behind stop
too: nobody would start them again, or tell how they end.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from astroco_fast.pretrain.exits import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether a signal asked this process to stop, or torchrun, its parent, has ended.

    Use as a context manager; the old handlers come back afterwards.
    A second signal changes nothing: Ctrl-C reaches a rank twice, once from the terminal and once from torchrun.
    """

    def __init__(self) -> None:
        self._signalled = False
        # Other parents (a shell, nohup) may well end before their children.
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._immediate = False

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    def __enter__(self) -> "StopRequest":
        self._old = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if self._immediate:
            raise Interrupted

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """While long work without steps is under way (converting data), a signal raises `Interrupted` at once."""
        self._immediate = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._immediate = False
