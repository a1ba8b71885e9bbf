"""A run's reports: metrics.jsonl, the terminal, and TensorBoard.

metrics.jsonl has one JSON object a line, of one of three kinds, which "split" distinguishes:

- "train": the steps since the last such line. step, epoch, loss (mean over steps), rmse, rmse_hidden, rmse_random,
  rmse_unchanged, lr, grad_norm (mean, before clipping), windows_seen, skipped (steps), and the fields of `TIMING`.
- "validation": step, epoch, loss and rmse (the same), rmse_*, r2, r2_*, trivial_rmse, trivial_rmse_* (predicting each
  window's mean), windows, best (bool), seconds.
- "skipped": a step that was not applied, its windows (numbers in the store) and the light curves they come from.

Errors are in magnitudes. The fields in `TIMING` depend on the machine; all others are the same to the bit however often
a run was stopped and resumed.
"""

import json
import math
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from astroco_fast.data.training import StepBatches, TrainingData
from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.flops import training_flops
from astroco_fast.pretrain.checkpoint import State
from astroco_fast.pretrain.config import PretrainConfig
from astroco_fast.pretrain.objective import SumIndex
from astroco_fast.pretrain.step import Trainer
from astroco_fast.reference.loss import ROLES

# Shares are of rank 0's wall time since the last line. `share_data` is the wait for windows and their upload;
# `share_assembly`, the processor time of the thread that assembles them, comes on top of the others; `mfu`, the model
# FLOPs utilisation, is an estimate (flops.py); `memory_gb` is the process's peak (GPU memory on a GPU).
TIMING = (
    "windows_per_s",
    "share_data",
    "share_model",
    "share_optimizer",
    "share_other",
    "share_assembly",
    "mfu",
    "memory_gb",
    "seconds",
)
SECONDS_BETWEEN_LINES = 30.0


class MetricsFile:
    """Append-only metrics.jsonl, which a resumed run cuts back to what its checkpoint knew.

    A line that cannot be written, on a full disk, waits for the next one: rank 0 must not end because of it while the
    others compute. All ranks learn of the full disk at the next checkpoint, from `sync`.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open the file, and cut off what follows the checkpoint.

        Args:
            path: the file's path.
            size: its length in bytes as of the checkpoint, 0 for a new run.

        Raises:
            UserError: the file is shorter than that.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._waiting = b""
        self._file = path.open("ab", buffering=0)
        if self._file.tell() < size:
            raise UserError(
                f"{path}: shorter than when the run was saved; put it back, or start again with another --out"
            )
        self._file.truncate(size)
        self.size = size

    def write(self, record: dict[str, Any]) -> None:
        """Append a line; it reaches the file at once. Numbers that are not finite, which JSON lacks, become null."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        line = json.dumps(finite).encode() + b"\n"
        self.size += len(line)
        self._waiting += line
        with suppress(OSError):
            self._write_out()

    def sync(self) -> None:
        """Force the file to disk, before a checkpoint records its length.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self._write_out()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written: {error.strerror}; "
                "free some disk space and run the same command again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._write_out()
        self._file.close()

    def _write_out(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


class Console:
    """Messages and progress of rank 0: a bar on a terminal, else a line now and then. Other ranks are silent."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self._bar: Any = None
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def say(self, text: str) -> None:
        """Print a line for the user on stdout."""
        if self.speaks:
            tqdm.write(text) if self._bar is not None else print(text, flush=True)

    def start(self, total: int, done: int) -> None:
        """Begin to show progress, from `done` of the run's `total` steps on."""
        if self.speaks and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Show that another step is done."""
        if self._bar is not None:
            self._bar.update()

    def progress(self, record: dict[str, Any]) -> None:
        """Show a line of training metrics, if it is time for one."""
        rate = f"{record['windows_per_s']:.0f} windows/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"epoch {record['epoch']}, loss {_number(record['loss'])}, {rate}")
        elif self.speaks and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.say(f"step {record['step']} (epoch {record['epoch']}): loss {_number(record['loss'])}, {rate}")

    def validation(self, record: dict[str, Any]) -> None:
        """Show an evaluation."""
        best = ", the best so far" if record["best"] else ""
        if "macro_f1" in record:  # of classes rather than of a reconstruction
            self.say(
                f"step {record['step']} (epoch {record['epoch']}): validation macro-F1 {_number(record['macro_f1'])}, "
                f"accuracy {_number(record['accuracy'])}, cross-entropy {_number(record['loss'])}{best}"
            )
            return
        self.say(
            f"step {record['step']} (epoch {record['epoch']}): validation RMSE {_number(record['rmse'])}, at hidden "
            f"points {_number(record['rmse_hidden'])} (window mean: {_number(record['trivial_rmse_hidden'])}), "
            f"R2 {_number(record['r2'])}{best}"
        )

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoard:
    """The numbers of the metrics lines, as TensorBoard's event files."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Begin to write to `folder`, and hide what an earlier start wrote of steps after `first_step`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "tensorboard", "train.tensorboard") from None
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Write a metrics line's numbers as scalars."""
        for key, value in record.items():
            if isinstance(value, int | float) and key != "step":
                self._writer.add_scalar(f"{record['split']}/{key}", value, record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Log:
    """Everything that a run reports, on rank 0; nothing on the others."""

    def __init__(self, out: Path, console: Console, metrics_bytes: int, step: int, tensorboard: bool) -> None:
        """Open the files.

        Args:
            out: the run's folder.
            console: the terminal.
            metrics_bytes, step: where metrics.jsonl and TensorBoard go on.
            tensorboard: whether to write for TensorBoard.
        """
        self.console = console
        self._metrics = MetricsFile(out / "metrics.jsonl", metrics_bytes) if console.speaks else None
        self._tensorboard = TensorBoard(out / "tensorboard", step) if console.speaks and tensorboard else None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.console.close()
        for sink in (self._metrics, self._tensorboard):
            if sink is not None:
                sink.close()

    def flushed_size(self) -> int:
        """The length of metrics.jsonl once all of it is on disk; 0 on ranks that do not write."""
        if self._metrics is None:
            return 0
        self._metrics.sync()
        return self._metrics.size

    def write(self, record: dict[str, Any]) -> None:
        """Record a metrics line, and show it."""
        for sink in (self._metrics, self._tensorboard):
            if sink is not None:
                sink.write(record)
        if record["split"] == "train":
            self.console.progress(record)
        elif record["split"] == "validation":
            self.console.validation(record)


class Stopwatch:
    """Where the wall time since the last line of training metrics went. Evaluations and checkpoints are not counted.

    Attributes:
        seconds: the time by activity: "data" (waiting for windows, and their upload), "model" (forward and backward
            passes, and the reduction), "optimizer" and "other".
        assembly: processor seconds of the thread that assembles windows beside these.
        windows, points: the numbers of windows and of their real points in the steps.
        attention_pairs: the sum over windows of the squared number of real points (the work of attention).
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin another line."""
        self.seconds = dict.fromkeys(("data", "model", "optimizer", "other"), 0.0)
        self.windows, self.points, self.attention_pairs, self.assembly = 0, 0.0, 0.0, 0.0
        self.skip()

    def skip(self) -> None:
        """Leave out the time since the last lap."""
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        """Count the time since the last lap as spent on `what`."""
        now = time.perf_counter()
        self.seconds[what] += now - self._last
        self._last = now

    def count(self, windows: int, points: float, attention_pairs: float, assembly: float) -> None:
        """Add a step's work, and the processor seconds that it took to assemble its windows."""
        self.windows += windows
        self.points += points
        self.attention_pairs += attention_pairs
        self.assembly += assembly

    def record(self, trainer: Trainer, rate: float) -> dict[str, float]:
        """All fields of `TIMING` but "seconds", given the matrix-multiply rate of all ranks, operations per second."""
        total = max(sum(self.seconds.values()), 1e-9)
        return {
            "windows_per_s": self.windows / total,
            **{f"share_{what}": seconds / total for what, seconds in self.seconds.items()},
            "share_assembly": self.assembly / total,
            "mfu": training_flops(trainer.model, self.points, self.attention_pairs) / total / rate,
            "memory_gb": peak_memory(trainer.ranks.device) / 1e9,
        }


def introduction(config: PretrainConfig, data: TrainingData, trainer: Trainer) -> str:
    """The model, the data and the devices of the run, in one line for the user."""
    ranks, train = trainer.ranks, config.train
    parameters = sum(p.numel() for p in trainer.model.parameters())
    curves = f"{data.store.n_curves:,} {'SIMULATED ' * data.store.simulated}light curves"
    return (
        f"Pretraining {config.preset} ({parameters:,} parameters) on {curves}: {len(data.train):,} windows to train, "
        f"{len(data.validation):,} to validate; {train.global_batch} a step, {data.steps_per_epoch} steps an epoch, "
        f"at most {train.total_steps(data.steps_per_epoch):,} steps; {ranks.world} rank(s) on {ranks.device.type}, "
        f"{train.precision}. Run folder: {config.out}"
    )


def train_record(state: State, epoch: int, learning_rate: float) -> dict[str, Any]:
    """The line of metrics for the steps since the last one, machine-dependent fields left out.

    Args:
        state: the run's progress.
        epoch, learning_rate: those of the last step.
    """
    interval = state.interval
    squared, count = interval.sums[SumIndex.SQUARED], interval.sums[SumIndex.COUNT]
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
    """The line of metrics for a step that was not applied.

    Args:
        data: the run's windows.
        step: the step's number, from 1.
        batches: its windows.
        suspects: those windows of the global batch whose own loss is not finite.
    """
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
    """The windows of a skipped step, for a message."""
    blame = ""
    if record["suspects"]:
        blame = f"; not finite by themselves: {_pairs(record['suspects'], record['suspect_curves'])}"
    return f"step {record['step']} (epoch {record['epoch']}) held {_pairs(record['windows'], record['curves'])}{blame}"


def peak_memory(device: torch.device) -> float:
    """The peak of the memory in use so far, in bytes: the GPU's on a GPU, else this process's."""
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


def _number(value: float | None) -> str:
    """A figure for the terminal; None, which is a figure over no points, is "none"."""
    return "none" if value is None else f"{value:.4f}"
