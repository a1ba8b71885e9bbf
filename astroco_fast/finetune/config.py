"""The settings of a fine-tuning run."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns
from astroco_fast.data.views import Views
from astroco_fast.errors import UserError
from astroco_fast.pretrain.config import TrainConfig, data_name
from astroco_fast.settings import check_classes, check_seed

USUAL: dict[str, Any] = {
    "epochs": 30,
    "global_batch": 32,
    "warmup_steps": 50,
    "decay_steps": 0,
    "learning_rate": 3e-5,
    "loss": "batch",
}


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune an encoder.

    Args:
        data: labelled light curves: a store made by `astroco convert`, or any file or folder that it reads.
        model: the encoder to begin with: the name of a released model, the folder of saved weights, or
            hub:NAME/REPOSITORY.
        blocks: train only the last so many blocks, and what follows them; 0: only the new head. Default: all.
        labels: table (CSV, Parquet) with the columns id and label, which replace the light curves' own labels.
        classes: use only these classes, such as '[RRab, RRc, EA]'. Default: all labels.
        band: take only this band.
        views: the views of the windows, as for `astroco pretrain`. Default: those that the encoder was pretrained on.
        out: the run's folder; an unfinished run in it with the same settings is resumed. Default: runs/finetune-DATA.
        seed: decides the head's first weights, order, and dropout.
        columns: names of the table's columns, if they are not the usual ones.
        clean: which points count as measurements.
        train: how to train. Defaults that differ from pretraining's: 30 epochs, 32 windows a step, a learning rate of
            3e-5, a rise of 50 steps. The loss is the cross-entropy, so that train.loss has no effect.
    """

    data: str
    model: str
    blocks: int | None = None
    labels: str | None = None
    classes: list[str] | None = None
    band: str | None = None
    views: Views | None = None
    out: str | None = None
    seed: int = 0
    columns: Columns = field(default_factory=Columns)
    clean: CleanConfig = field(default_factory=CleanConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.blocks is not None and self.blocks < 0:
            raise UserError(f"blocks must be zero or more, got {self.blocks}")
        check_classes(self.classes)

    def resolve(self, views: Views) -> "FinetuneConfig":
        """These settings with defaults filled in.

        Args:
            views: those that the encoder was pretrained on.

        Raises:
            UserError: the learning rate is to fall before the end, but no last step is given.
        """
        unset = {key: value for key, value in USUAL.items() if getattr(self.train, key) is None}
        train = replace(self.train, **unset)
        if train.decay_steps and train.max_steps is None:
            raise UserError("train.decay_steps: the learning rate falls to zero at train.max_steps, which is not given")
        model = str(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model
        out = self.out or f"runs/finetune-{data_name(self.data)}"
        return replace(self, model=model, views=self.views or views, out=out, train=train)

    def defaults(self) -> dict[str, Any]:
        """The settings of a run of this model and data that sets nothing else, as `to_dict` gives them."""
        return FinetuneConfig(self.data, self.model).resolve(self.views or "time").to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON types, which `--config` reads back."""
        values = asdict(self)
        values["train"]["betas"] = list(values["train"]["betas"])
        return values
