"""Accidents that a rank prepares before its command runs: signals, kills and numbers that are not finite."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from astroco_fast import ops
from astroco_fast.data.training import StepBatches, TrainingData
from astroco_fast.data.writer import StoreWriter
from astroco_fast.pretrain import loop, main, task, watch
from astroco_fast.pretrain.step import Outcome, Trainer

Accident = Callable[[], None]


def command(argv: Sequence[str], accident: tuple[Callable[..., None], tuple[Any, ...]] | None = None) -> int:
    """Run `astroco pretrain ARGV` after preparing an accident: a function of this module, and its arguments."""
    if accident is not None:
        plan, args = accident
        plan(*args)
    return main(argv)


def this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def signal_at(place: str, count: int, rank: int = 0, number: int = signal.SIGTERM) -> None:
    """Signal a rank when it reaches a place for the count-th time, counted from 1."""
    places = {
        "forward": (Trainer, "forward_backward"),
        "evaluation": (TrainingData, "evaluation"),
        "conversion": (StoreWriter, "append"),
    }
    owner, name = places[place]
    _before(owner, name, count, lambda: os.kill(os.getpid(), number) if this_rank() == rank else None)


def stop_one_and_ask_the_other(stopped: int) -> None:
    """Stop a rank (SIGSTOP) before its third step, as one of two ranks of a torchrun, and ask the other to stop."""
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    watch.BEAT, watch.SPEAK, watch.GRACE = 0.1, 1.5, 1.0
    if this_rank() == stopped:
        _before(Trainer, "begin", 3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    else:
        _before(Trainer, "begin", 3, threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM)).start)


def kill_at(call: str, count: int) -> None:
    """Kill rank 0 before the count-th `os.fsync`, `os.rename` or `os.replace`."""
    _before(os, call, count, lambda: os.kill(os.getpid(), signal.SIGKILL) if this_rank() == 0 else None)


def not_finite_at(steps: Sequence[int], rank: int, what: str = "loss") -> None:
    """Make a rank's squared errors NaN, or its gradient infinite, in these steps (from 0)."""
    begin, loss, forward_backward = Trainer.begin, ops.masked_loss, Trainer.forward_backward
    now = {"bad": False}

    def beginning(self: Trainer, step: int) -> None:
        now["bad"] = step in steps and this_rank() == rank
        begin(self, step)

    def masked_loss(*args: Any) -> Any:
        squared, count = loss(*args)
        if now["bad"] and what == "loss" and torch.is_grad_enabled():
            squared = squared * torch.tensor([float("nan")] + [1.0] * (len(squared) - 1))[:, None]
        return squared, count

    def poisoned(self: Trainer, *args: Any, **keywords: Any) -> None:
        forward_backward(self, *args, **keywords)
        if now["bad"] and what == "gradient":
            self.parameters[0].grad.fill_(float("inf"))

    Trainer.begin, ops.masked_loss, Trainer.forward_backward = beginning, masked_loss, poisoned  # type: ignore[method-assign]


def pretend_gpus(count: int) -> None:
    """Let PyTorch say that this machine has `count` GPUs."""
    torch.cuda.is_available, torch.cuda.device_count = lambda: count > 0, lambda: count


def _before(owner: Any, name: str, count: int, action: Callable[[], Any]) -> None:
    original, calls = getattr(owner, name), {"n": 0}

    def replacement(*args: Any, **keywords: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == count:
            action()
        return original(*args, **keywords)

    setattr(owner, name, replacement)


def evaluations(errors: Sequence[float]) -> None:
    """Replace the validation RMSE of each evaluation by these numbers."""
    evaluate, left = task.evaluate, list(errors)

    def replacement(*args: Any) -> Any:
        found, error = evaluate(*args), left.pop(0)
        return {**found, "rmse": error, "rmse_hidden": error}

    task.evaluate = replacement


def note_windows(path: str) -> None:
    """Write the windows of each step's global batch to a file, one line a step."""
    count = loop.Loop.count

    def counting(self: loop.Loop, batches: StepBatches, outcome: Outcome) -> None:
        shares = self.ranks.gather([int(i) for micro in batches.micro for i in micro.index if i >= 0])
        if this_rank() == 0:
            with open(path, "a") as file:
                file.write(f"[{self.state.step}, {sorted(i for share in shares for i in share)}]\n")
        count(self, batches, outcome)

    loop.Loop.count = counting  # type: ignore[method-assign]
