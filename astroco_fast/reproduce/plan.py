"""The form of an experiment: its rows, each a model with its training, and the budget that every row gets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from astroco_fast.errors import UserError

WINDOWS, TIME = "equal windows", "equal time"
STAGES = (WINDOWS, TIME)


@dataclass(frozen=True)
class Row:
    """A model to pretrain and probe.

    Attributes:
        name: the row's name in tables and for `--models`.
        preset: the preset that the model is built from.
        model: changes to the preset's configuration.
        train: changes to the budget's and the preset's settings of training, as fields of `TrainConfig`.
        seed: added to the experiment's seed for this row's weights, order and masks.
        initialise: changes the new model's parameters in place before the first step.
    """

    name: str
    preset: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    initialise: Callable[[nn.Module], None] | None = None

    @property
    def folder(self) -> str:
        """The row's name in paths."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Budget:
    """An experiment: the rows, and the training of each.

    Attributes:
        name: the value of `--budget`.
        rows: the models.
        windows: training windows that each model sees, repeats included; None: `epochs` passes over the survey's.
        epochs: passes over the training windows where `windows` is None.
        global_batch: windows of an optimiser step.
        warmup_steps: steps in which the learning rate rises.
        validation_windows: windows to evaluate on; None: all.
        gpus: number of GPUs that the budget is meant for; 0: a CPU.
        stages: those of `STAGES` that the models are trained to.
        head_seeds: runs of the linear head on each fold of the probes.
    """

    name: str
    rows: tuple[Row, ...]
    windows: int | None
    epochs: int
    global_batch: int
    warmup_steps: int
    validation_windows: int | None
    gpus: int
    stages: tuple[str, ...] = STAGES
    head_seeds: int = 3

    def only(self, names: Sequence[str] | None) -> "Budget":
        """The same budget with only these rows; None: all.

        Raises:
            UserError: there is no such row; lists those there are.
        """
        if names is None:
            return self
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise UserError(f"models: no row {name!r}; there are: {', '.join(map(repr, known))}")
        return replace(self, rows=tuple(row for row in self.rows if row.name in names))
