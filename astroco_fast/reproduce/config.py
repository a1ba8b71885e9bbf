"""The settings of `astroco reproduce`."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from astroco_fast.pretrain.config import data_name
from astroco_fast.probe.config import PAPER_SIZES
from astroco_fast.settings import check_seed

SIMULATED_SIZES, SIMULATED_TEST = (20, 60), 30  # the rarest class of the simulated survey has about 150 stars


@dataclass(frozen=True)
class ReproduceConfig:
    """Models pretrained on one survey under one budget, probed on the same stars, and the tables that compare them.

    Args:
        data: light curves: a store made by `astroco convert`, or any file or folder that it reads. Default: a simulated
            survey.
        budget: small = the paper's models at a third of their width and few windows, about 45 minutes on two CPU cores;
            paper = its full models on four GPUs; choices = one change at a time to what the paper leaves open, with a
            narrow AstroCo-S and two seeds. The expected cost is printed at the start.
        out: folder for the runs, the probes and the report; the same command continues in it. Default:
            runs/reproduce-BUDGET-DATA.
        models: train only these rows, such as '[AstroCo-S, Astromer v2]'. Default: all of the budget's.
        windows: training windows that each model sees. Default: the budget's.
        probe: classify stars by the models' embeddings; false: compare reconstructions only.
        classes: probe only these classes, such as '[RRab, RRc, EA]'. Default: all labels there are.
        labels: table (CSV, Parquet) with the columns id and label, whose labels replace the light curves' own.
        sizes: training stars a class in the probes. Default: the paper's 20, 100, 500; 20 and 60 without --data.
        test: test stars a class in the probes. Default: 100; 30 without --data.
        allow_fewer: divide the stars of a class that has too few in the same proportions; false: that is an error.
        band: use only this band.
        seed: of weights, masks, order, dropout, splits, and the simulated survey.
        columns: names of the table's columns, where they differ from the usual ones.
        clean: which points count as measurements.
        micro_batch: windows of one forward pass of one rank. Default: 32 on a CPU, the rank's whole share on a GPU.
        device: auto = a GPU if there is one.
    """

    data: str | None = None
    budget: Literal["small", "paper", "choices"] = "small"
    out: str | None = None
    models: list[str] | None = None
    windows: int | None = None
    probe: bool = True
    classes: list[str] | None = None
    labels: str | None = None
    sizes: list[int] | None = None
    test: int | None = None
    allow_fewer: bool = False
    band: str | None = None
    seed: int = 0
    columns: Columns = field(default_factory=Columns)
    clean: CleanConfig = field(default_factory=CleanConfig)
    micro_batch: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.windows is not None and self.windows < 1:
            raise UserError(f"windows must be at least 1, not {self.windows}")
        check_seed(self.seed)
        if self.models is not None and len({*self.models}) < max(1, len(self.models)):
            raise UserError(f"models must be one or more different rows, not {self.models}")

    def resolve(self) -> "ReproduceConfig":
        """The same settings with the defaults filled in that depend on other settings."""
        sizes, test = (list(PAPER_SIZES), 100) if self.data is not None else (list(SIMULATED_SIZES), SIMULATED_TEST)
        name = "simulated" if self.data is None else data_name(self.data)
        out = self.out or str(Path("runs") / f"reproduce-{self.budget}-{name}")
        return replace(self, out=out, sizes=self.sizes or sizes, test=self.test or test)

    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON types, in the form that `--config` reads."""
        return asdict(self)
