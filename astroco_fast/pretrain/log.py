"""What a run tells: metrics.jsonl, the terminal, and TensorBoard.

metrics.jsonl has one object a line, of one of three kinds, told apart by "split":

- "train": the steps since the last such line. step, epoch, loss (mean over steps), rmse, rmse_hidden, rmse_random,
  rmse_unchanged, lr, grad_norm (mean, before clipping), windows_seen, skipped (steps), and the fields of `TIMING`.
- "validation": step, epoch, loss and rmse (the same), rmse_*, r2, r2_*, trivial_rmse, trivial_rmse_* (predicting each
  window's mean), windows, best (bool), seconds.
- "skipped": a step that was not applied, its windows (numbers in the store) and the light curves they come from.

Magnitudes throughout. Fields in `TIMING` depend on the machine; all others are the same to the bit however often a run
was stopped and resumed.
"""

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from astroco_fast.errors import MissingExtraError, UserError

# Shares are of the wall time since the last line, rank 0's. `share_data` is the wait for windows and their upload;
# `share_assembly`, the processor time of the thread that makes them, comes on top of the others; `mfu` is an estimate
# (flops.py); `memory_gb` is the process's peak (GPU memory on a GPU).
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
    """Append-only metrics.jsonl, cut back to what a checkpoint knew when a run goes on.

    A line that the disk does not take waits for the next one: rank 0 must not end for it while the others compute. The
    next checkpoint is where all ranks learn of a full disk, from `sync`.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Args: the file; its length in bytes as of the checkpoint, 0 for a new run."""
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
        """Append a line; it reaches the file at once. What is not finite becomes null: JSON has no word for it."""
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
            UserError: the disk takes no more.
        """
        try:
            self._write_out()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written: {error.strerror}; make room, and the same command goes on"
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
    """Rank 0's voice: a progress bar on a terminal, else a line now and then; other ranks keep quiet."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self._bar: Any = None
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def say(self, text: str) -> None:
        """A line for the user, on stdout."""
        if self.speaks:
            tqdm.write(text) if self._bar is not None else print(text, flush=True)

    def start(self, total: int, done: int) -> None:
        """Begin to show progress. Args: steps of the whole run, steps already taken."""
        if self.speaks and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Another step is done."""
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
        self.say(
            f"step {record['step']} (epoch {record['epoch']}): validation RMSE {_number(record['rmse'])}, at hidden "
            f"points {_number(record['rmse_hidden'])} (window mean: {_number(record['trivial_rmse_hidden'])}), "
            f"R2 {_number(record['r2'])}{', the best so far' if record['best'] else ''}"
        )

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoard:
    """The same numbers for TensorBoard."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Args: where to write; events of later steps, from before a resume, are hidden."""
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
    """Everything a run tells, on rank 0; silent on the others."""

    def __init__(self, out: Path, console: Console, metrics_bytes: int, step: int, tensorboard: bool) -> None:
        """Args: the run's folder; the terminal; where metrics.jsonl and TensorBoard go on."""
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
        """Length of metrics.jsonl, on disk for certain; 0 on ranks that do not write."""
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


def _number(value: float | None) -> str:
    """For the terminal; None where a figure is over no points."""
    return "none" if value is None else f"{value:.4f}"
