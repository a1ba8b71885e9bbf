"""What a run trains for, which the loop does not know: `Pretraining` here, fine-tuning in `astroco_fast.finetune`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import nn

from astroco_fast import presets, registry
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.errors import UserError
from astroco_fast.pretrain import run_folder
from astroco_fast.pretrain.checkpoint import State
from astroco_fast.pretrain.config import PretrainConfig, RunConfig
from astroco_fast.pretrain.evaluate import evaluate
from astroco_fast.pretrain.log import introduction, train_record
from astroco_fast.pretrain.objective import Objective, Reconstruction
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.start import read_start
from astroco_fast.pretrain.step import Trainer

CPU_MICRO_BATCH = 32
Config = TypeVar("Config", bound=RunConfig)


class Task(ABC, Generic[Config]):
    """What a run trains for: its model, its windows, its loss and its figures.

    Attributes:
        command: the command that trains for it.
        config: the settings, with their defaults filled in.
        window: T, the points of a window.
    """

    command: ClassVar[str]

    def __init__(self, config: Config, window: int) -> None:
        self.config, self.window = config, window

    @abstractmethod
    def prepare(self) -> None:
        """Read what a new run needs besides its light curves, before these are read."""

    def data(self, store: Store, ranks: Ranks, **settings: Any) -> TrainingData:
        """The run's windows; `settings` are further arguments of `TrainingData`."""
        config, train = self.config, self.config.train
        return TrainingData(
            store,
            size=self.window,
            seed=config.seed,
            global_batch=cast(int, train.global_batch),
            micro_batch=train.micro_batch or (CPU_MICRO_BATCH if ranks.device.type == "cpu" else None),
            band=config.band,
            views=config.views or "time",
            random_windows=train.windows == "random",
            evaluate_windows=train.evaluate_windows,
            rank=ranks.rank,
            world=ranks.world,
            **settings,
        )

    @abstractmethod
    def build(self, data: TrainingData) -> nn.Module:
        """The model to train, freshly initialised."""

    @abstractmethod
    def start(self, model: nn.Module, data: TrainingData) -> None:
        """Change a new run's model in place, before the first step."""

    @abstractmethod
    def objective(self, data: TrainingData) -> Objective:
        """The loss."""

    @abstractmethod
    def introduction(self, data: TrainingData, trainer: Trainer) -> str:
        """The model, the data and the devices of the run, in one line for the user."""

    @abstractmethod
    def train_record(self, state: State, epoch: int, learning_rate: float) -> dict[str, Any]:
        """The line of metrics for the steps since the last one, machine-dependent fields left out."""

    @abstractmethod
    def evaluate(self, trainer: Trainer, data: TrainingData, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The figures of the validation split, among them `loss`, of which the lowest is the best; None if stopped."""

    @abstractmethod
    def card_notes(self, state: State, data: TrainingData) -> str:
        """Text for a checkpoint's model card."""

    @abstractmethod
    def report(self, out: Path, data: TrainingData) -> list[Path]:
        """Write a finished run's plots and other results (rank 0); return their paths."""


class Pretraining(Task[PretrainConfig]):
    """Masked reconstruction."""

    command = "pretrain"

    def __init__(self, config: PretrainConfig, initialise: Callable[[nn.Module], None] | None = None) -> None:
        """Fill in the settings' defaults.

        Args:
            config: the settings as the user gave them.
            initialise: changes the freshly built model's parameters in place, before the first step.

        Raises:
            UserError: there is no such preset, or a setting is out of range.
        """
        super().__init__(
            config.resolve(presets.preset(config.preset)), presets.configure(config.preset, config.model).window
        )
        self._initialise = initialise
        self._saved: nn.Module | None = None

    def prepare(self) -> None:
        if self.config.start_from is not None:
            self._saved = read_start(self.config)

    def build(self, data: TrainingData) -> nn.Module:
        config = self.config
        model: Any = registry.build(config.preset, **config.model)
        model.views = config.views
        if config.train.recompute:
            if not hasattr(model, "recompute"):
                reason = f"preset {config.preset!r} can't recompute its activations"
                raise UserError(f"train.recompute: {reason}; leave it out")
            model.recompute = True
        return cast(nn.Module, model)

    def start(self, model: nn.Module, data: TrainingData) -> None:
        if self._saved is not None:
            model.load_state_dict(self._saved.state_dict())
        if self._initialise is not None:
            self._initialise(model)

    def objective(self, data: TrainingData) -> Objective:
        return Reconstruction(cast(str, self.config.train.loss))

    def introduction(self, data: TrainingData, trainer: Trainer) -> str:
        return introduction(self.config, data, trainer)

    def train_record(self, state: State, epoch: int, learning_rate: float) -> dict[str, Any]:
        return train_record(state, epoch, learning_rate)

    def evaluate(self, trainer: Trainer, data: TrainingData, stop: Callable[[], bool]) -> dict[str, Any] | None:
        found = evaluate(trainer, data, stop)
        return None if found is None else {"loss": found["rmse"], **found}

    def card_notes(self, state: State, data: TrainingData) -> str:
        return run_folder.card_notes(state, data, self.config.start_from)

    def report(self, out: Path, data: TrainingData) -> list[Path]:
        from astroco_fast.pretrain.report import plot_run

        return plot_run(out, data=data.store.path) if self.config.train.plots else []
