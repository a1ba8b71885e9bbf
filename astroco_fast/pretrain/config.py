"""The settings of a pretraining run, and those of them that may change when it is resumed."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol

from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns
from astroco_fast.data.views import Views
from astroco_fast.errors import UserError
from astroco_fast.presets import Preset, preset
from astroco_fast.settings import check_seed


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's where it gives a value.

    Args:
        epochs: the most passes over the training windows. Default: until early stopping (1000); 6 without --data.
        max_steps: stop after this many optimiser steps, if the run has not ended before. Default: the preset's, if it
            has one.
        global_batch: windows of one optimiser step, whatever the number of ranks. Default: the preset's, or 256; 64
            without --data.
        micro_batch: windows of one forward pass of one rank; a smaller number needs less memory. Gradients accumulate
            exactly, but BatchNorm normalises each forward pass by itself. Default: 32 on a CPU, the rank's whole share
            on a GPU.
        learning_rate: AdamW's learning rate. Default: the preset's.
        weight_decay: AdamW's weight decay of matrices and convolutions; biases, normalisations and mixing weights have
            none.
        betas: AdamW's betas.
        warmup_steps: the learning rate rises linearly over these first steps, then stays constant. Default: 100; 20
            without --data.
        decay_steps: the learning rate falls linearly to zero over the last this many of `max_steps`. Default: the
            preset's, or 0: it stays constant.
        clip_norm: gradients of a larger norm are scaled down to this norm; null: never.
        ema_decay: keep an exponential moving average of the weights, evaluate it, and save it as the model; null: no.
            On by default, since one Adam step moves all of the reconstruction head's weights together: without the
            average, preset S at its learning rate had the mean of all reconstructions swing by 0.15 mag, with a period
            of 11 steps, while the error without that swing fell steadily to 0.158 mag. Averaging over steps removes it.
        loss: batch = the root of the mean squared error over all probed points of the global batch; curve = the
            paper's Eq. (3), the mean over windows of each window's root. Default: the preset's, or batch.
        sync_batchnorm: BatchNorm statistics over all ranks rather than each rank's own.
        recompute: keep only each block's input for the backward pass, and run the block again there. This takes less
            memory and about a third more time.
        precision: bf16 = autocast to bfloat16, with float32 parameters; fp32 = float32 throughout.
        windows: sequential = a light curve is cut into windows one after another; random = each window starts anywhere
            in its light curve, and is drawn again every epoch. Evaluation is always on sequential windows.
        patience: stop after this many evaluations in a row without a better validation RMSE.
        evaluate_every: steps between evaluations. Default: evaluate at the end of each epoch.
        evaluate_windows: the most validation windows to evaluate on. Default: all.
        log_every: steps that one line of metrics.jsonl summarises.
        checkpoint_minutes: save at least this often; every evaluation saves as well.
        checkpoint_every: save every so many steps as well. Default: save only as above.
        keep: how many checkpoints are kept besides the best one.
        max_bad_steps: stop after this many steps in a row whose loss or gradient is not finite (each is skipped).
        tensorboard: also write TensorBoard files to the run's folder.
        plots: draw the run's plots when it is finished, if matplotlib is installed; `astroco report RUN` draws them at
            any time.
        device: where to train; auto = a GPU if there is one, else the CPU.
    """

    epochs: int | None = None
    max_steps: int | None = None
    global_batch: int | None = None
    micro_batch: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int | None = None
    decay_steps: int | None = None
    clip_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    loss: Literal["batch", "curve"] | None = None
    sync_batchnorm: bool = False
    recompute: bool = False
    precision: Literal["bf16", "fp32"] = "bf16"
    windows: Literal["sequential", "random"] = "sequential"
    patience: int = 20
    evaluate_every: int | None = None
    evaluate_windows: int | None = None
    log_every: int = 10
    checkpoint_minutes: float = 10.0
    checkpoint_every: int | None = None
    keep: int = 2
    max_bad_steps: int = 10
    tensorboard: bool = False
    plots: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "global_batch", "micro_batch", "patience", "evaluate_every", "evaluate_windows")
        for name in (*at_least_one, "max_steps", "log_every", "checkpoint_every", "keep", "max_bad_steps"):
            self._require(name, lambda value: value >= 1, "at least 1")
        for name in ("learning_rate", "clip_norm", "checkpoint_minutes"):
            self._require(name, lambda value: 0 < value < float("inf"), "a positive number")
        for name in ("weight_decay", "warmup_steps", "decay_steps"):
            self._require(name, lambda value: 0 <= value < float("inf"), "zero or more")
        self._require("ema_decay", lambda value: 0 < value < 1, "between 0 and 1")
        self._require("betas", lambda value: all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The steps of a whole run, unless it stops early."""
        steps = (self.epochs or 0) * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def _require(self, name: str, holds: Any, what: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise UserError(f"train.{name} must be {what}, got {value!r}")


class RunConfig(Protocol):
    """The settings that every run that trains has, whatever it trains for."""

    @property
    def data(self) -> str | None: ...
    @property
    def band(self) -> str | None: ...
    @property
    def views(self) -> Views | None: ...
    @property
    def out(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def clean(self) -> CleanConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON types, which `--config` reads back."""

    def defaults(self) -> dict[str, Any]:
        """The settings of a run of this model and data that sets nothing else."""


USUAL: dict[str, Any] = {"epochs": 1000, "global_batch": 256, "warmup_steps": 100, "decay_steps": 0, "loss": "batch"}
# Without --data: enough to beat the trivial answer clearly, in under three minutes on two cores.
FIRST_RUN: dict[str, Any] = {"epochs": 6, "global_batch": 64, "warmup_steps": 20, "decay_steps": 0}


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain an encoder by masked reconstruction.

    Args:
        preset: which model and recipe: tiny; the paper's S and L; its ablations S-no-conv, S-no-gate, S-no-mix; the
            released weights' fold-small and fold-S; or a baseline: astromer-v1, astromer-v2, astromer-v2-paper.
        data: the light curves: a store made by `astroco convert`, or any file or folder that it reads. Default: a
            simulated survey.
        band: take only this band.
        views: time = windows of consecutive points; folded = windows in the order of phase, at each light curve's
            period; both. Default: the preset's. Periods are searched for first, unless the store has them.
        start_from: begin with the weights of this saved model, of the same preset and views: a released model's name, a
            folder, or hub:NAME/REPOSITORY. Default: random weights.
        out: the run's folder; an unfinished run in it with the same settings is resumed. Default: runs/PRESET-DATA.
        seed: decides weights, masks, order, dropout and the simulated survey.
        columns: names of the table's columns, if they are not the usual ones.
        clean: which points count as measurements.
        model: changes to the preset's model settings, such as --model.layers 2.
        train: how to train.
    """

    preset: str = "tiny"
    data: str | None = None
    band: str | None = None
    views: Views | None = None
    start_from: str | None = None
    out: str | None = None
    seed: int = 0
    columns: Columns = field(default_factory=Columns)
    clean: CleanConfig = field(default_factory=CleanConfig)
    model: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def resolve(self, of: Preset) -> "PretrainConfig":
        """These settings with the defaults that depend on other settings filled in.

        `micro_batch` is left unset, since its default depends on the machine.

        Args:
            of: the preset that `preset` names.

        Raises:
            UserError: the learning rate is to fall before the end, but no last step is given.
        """
        name = "simulated" if self.data is None else data_name(self.data)
        defaults = {**USUAL, **of.train, "learning_rate": of.learning_rate}
        if self.data is None:
            defaults |= FIRST_RUN
        unset = {key: value for key, value in defaults.items() if getattr(self.train, key) is None}
        train = replace(self.train, **unset)
        if train.decay_steps and train.max_steps is None:
            raise UserError("train.decay_steps: the learning rate falls to zero at train.max_steps, which is not given")
        out = self.out or f"runs/{self.preset}-{name}"
        return replace(self, views=self.views or of.views, out=out, train=train)

    def defaults(self) -> dict[str, Any]:
        """The settings of a run of this preset and data that sets nothing else, as `to_dict` gives them."""
        return PretrainConfig(self.preset, self.data).resolve(preset(self.preset)).to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON types, which `--config` reads back."""
        values = asdict(self)
        values["train"]["betas"] = list(values["train"]["betas"])
        return values


def data_name(data: str) -> str:
    """A name for light curves: the last part of their path that is not a glob pattern, without endings."""
    parts = Path(data).parts if Path(data).exists() else takewhile(lambda part: not has_magic(part), Path(data).parts)
    return Path(os.path.abspath(Path(*parts))).name.strip(".").split(".")[0] or "data"


# A resumed run may change these settings, which decide when it ends, what it reports and when it saves, but not what
# it computes.
_ENDS = ("epochs", "max_steps", "decay_steps", "patience", "max_bad_steps")
_SHOWS = ("evaluate_every", "log_every", "checkpoint_minutes", "checkpoint_every", "keep", "tensorboard", "plots")
FREE = {"out", *(f"train.{name}" for name in (*_ENDS, *_SHOWS))}
# It may also change these, with a note to the user: global batches stay the same, but results differ in the last bits.
MACHINE = {"train.micro_batch", "train.device", "train.recompute"}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations (`to_dict`) differ."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after or (key in old) != (key in new):
            found.append(prefix + key)
    return found
