"""The settings of a probe."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from astroco_fast.settings import check_classes, check_seed

Probe = Literal["linear", "logistic", "knn", "forest"]
PAPER_SIZES = (20, 100, 500)


@dataclass(frozen=True)
class HeadConfig:
    """The linear head: one Linear layer on standardised embeddings, trained by AdamW on the cross-entropy.

    Args:
        learning_rate: AdamW's learning rate.
        weight_decay: AdamW's weight decay of the weights; biases have none.
        batch_size: stars in one step.
        epochs: the most passes over the training stars.
        patience: stop after this many epochs in a row without a lower cross-entropy of the validation stars. The head
            of the best epoch is tested.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 64
    epochs: int = 500
    patience: int = 30

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"head.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"head.learning_rate must be a positive number, not {self.learning_rate}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"head.weight_decay must be zero or more, not {self.weight_decay}")


@dataclass(frozen=True)
class ProbeConfig:
    """Probe a frozen encoder.

    Args:
        data: labelled light curves: a table or folder that `astroco embed` reads, a store, or a folder of given splits
            as Astromer's are (fold_0/alcock_20/train ...), of tables or TFRecord files.
        model: folder of saved weights, such as RUN/checkpoints/best, or hub:NAME/REPOSITORY.
        parts: parts of the model's vectors, as for `astroco embed`. Default: those of the views that it was pretrained
            on. Rivals keep their own defaults.
        out: folder to write to: config.yaml, splits.csv, embeddings.parquet, results.json, .csv and .md, and
            confusion_N.png. Embeddings that are there already, of this model, are used again.
        against: rivals to probe on the same stars, as rows of the same tables: features (of the package light-curve,
            and of the curves folded at a found period), statistics (nine numbers that do not know the points' order),
            any saved model, or Astromer's own Keras weights (an .h5 or .index file, or the folder of the latter), such
            as '[features, statistics, OTHER/checkpoints/best]'.
        labels: table (CSV, Parquet) with the columns id and label, which replace the light curves' own labels.
        classes: use only these classes, such as '[RRab, RRc, EA]'. Default: all labels.
        sizes: training stars a class, such as '[20, 100]'. Default: the paper's 20, 100 and 500; where splits are
            given, all of their sizes.
        validation: validation stars a class; at most as many as training stars. They choose the linear head's epoch and
            the logistic regression's C.
        test: test stars a class.
        folds: independent draws of training, validation and test stars.
        seeds: runs of the linear head on each fold, which differ in the initial weights and in the order of the stars.
        seed: seed of the draws and the runs.
        splits: table of given splits (id, fold, split, and perhaps n), such as another probe's splits.csv; validation,
            test and folds are then not used.
        allow_fewer: divide the stars of a class that has too few in the same proportions, rather than fail.
        probes: which classifiers: linear (the paper's head), logistic (scikit-learn's logistic regression), knn (its
            nearest neighbours), forest (its extra trees). Features and statistics are always probed by a forest, too.
        tasks: also measure clustering, novelty and the purity of neighbourhoods, on the largest size: tasks.csv, and a
            section in results.md.
        head: training of the linear head.
        logistic_c: C of the logistic regression, the inverse of its penalty. Default: the one of 0.01, 0.03, 0.1, 0.3,
            1, 3 and 10 that has the lowest cross-entropy on the validation stars.
        neighbours: number of neighbours of the nearest-neighbour probe.
        band: use only this band.
        columns: names of columns that are not found by themselves.
        min_points: light curves with fewer good points are left out, and counted.
        batch_size: windows in a forward pass of the encoder.
        device: device of the encoder: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.
        plots: draw the confusion matrices, if matplotlib is installed.
    """

    data: str
    model: str
    out: str
    parts: list[str] | None = None
    against: list[str] = field(default_factory=list)
    labels: str | None = None
    classes: list[str] | None = None
    sizes: list[int] | None = None
    validation: int = 80
    test: int = 100
    folds: int = 3
    seeds: int = 3
    seed: int = 0
    splits: str | None = None
    allow_fewer: bool = False
    probes: list[Probe] = field(default_factory=lambda: ["linear", "logistic", "knn"])
    tasks: bool = False
    head: HeadConfig = field(default_factory=HeadConfig)
    logistic_c: float | None = None
    neighbours: int = 5
    band: str | None = None
    columns: Columns = field(default_factory=Columns)
    min_points: int = 1
    batch_size: int = 256
    device: str = "auto"
    plots: bool = True

    def __post_init__(self) -> None:
        for name in ("validation", "test", "folds", "seeds", "neighbours", "min_points", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_seed(self.seed)
        if self.logistic_c is not None and not 0 < self.logistic_c < float("inf"):
            raise UserError(f"logistic_c must be a positive number, not {self.logistic_c}")
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 1 or len({*self.sizes}) < len(self.sizes)):
            raise UserError(f"sizes must be different whole numbers from 1 on, such as [20, 100], not {self.sizes}")
        check_classes(self.classes)
        if len({self.model, *self.against}) <= len(self.against):
            raise UserError(f"against must name different rivals, and not the model itself; got {self.against}")
        if not self.probes or len({*self.probes}) < len(self.probes):
            raise UserError(f"probes must be one or more of {', '.join(get_args(Probe))}, not {self.probes}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON types, as `--config` reads them."""
        return asdict(self)
