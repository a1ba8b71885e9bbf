"""The settings of `astroco classify`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from astroco_fast.settings import check_classes, check_seed

Priors = Literal["labels", "uniform"]


@dataclass(frozen=True)
class FitConfig:
    """Fit a classifier.

    Args:
        data: labelled light curves that `astroco embed` reads, a store, or a table of embeddings that it wrote.
        out: folder to write to: the classifier (classifier.json and .safetensors), report.md and its figures,
            splits.csv, tested.csv, embeddings.parquet.
        model: the name of a released model (`astroco models` lists them), the folder of saved weights, or
            hub:NAME/REPOSITORY. Default: the best released model; for embeddings, the one that made them, which CSV
            does not name.
        parts: the vector's parts, as for `astroco embed`. Default: those of the views that the model was pretrained on.
        labels: table (CSV, Parquet) with the columns id and label, which replace the data's own labels.
        classes: use only these classes, such as '[RRab, RRc, EA]'. Default: all labels.
        folds: independent draws of 60 % of each class to train, 20 % to choose C and calibrate, and 20 % to test.
        seed: seed of the draws.
        c: C of the logistic regression, the inverse of its penalty. Default: in each fold the one of 0.01, 0.03, 0.1,
            0.3, 1, 3 and 10 that has the lowest cross-entropy on the fold's 20 %, and their median in the end.
        priors: how common the classes are where the probabilities are to hold: labels = as among the labelled stars;
            uniform = all alike. `astroco classify predict` may choose again.
        band: use only this band.
        columns: names of columns that are not found by themselves.
        min_points: light curves with fewer good points are left out, and counted.
        batch_size: windows in a forward pass of the encoder.
        device: device of the encoder: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.
        plots: draw the figures, if matplotlib is installed.
    """

    data: str
    out: str
    model: str | None = None
    parts: list[str] | None = None
    labels: str | None = None
    classes: list[str] | None = None
    folds: int = 5
    seed: int = 0
    c: float | None = None
    priors: Priors = "labels"
    band: str | None = None
    columns: Columns = field(default_factory=Columns)
    min_points: int = 1
    batch_size: int = 256
    device: str = "auto"
    plots: bool = True

    def __post_init__(self) -> None:
        for name in ("folds", "min_points", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_seed(self.seed)
        if self.c is not None and not 0 < self.c < float("inf"):
            raise UserError(f"c must be a positive number, not {self.c}")
        check_classes(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON types, as `--config` reads them."""
        return asdict(self)


@dataclass(frozen=True)
class PredictConfig:
    """Predict classes.

    Args:
        data: light curves that `astroco embed` reads, a store, or a table of embeddings that it wrote.
        out: table to write, .parquet or .csv, one row a light curve: id, band, label, class, probability, and a column
            p_NAME for each class.
        classifier: folder of `astroco classify fit`.
        model: where the classifier's model is now, if it was moved; its weights must be the same. For embeddings in
            CSV: the model that made them.
        priors: how common the classes are among these light curves: labels, uniform. Default: as the classifier was
            fitted for.
        band: use only this band.
        columns: names of columns that are not found by themselves.
        batch_size: windows in a forward pass of the encoder.
        device: device of the encoder: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.
        overwrite: replace an existing file.
    """

    data: str
    out: str
    classifier: str
    model: str | None = None
    priors: Priors | None = None
    band: str | None = None
    columns: Columns = field(default_factory=Columns)
    batch_size: int = 256
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}")
