"""The settings of `astroco reproduce`."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.columns import Columns
from astroco_fast.errors import UserError
from astroco_fast.pretrain.config import data_name
from astroco_fast.probe.config import PAPER_SIZES


@dataclass(frozen=True)
class ReproduceConfig:
    """The paper's tables and its figure of macro-F1, from one survey, under one budget for all models.

    Args:
        data: light curves: a store made by `astroco convert`, or any file or folder that it reads. Default: a simulated
            survey.
        budget: small = models of reduced width and few windows, within 45 minutes on two CPU cores; paper = the full
            models on four GPUs. What it expects to cost is said at the start.
        out: folder for the runs, the probes and the report; the same command goes on in it. Default:
            runs/reproduce-BUDGET-DATA.
        models: only these rows, such as '[AstroCo-S, Astromer v2]'. Default: all.
        windows: training windows that each model sees, in place of the budget's.
        probe: tell classes of stars by the models' embeddings; false: only reconstructions are compared.
        classes: probe only these, such as '[RRab, RRc, EA]'. Default: all labels there are.
        labels: table (CSV, Parquet) with the columns id and label, which then count rather than the light curves' own.
        sizes: training stars a class of the probes.
        test: their test stars a class.
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
    sizes: list[int] = field(default_factory=lambda: [*PAPER_SIZES])
    test: int = 100
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
        if self.models is not None and len({*self.models}) < max(1, len(self.models)):
            raise UserError(f"models must be one or more different rows, not {self.models}")

    def resolve(self) -> "ReproduceConfig":
        """With the folder's name filled in."""
        name = "simulated" if self.data is None else data_name(self.data)
        return replace(self, out=self.out or str(Path("runs") / f"reproduce-{self.budget}-{name}"))

    def to_dict(self) -> dict[str, Any]:
        """As YAML and JSON types; the inverse of what `--config` reads."""
        return asdict(self)
