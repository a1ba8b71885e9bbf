"""Fine-tuning as a task of the training loop: the model, the windows, the figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData, upload
from astroco_fast.finetune.classes import (
    LOSS,
    RIGHT,
    WEIGHT,
    WINDOWS,
    BalancedCrossEntropy,
    Classes,
    balanced_weights,
    classes_of,
)
from astroco_fast.finetune.config import FinetuneConfig
from astroco_fast.finetune.model import Finetuned
from astroco_fast.finetune.scores import add_scores, figures
from astroco_fast.pretrain.checkpoint import State
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Trainer
from astroco_fast.pretrain.task import Task
from astroco_fast.pretrained import PretrainedEncoder, require_local
from astroco_fast.registry import load

_FITTED = 2048  # the training windows, about, that the head is first fitted to


class Finetuning(Task[FinetuneConfig]):
    """Classification by a head on the encoder, whose last blocks or all are trained, too."""

    command = "finetune"
    classes: Classes

    def __init__(self, config: FinetuneConfig) -> None:
        """Load the encoder, and fill in the settings' defaults.

        Raises:
            UserError: there is no such model, or a setting is out of range.
        """
        require_local(config.model)
        self._encoder: PretrainedEncoder = load(config.model)
        super().__init__(config.resolve(self._encoder.views), self._encoder.config.window)
        self._encoder.views = self.config.views or "time"

    def data(self, store: Store, ranks: Ranks, **settings: Any) -> TrainingData:
        """The windows of labelled light curves, no point of them hidden."""
        config = self.config
        self.classes = classes_of(store, config.labels, config.classes, config.columns)
        chosen = {"curves": self.classes.used, "parts": self.classes.parts, "masked": False}
        data = super().data(store, ranks, **chosen, **settings)
        self._of_window = self.classes.of_curve[data.table.curve]
        return data

    def prepare(self) -> None:
        """Nothing: the encoder is loaded already, since the windows depend on it."""

    def build(self, data: TrainingData) -> nn.Module:
        return Finetuned(self._encoder, self.classes.names, self.config.blocks)

    def start(self, model: nn.Module, data: TrainingData) -> None:
        """Fit the head to the encoder as it is, on some training windows."""
        finetuned = cast(Finetuned, model)  # as `build` makes it
        windows = data.train[:: max(1, len(data.train) // _FITTED)]
        finetuned.eval()
        found = []
        with torch.inference_mode():
            for first in range(0, len(windows), 64):
                batch = upload(data.evaluation_batch(windows[first : first + 64]), torch.device("cpu"))
                positional, keywords = batch.inputs()
                keywords.pop("hidden")
                found.append(finetuned.encoder(*positional, **keywords).embedding)
        true = self._of_window[windows]
        weights = balanced_weights(true, len(self.classes.names))[true]
        finetuned.head.fit(torch.cat(found).clone(), torch.from_numpy(true), torch.from_numpy(weights))

    def objective(self, data: TrainingData) -> BalancedCrossEntropy:
        weights = balanced_weights(self._of_window[data.train], len(self.classes.names))
        return BalancedCrossEntropy(self._of_window, weights)

    def introduction(self, data: TrainingData, trainer: Trainer) -> str:
        config, ranks = self.config, trainer.ranks
        trained, all_of = (sum(p.numel() for p in some) for some in (trainer.parameters, trainer.model.parameters()))
        curves = f"{np.count_nonzero(self.classes.used):,} {'SIMULATED ' * data.store.simulated}light curves"
        copies = f" ({self.classes.copies:,} copies left out)" if self.classes.copies else ""
        return (
            f"Fine-tuning {config.model} ({trained:,} of {all_of:,} parameters) on {curves}{copies} of "
            f"{len(self.classes.names)} classes: {len(data.train):,} windows to train, {len(data.validation):,} to "
            f"validate; {config.train.global_batch} a step, {data.steps_per_epoch} steps an epoch, at most "
            f"{config.train.total_steps(data.steps_per_epoch):,} steps; {ranks.world} rank(s) on {ranks.device.type}, "
            f"{config.train.precision}. Run folder: {config.out}"
        )

    def train_record(self, state: State, epoch: int, learning_rate: float) -> dict[str, Any]:
        interval = state.interval
        sums, steps = interval.sums, interval.steps
        return {
            "step": state.step,
            "epoch": epoch,
            "split": "train",
            "loss": interval.loss / steps if steps else None,
            "cross_entropy": sums[LOSS] / sums[WEIGHT] if sums[WEIGHT] else None,
            "accuracy": sums[RIGHT] / sums[WINDOWS] if sums[WINDOWS] else None,
            "lr": learning_rate,
            "grad_norm": interval.grad_norm / steps if steps else None,
            "windows_seen": state.windows_seen,
            "skipped": interval.skipped,
        }

    def evaluate(self, trainer: Trainer, data: TrainingData, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The validation light curves' figures: the balanced cross-entropy (`loss`), macro-F1 and accuracy."""
        ranks, model = trainer.ranks, trainer.evaluated.eval()
        table = np.zeros((data.store.n_curves, len(self.classes.names) + 1))
        with data.evaluation() as batches, torch.inference_mode():
            for batch in batches:
                if ranks.any(stop()):
                    return None
                positional, keywords = upload(batch, ranks.device).inputs()
                with trainer.autocast():
                    logits = model(*positional, **keywords).logits
                add_scores(table, data, batch.index, batch.lengths, logits.double().cpu().numpy())
        table = ranks.sum(torch.from_numpy(table).to(ranks.device)).cpu().numpy()
        return {**figures(table, self.classes), "windows": len(data.validation)}

    def card_notes(self, state: State, data: TrainingData) -> str:
        kind = "SIMULATED light curves, not observed ones" if data.store.simulated else "light curves"
        what = "all blocks" if self.config.blocks is None else f"the last {self.config.blocks} blocks"
        notes = (
            f"Fine-tuned from {self.config.model} ({what}) to tell {', '.join(self.classes.names)}, on "
            f"{np.count_nonzero(self.classes.used):,} labelled {kind}. These are the weights of step {state.step:,}, "
            f"after {state.windows_seen:,} windows. `head.safetensors` holds the classifier's head. Whoever measures "
            "these vectors by labels of the same stars flatters them."
        )
        if state.best is None:
            return f"{notes} They have not been evaluated."
        return (
            f"{notes}\n\nThe run's best evaluation so far, at step {state.best['step']:,}, on validation stars: "
            f"macro-F1 {state.best['macro_f1']:.3f}, balanced cross-entropy {state.best['loss']:.3f}."
        )

    def report(self, out: Path, data: TrainingData) -> list[Path]:
        from astroco_fast.finetune.report import write_report

        return write_report(out, data, self.classes, self.config.train.plots)
