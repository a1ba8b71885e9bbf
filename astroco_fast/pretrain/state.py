"""What a run must remember, besides tensors, to go on exactly where it stopped."""

from dataclasses import asdict, dataclass, field
from typing import Any

from astroco_fast.pretrain.objective import Sums


@dataclass
class Interval:
    """What the next line of training metrics sums up: the steps since the last one.

    Attributes:
        steps: optimiser steps applied.
        skipped: steps skipped because something was not finite.
        sums: the steps' `Sums`, added.
        loss, grad_norm: added over the applied steps.
    """

    steps: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * Sums.SIZE)
    loss: float = 0.0
    grad_norm: float = 0.0

    def add(self, sums: list[float], loss: float, grad_norm: float) -> None:
        """Count an applied step."""
        self.steps += 1
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)]
        self.loss += loss
        self.grad_norm += grad_norm


@dataclass
class State:
    """Where a run stands, between two steps.

    Attributes:
        step: steps taken, skipped ones included.
        epoch: the epoch of the next step, from 1.
        position: global batches of that epoch already taken.
        windows_seen: training windows in the steps taken.
        evaluated_step: the step at which the validation split was last evaluated; -1: never.
        best: the validation metrics of the best evaluation so far, None before the first.
        best_checkpoint: the checkpoint that holds its weights.
        worse: evaluations in a row that were not better than the best.
        bad_in_a_row: steps skipped in a row.
        bad_steps: steps skipped in all.
        interval: running sums of the next line of training metrics.
        metrics_bytes: length of metrics.jsonl when this was saved; what follows is cut off when the run goes on.
        seconds: time spent in this run, over all its starts.
    """

    step: int = 0
    epoch: int = 1
    position: int = 0
    windows_seen: int = 0
    evaluated_step: int = -1
    best: dict[str, Any] | None = None
    best_checkpoint: str | None = None
    worse: int = 0
    bad_in_a_row: int = 0
    bad_steps: int = 0
    interval: Interval = field(default_factory=Interval)
    metrics_bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; floats survive JSON to the bit."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "State":
        """The inverse of `to_dict`."""
        return cls(**{**values, "interval": Interval(**values["interval"])})
