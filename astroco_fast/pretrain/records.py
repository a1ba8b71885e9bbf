"""The lines of metrics.jsonl, from what a run has counted. `log.py` lists their fields."""

import resource
import sys
import time
from typing import Any

import torch

from astroco_fast.data.training import StepBatches, TrainingData
from astroco_fast.pretrain.flops import training_flops
from astroco_fast.pretrain.objective import Sums
from astroco_fast.pretrain.state import State
from astroco_fast.pretrain.trainer import StepResult, Trainer
from astroco_fast.reference.loss import ROLES


class Stopwatch:
    """Where the time of the steps since the last line went. Evaluations and checkpoints are not counted.

    Attributes:
        seconds: by what was done: "data" (waiting for windows, and their upload), "model", "optimizer"; "assembly" of
            windows, which goes on beside these in a thread; and "total", in which the rest is everything else.
        points, pairs: real points of the windows, and real points squared by window.
    """

    def __init__(self) -> None:
        self.reset()
        self.resume()

    def reset(self) -> None:
        """Begin another line."""
        self.seconds = dict.fromkeys(("data", "model", "optimizer", "assembly", "total"), 0.0)
        self.windows, self.points, self.pairs = 0, 0.0, 0.0

    def resume(self) -> None:
        """Do not count the time since the last step."""
        self._lap = time.perf_counter()

    def add(self, batches: StepBatches, result: StepResult, waited: float) -> None:
        """Count a step, and all that was done since the last one. Args: seconds waited for its windows."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._lap
        self._lap = now
        self.seconds["data"] += waited + result.data_seconds
        self.seconds["model"] += result.model_seconds
        self.seconds["optimizer"] += result.optimizer_seconds
        self.seconds["assembly"] += batches.assembly_seconds
        self.windows += len(batches.windows)
        self.points += result.work[0]
        self.pairs += result.work[1]

    def record(self, trainer: Trainer, rate: float) -> dict[str, float]:
        """The fields of `log.TIMING` but one. Args: `rate` in operations per second, of all ranks together."""
        total = max(self.seconds["total"], 1e-9)
        shares = {f"share_{key}": self.seconds[key] / total for key in ("data", "model", "optimizer")}
        return {
            "windows_per_s": self.windows / total,
            **shares,
            "share_other": 1 - sum(shares.values()),
            "share_assembly": self.seconds["assembly"] / total,
            "mfu": training_flops(trainer.model, self.points, self.pairs) / total / rate,
            "memory_gb": peak_memory(trainer.ranks.device) / 1e9,
        }


def train_record(state: State, epoch: int, learning_rate: float) -> dict[str, Any]:
    """The steps since the last line. Args: where the run stands; epoch and learning rate of the last step."""
    interval = state.interval
    squared, count = interval.sums[Sums.SQUARED], interval.sums[Sums.COUNT]
    rmse = {"rmse": _root(sum(squared), sum(count))}
    rmse |= {f"rmse_{role}": _root(s, n) for role, s, n in zip(ROLES, squared, count, strict=True)}
    return {
        "step": state.step,
        "epoch": epoch,
        "split": "train",
        "loss": interval.loss / interval.steps if interval.steps else None,
        **rmse,
        "lr": learning_rate,
        "grad_norm": interval.grad_norm / interval.steps if interval.steps else None,
        "windows_seen": state.windows_seen,
        "skipped": interval.skipped,
    }


def skipped_record(data: TrainingData, step: int, batches: StepBatches, suspects: list[int]) -> dict[str, Any]:
    """A step that was not applied. Args: windows of the global batch whose own loss is not finite."""
    return {
        "step": step,
        "epoch": batches.epoch,
        "split": "skipped",
        "windows": batches.windows.tolist(),
        "curves": data.curves_of(batches.windows),
        "suspects": suspects,
        "suspect_curves": data.curves_of(suspects),
    }


def describe_skipped(record: dict[str, Any]) -> str:
    """Which windows a skipped step held, for a message."""
    blame = ""
    if record["suspects"]:
        blame = f"; not finite by themselves: {_pairs(record['suspects'], record['suspect_curves'])}"
    return f"step {record['step']} (epoch {record['epoch']}) held {_pairs(record['windows'], record['curves'])}{blame}"


def peak_memory(device: torch.device) -> float:
    """Bytes: of the GPU where that is the device, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _root(squared: float, count: float) -> float | None:
    return (squared / count) ** 0.5 if count else None


def _pairs(windows: list[int], curves: list[str], shown: int = 8) -> str:
    named = [f"{window} ({curve})" for window, curve in zip(windows[:shown], curves, strict=False)]
    more = len(windows) - shown
    return f"windows {', '.join(named)}" + (f" and {more} more" if more > 0 else "")
