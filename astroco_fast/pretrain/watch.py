"""A thread that sees what a rank's main thread cannot see while it waits for the other ranks.

The main thread may wait in a library's C++ code, in which Python handles no signals. So this thread says which rank is
waited for, notices that torchrun has ended, and ends the rank where it was asked to stop but waits for a rank that no
longer answers, for example because it was stopped (SIGSTOP) or cut off from the network.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist

from astroco_fast.commands import launcher, one_line

BEAT = 1.0  # seconds between two signs of life
SPEAK = 40.0  # seconds without a sign of life, or in joining, after which it is said; and then each minute
JOIN = 180.0  # seconds that ranks may take to join one another
GRACE = 10.0  # seconds that a rank that was asked to stop waits for one that does not answer
DONE, LOST, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 75  # exit statuses of a rank


class Watch:
    """The watch over one rank.

    Attributes:
        doing: what the main thread does, for messages.
        asked_to_stop: whether a signal asked this process to stop.
        rescue: saves what can be saved without the other ranks; returns whether it was saved. None: nothing can be.
        missing: the ranks that have not joined yet.
        hosts: the name of each rank's machine, once all have joined.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.doing = "joining"
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self.rescue: Callable[[], bool] | None = None
        self.missing: list[int] = []
        self.hosts: Sequence[str] = ()
        self._group = ""
        self._rank, self._world = rank, world
        self._host = [socket.gethostname(), os.getppid()]
        self._parent = launcher()
        self._joined = False
        self._ended = threading.Event()
        self._moved = self._began = time.monotonic()
        self._spoken = self._began - 60.0
        self._asked: float | None = None
        self._lives: dict[int, tuple[bytes, float]] = {}  # the last sign of life of each rank, and when it came
        self._store: dist.TCPStore | None = None
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @property
    def orphaned(self) -> bool:
        """Whether torchrun, this process's parent, has ended."""
        return self._parent is not None and os.getppid() != self._parent

    def joined(self, group: str, hosts: Sequence[str]) -> None:
        """Note that the ranks are connected.

        Args:
            group: the beginning of the keys that they alone use in the store.
            hosts: the name of each rank's machine.
        """
        self._group, self.hosts, self.doing = group, hosts, "the preparation"
        self._joined = True
        self.move()

    def move(self) -> None:
        """Note that the main thread has moved on, to a collective or from it."""
        self._moved = time.monotonic()

    def end(self) -> None:
        """End the watch."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(BEAT):
            if self._joined:
                self._watch_lives()
            else:
                self._watch_joining()

    def _watch_joining(self) -> None:
        waited = time.monotonic() - self._began
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        who = f"rank {', '.join(map(str, self.missing))}" if self.missing else f"the store at {place}"
        if self.orphaned:
            self._leave("torchrun has ended before the ranks had joined", INTERRUPTED)
        if waited > JOIN:
            self._leave(f"{who} did not answer in {JOIN:.0f} s, so the ranks cannot join; start all of them", BAD_INPUT)
        if waited > SPEAK:
            self._speak(f"waits for {who} to join, since {waited:.0f} s")

    def _watch_lives(self) -> None:
        now = time.monotonic()
        silent = self._silent(now)
        if silent and now - max(since for _, since in self._lives.values()) < SPEAK:
            longest = max(now - self._lives[rank][1] for rank in silent)
            first = min({*range(self._world)} - {*silent}, default=self._rank)
            if longest > SPEAK and self._rank == first:
                who = ", ".join(map(str, silent))
                self._speak(f"waits for rank {who}, which has not answered for {longest:.0f} s, in {self.doing}")
        if self._asked is None and (self.asked_to_stop() or self.orphaned):
            self._asked = now
        # Rank 0 is the first to leave, because the others' end would end it, too, while it saves.
        grace = GRACE if self._rank == 0 or 0 in silent else 2 * GRACE
        if self._asked is not None and silent and min(now - self._asked, now - self._moved) > grace:
            saved = ""
            if self.rescue is not None:
                with contextlib.suppress(Exception):  # the rank ends in any case
                    saved = "; everything saved" if self.rescue() else ""
            self._end_stopped(silent)
            who = ", ".join(map(str, silent))
            self._leave(f"asked to stop while rank {who} does not answer in {self.doing}{saved}", INTERRUPTED)

    def _silent(self, now: float) -> list[int]:
        """Give a sign of life; return the other ranks that have given none for `GRACE` seconds."""
        try:
            if self._store is None:
                address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                wait = timedelta(seconds=GRACE)
                self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=wait)
            self._store.set(f"{self._group}/alive/{self._rank}", json.dumps([self._host, os.getpid(), now]))
            for rank in range(self._world):
                key = f"{self._group}/alive/{rank}"
                sign = self._store.get(key) if self._store.check([key]) else b""
                if rank not in self._lives or self._lives[rank][0] != sign:
                    self._lives[rank] = sign, time.monotonic()
        except (RuntimeError, OSError, KeyError, ValueError):
            # Without torchrun, rank 0 has the store: then it is the one that does not answer.
            if self._rank == 0 or self._parent is not None or 0 not in self._lives:
                return []
        return [r for r, (_, since) in self._lives.items() if r != self._rank and time.monotonic() - since > GRACE]

    def _end_stopped(self, ranks: list[int]) -> None:
        """End ranks of this torchrun on this machine: a stopped process (SIGSTOP) takes no signal but SIGKILL."""
        for rank in ranks:
            with contextlib.suppress(ValueError, TypeError, OSError):
                host, pid, _ = json.loads(self._lives[rank][0])
                if self._parent is not None and host == self._host:
                    os.kill(pid, signal.SIGKILL)

    def _speak(self, text: str) -> None:
        if time.monotonic() - self._spoken >= 60.0:
            self._spoken = time.monotonic()
            self._say(text)

    def _say(self, text: str) -> None:
        print(f"astroco: {one_line(f'rank {self._rank} of {self._world}: {text}')}", file=sys.stderr, flush=True)

    def _leave(self, text: str, status: int) -> None:
        """End this process at once: the main thread waits in C++ code, which nothing else ends."""
        self._say(text)
        os._exit(status)
