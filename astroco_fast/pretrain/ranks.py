"""One process or many: this process's place among the ranks, how they join and fail together, and how they are stopped.

Nothing here knows about models. Without torchrun there is no process group, and every collective is the identity.

SIGTERM, SIGINT and SIGUSR1 ask for a clean stop: save, then exit with status 75. Torchrun passes SIGTERM and SIGINT on
to its ranks. SIGUSR1, which Slurm's `--signal` often sends, ends torchrun itself unless its environment has
PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1. Ranks whose torchrun has ended stop too: nobody would start
them again, or report how they ended.
"""

import contextlib
import gc
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from astroco_fast.commands import launcher
from astroco_fast.errors import UserError
from astroco_fast.machine import pick_device
from astroco_fast.pretrain.watch import JOIN, Watch

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A rank that dies is noticed at once, since its connections close. These limits are for a rank that does not answer:
# one that is cut off from the network, or busy, as rank 0 is while it converts a survey.
USUAL_WAIT, LONG_WAIT = timedelta(minutes=30), timedelta(hours=24)


class Diverged(Exception):
    """Too many steps in a row had a loss or gradient that is not finite. Says which windows the last step held."""


class Interrupted(Exception):
    """A signal asked the run to stop before training began, when there was nothing to save yet."""


class SharedError(UserError):
    """A user's mistake that all ranks know of, since each of them raises this error."""


def join(backend: str, rank: int, world: int, mistake: str = "") -> Watch:
    """Connect the ranks, and watch over this one from now on.

    Until they are connected, signals end the process: the wait for the other ranks is in C++ code, where Python could
    not handle them, and nothing has to be saved yet.

    Args:
        backend: of the process group, as `init_process_group` names it.
        rank, world: this process's number, and the number of processes.
        mistake: the user's mistake that this rank has found, with which it joins only to tell the others.

    Raises:
        SharedError: another rank has found a mistake, perhaps of its machine alone. The ranks are connected, by gloo.
    """
    watch = Watch(rank, world)
    with _default_signals():
        # As init_process_group makes it from these variables, but without waiting for the others unseen.
        has_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = timedelta(seconds=JOIN)
        shared = dist.TCPStore(address, port, world, has_store, wait, wait_for_workers=False, multi_tenant=True)
        group = _meet(shared, watch, rank, world, json.dumps([socket.gethostname(), mistake]))
        hosts, mistakes = zip(
            *(json.loads(shared.get(f"{group}/joined/{other}")) for other in range(world)), strict=True
        )
        store = dist.PrefixStore(group, shared)
        store.set_timeout(USUAL_WAIT)
        backend = "gloo" if any(mistakes) else backend
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=USUAL_WAIT)
    watch.joined(group, hosts)
    if any(mistakes) and not mistake:
        watch.end()
        told, other = next((told, other) for other, told in enumerate(mistakes) if told)
        raise SharedError(f"rank {other} (on {hosts[other]}): {told}")
    return watch


def _meet(store: dist.Store, watch: Watch, rank: int, world: int, word_for_all: str) -> str:
    """Wait until all ranks have come, and return a beginning of keys in the store that they alone have in common.

    torchrun may keep the store when it starts the ranks again, with all keys of the earlier ones, and each machine's
    torchrun counts only the starts of its own ranks. So each rank comes with a random word, and waits for the word of
    the rank 0 that has seen it. Each rank leaves its word for all under `joined`.
    """
    word = secrets.token_hex(8)
    store.set(f"astroco/came/{rank}", word)
    group = f"astroco/{word}" if rank == 0 else None
    answered: set[str] = set()
    joined = False
    watch.missing = [0]
    while True:
        if rank == 0:
            for came in (f"astroco/came/{other}" for other in range(1, world)):
                # Perhaps the word of an earlier rank, which nobody reads the answer to.
                if store.check([came]) and (other_word := store.get(came).decode()) not in answered:
                    store.set(f"astroco/answer/{other_word}", str(group))
                    answered.add(other_word)
        elif group is None and store.check([f"astroco/answer/{word}"]):
            group = store.get(f"astroco/answer/{word}").decode()
        if group is not None:
            if not joined:
                store.set(f"{group}/joined/{rank}", word_for_all)
                joined = True
            watch.missing = [other for other in range(world) if not store.check([f"{group}/joined/{other}"])]
            if not watch.missing:
                return group
        time.sleep(0.05)


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Let the stop signals end the process at once, except those that are ignored."""
    old = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in old.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks.

    Attributes:
        rank: this process's number, 0 <= rank < world.
        world: the number of processes.
        device: where this rank computes.
        long_wait_group: the process group in which ranks wait up to `LONG_WAIT` for one of them; None if there is no
            process group.
        watch: the watch over this rank; None if there is no process group.
    """

    rank: int
    world: int
    device: torch.device
    long_wait_group: Any = None
    watch: Watch | None = None

    @classmethod
    def start(cls, device: str) -> "Ranks":
        """Join the other ranks, which torchrun's environment variables describe, or stand alone without them.

        Args:
            device: "cpu", "cuda" or "auto" (a GPU if there is one). GPUs communicate through nccl, CPUs through gloo.

        Raises:
            UserError: a GPU is asked for and there is none, there are more ranks than GPUs, or another rank has found
                a mistake.
        """
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        use_gpu = pick_device(device).type == "cuda"
        if use_gpu:
            local_world, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
            if local_world > gpus:
                raise UserError(
                    f"{local_world} ranks but {gpus} GPU(s): nccl needs one for each; "
                    f"start with --nproc_per_node {gpus}, or use --train.device cpu"
                )
            torch.cuda.set_device(local_rank)
            # So that a run can be repeated to the bit; not tried on a GPU yet.
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        long_wait_group = watch = None
        if "RANK" in os.environ:
            # Objects and errors travel through gloo on either device, so that no rank needs a working GPU to report.
            watch = join("cpu:gloo,cuda:nccl" if use_gpu else "gloo", rank, world)
            long_wait_group = dist.new_group(backend="gloo", timeout=LONG_WAIT)
        place = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
        return cls(rank, world, place, long_wait_group, watch)

    def name(self, rank: int) -> str:
        """A rank's number, and its machine's name, for messages."""
        return f"rank {rank}" if self.watch is None else f"rank {rank} (on {self.watch.hosts[rank]})"

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files and the messages."""
        return self.rank == 0

    def now(self, doing: str) -> None:
        """Note what this rank does, for messages about ranks that do not answer."""
        if self.watch is not None:
            self.watch.doing = doing
            self.watch.move()

    def close(self) -> None:
        """Leave the process group, once every rank has come here (rank 0 may still be drawing plots)."""
        self._wait_long()
        if self.watch is not None:
            self.watch.end()
        if dist.is_initialized():
            # A model under DDP is in a cycle of references that holds the group, whose threads must not outlive Python.
            gc.collect()
            dist.destroy_process_group()

    def _wait_long(self) -> None:
        if self.long_wait_group is not None:
            dist.barrier(group=self.long_wait_group)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place. The result has the same bits on every rank."""
        if self.world > 1:
            dist.all_reduce(values)
            self._move()
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (a small collective on the CPU)."""
        return bool(self.sum(torch.tensor([float(flag)])).item()) if self.world > 1 else flag

    def gather(self, value: T) -> list[T]:
        """Every rank's value (picklable), in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        self._move()
        dist.all_gather_object(values, value)
        self._move()
        return values

    def _move(self) -> None:
        if self.watch is not None:
            self.watch.move()

    def on_all_ranks(self, body: Callable[[], T], *, is_long: bool = False) -> T:
        """Run `body` on all ranks, and wait for all of them. If it fails on one rank, all ranks raise.

        Args:
            body: the function to run; it must not communicate with other ranks.
            is_long: whether it may take hours on some rank.

        Raises:
            SharedError: a rank had a `UserError` or an `OSError` (a full disk ...); the lowest such rank's is raised.
            Interrupted: a rank was interrupted.
            RuntimeError: another rank had an unexpected error, which that rank raises itself.
        """
        value, error = None, None
        try:
            value = body()
        except Exception as caught:
            error = caught
        if is_long:
            self._wait_long()
        self._raise_together(error)
        return value  # type: ignore[return-value]

    def on_rank_zero(self, body: Callable[[], T], *, is_long: bool = False) -> T:
        """Run `body` on rank 0 while the others wait. All ranks return its (picklable) result, or raise its error.

        Arguments and errors are those of `on_all_ranks`.
        """
        result = self.on_all_ranks(lambda: body() if self.is_first else None, is_long=is_long)
        return self.gather(result)[0]  # type: ignore[return-value]

    def _raise_together(self, error: Exception | None) -> None:
        told: Exception | str | None = None if error is None else repr(error)
        if isinstance(error, UserError | OSError):
            told = SharedError(" ".join(str(error).split()))
        elif isinstance(error, Interrupted):
            told = error
        found = self.gather(told)
        for rank, other in enumerate(found):
            if rank == self.rank and isinstance(other, str) and error is not None:
                raise error
            if isinstance(other, SharedError) and found[0] is None:  # such as a file that only this machine lacks
                raise SharedError(f"{self.name(rank)}: {other}") from error
            if isinstance(other, Exception):
                raise other from error
            if other is not None:
                raise RuntimeError(f"rank {rank} failed: {other}")


class StopRequest:
    """Whether a signal has asked this process to stop, or torchrun, its parent, has ended.

    Use it as a context manager, which restores the old signal handlers at its end.
    A second signal changes nothing: Ctrl-C reaches a rank twice, from the terminal and from torchrun.

    Python runs a handler only when the main thread comes back from C++ code, so signals are also read from a pipe, to
    which they are written at once: another thread learns of them while the main one waits.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._pipe: tuple[int, int] | None = None
        self._parent = launcher()
        self._immediate = False

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        if not self._signalled and self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                self._signalled = any(number in STOP_SIGNALS for number in os.read(self._pipe[0], 64))
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    def __enter__(self) -> "StopRequest":
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._old_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_pipe)
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if self._immediate:
            raise Interrupted

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Let a signal raise `Interrupted` at once, for long work without steps, such as converting data."""
        self._immediate = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._immediate = False
