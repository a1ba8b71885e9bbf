"""One process or many: who I am, sums over ranks, and a way to fail together.

Nothing here knows about models. Without torchrun there is no process group, and every collective is the identity.
"""

import contextlib
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from astroco_fast.errors import UserError
from astroco_fast.machine import pick_device
from astroco_fast.pretrain.exits import Interrupted

T = TypeVar("T")

# A rank that dies is noticed at once (its connections close). These bound the wait for one that does not answer: cut
# off from the network, or busy, as rank 0 is while it converts a survey.
USUAL_WAIT, LONG_WAIT = timedelta(minutes=30), timedelta(hours=24)


class SharedError(UserError):
    """A user's mistake that all ranks know of: each of them raises this."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks.

    Attributes:
        rank: 0 <= rank < world.
        world: the number of processes.
        device: where this rank computes.
        patience: the group in which ranks wait long for one of them; None where there is one process.
    """

    rank: int
    world: int
    device: torch.device
    patience: Any = None

    @classmethod
    def start(cls, device: str) -> "Ranks":
        """Join the other ranks (torchrun's environment variables say where), or stand alone.

        Args:
            device: "cpu", "cuda" or "auto" (a GPU if there is one). GPUs talk through nccl, CPUs through gloo.

        Raises:
            UserError: no GPU where one is asked for, or more ranks than GPUs.
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
            # For runs that can be repeated to the bit; not tried on a GPU yet.
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        patience = None
        if "RANK" in os.environ:
            # Objects and errors travel through gloo on either device, so that no rank needs a working GPU to report.
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=USUAL_WAIT)
            patience = dist.new_group(backend="gloo", timeout=LONG_WAIT)
        return cls(rank, world, torch.device("cuda", local_rank) if use_gpu else torch.device("cpu"), patience)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the group, once every rank has come here (rank 0 may still be drawing plots)."""
        self._wait_long()
        if dist.is_initialized():
            # A model under DDP is in a cycle of references, and holds the group: its threads must not outlive Python.
            gc.collect()
            dist.destroy_process_group()

    def _wait_long(self) -> None:
        if self.patience is not None:
            dist.barrier(group=self.patience)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place. The result has the same bits on every rank."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank (a small collective on the CPU)."""
        return bool(self.sum(torch.tensor([float(flag)])).item()) if self.world > 1 else flag

    def gather(self, value: T) -> list[T]:
        """Every rank's value (picklable), in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def everywhere(self, body: Callable[[], T], *, is_long: bool = False) -> T:
        """Run something that may fail on all ranks; if it fails on one, all raise.

        Args:
            body: what to run; it must not meet other ranks.
            is_long: it may take one rank hours.

        Raises:
            SharedError: a rank's `UserError`, or its `OSError` (a full disk ...); of the first rank that has one.
            Interrupted: a rank's.
            RuntimeError: another rank hit something unexpected; that rank raises the original.
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

    def first(self, body: Callable[[], T], *, is_long: bool = False) -> T:
        """`everywhere`, but on rank 0 alone, the others waiting; all get its (picklable) result or error."""
        result = self.everywhere(lambda: body() if self.is_first else None, is_long=is_long)
        return self.gather(result)[0]  # type: ignore[return-value]

    def _raise_together(self, error: Exception | None) -> None:
        told: Exception | str | None = None if error is None else repr(error)
        if isinstance(error, UserError | OSError):
            told = SharedError(" ".join(str(error).split()))
        elif isinstance(error, Interrupted):
            told = error
        for rank, other in enumerate(self.gather(told)):
            if rank == self.rank and isinstance(other, str):
                assert error is not None
                raise error
            if isinstance(other, Exception):
                raise other from error
            if other is not None:
                raise RuntimeError(f"rank {rank} failed: {other}")


def meet() -> None:
    """Wait for all ranks where no group has been made yet, because of an error that all of them find.

    Torchrun ends all ranks once it sees one end, and rank 0, which tells the error, may be the last to find it.
    """
    if "RANK" in os.environ:
        # A rank that was through at once has gone, and its connections with it, before a slower one has them all.
        with contextlib.suppress(RuntimeError):
            dist.init_process_group("gloo", timeout=USUAL_WAIT)
            dist.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()
