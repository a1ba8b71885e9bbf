"""The settings of `astroco reproduce`."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from astroco_fast.pretrain.config import data_name
from astroco_fast.probe.config import PAPER_SIZES

SIMULATED_SIZES, SIMULATED_TEST = (20, 60), 30  # of the rarest class there are about 150 stars


@dataclass(frozen=True)
class ReproduceConfig:
    """The paper's tables and its figure of macro-F1, from one survey, under one budget for all models.

    Args:
        data: light curves: a store made by `astroco convert`, or any file or folder that it reads. Default: a simulated
            survey.
        budget: small = models of reduced width and few windows, for two CPU cores and about 45 minutes; paper = the
            full models on four GPUs. What it expects to cost is said at the start.
        out: folder for the runs, the probes and the report; the same command goes on in it. Default:
            runs/reproduce-BUDGET-DATA.
        models: only these rows, such as '[AstroCo-S, Astromer v2]'. Default: all.
        windows: training windows that each model sees, in place of the budget's.
        probe: tell classes of stars by the models' embeddings; false: only reconstructions are compared.
        classes: probe only these, such as '[RRab, RRc, EA]'. Default: all labels there are.
        labels: table (CSV, Parquet) with the columns id and label, which then count rather than the light curves' own.
        sizes: training stars a class of the probes. Default: the paper's 20, 100, 500; 20 and 60 without --data.
        test: their test stars a class. Default: 100; 30 without --data.
        allow_fewer: where a class has too few stars, share what it has out in the same proportions; otherwise an error.
        band: only this band.
        seed: of weights, masks, order, dropout, splits, and the simulated survey.
        columns: the table's columns, where they are not found by their usual names.
        clean: what counts as a measurement.
        micro_batch: windows of one forward pass of one rank. Default: 32 on a CPU, the rank's whole share on a GPU.
        device: auto = a GPU if there is one.
    """

    data: str | None = None
    budget: Literal["small", "paper"] = "small"
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
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}")
        if self.models is not None and len({*self.models}) < max(1, len(self.models)):
            raise UserError(f"models must be one or more different rows, not {self.models}")

    def resolve(self) -> "ReproduceConfig":
        """With the defaults that depend on other settings filled in."""
        sizes, test = (list(PAPER_SIZES), 100) if self.data is not None else (list(SIMULATED_SIZES), SIMULATED_TEST)
        name = "simulated" if self.data is None else data_name(self.data)
        out = self.out or str(Path("runs") / f"reproduce-{self.budget}-{name}")
        return replace(self, out=out, sizes=self.sizes or sizes, test=self.test or test)

    def to_dict(self) -> dict[str, Any]:
        """As YAML and JSON types; the inverse of what `--config` reads."""
        return asdict(self)
