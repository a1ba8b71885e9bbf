"""What is compared: the models, the budgets that they get, and what the paper prints of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from astroco_fast.errors import UserError

WINDOWS, TIME = "equal windows", "equal time"
STAGES = (WINDOWS, TIME)

S, L = "AstroCo-S", "AstroCo-L"
SHOWN_TIME, TIMES_ONLY = "AstroCo-S with times", "AstroCo-S, times only"
NO_CONV, NO_GATE, NO_MIX = "S-no-conv", "S-no-gate", "S-no-mix"
V1, V2 = "Astromer v1", "Astromer v2"
UNTRAINED = "AstroCo-S, untrained"

RECONSTRUCTION = (V1, V2, S, L, SHOWN_TIME, TIMES_ONLY)  # rows of Table 1, and curves of Figure 3
ABLATION = (S, NO_CONV, NO_GATE, NO_MIX)  # rows of Table 2

# What the paper (arXiv 2509.24134) prints, of models pretrained on MACHO: RMSE at all probed points, magnitudes;
# macro-F1, per cent, with 20, 100 and 500 labels a class on its own labelled stars.
PAPER_RMSE: Mapping[str, float] = {V1: 0.148, V2: 0.113, S: 0.060, L: 0.044}
PAPER_SIZES = (20, 100, 500)
PAPER_F1: Mapping[str, tuple[float, float, float]] = {
    S: (66.6, 74.9, 79.1),
    NO_CONV: (63.9, 73.4, 78.4),
    NO_GATE: (65.6, 74.2, 77.8),
    V2: (65.6, 71.0, 74.2),
}


@dataclass(frozen=True)
class Row:
    """A model of the comparison.

    Attributes:
        name: in tables.
        preset: it is made from.
        model: changes to the preset's settings.
        learning_rate: AdamW's; None: the preset's.
    """

    name: str
    preset: str
    model: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None

    @property
    def folder(self) -> str:
        """Its name in paths."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Budget:
    """What every model gets.

    Attributes:
        name: as given to `--budget`.
        rows: the models.
        windows: training windows, as often as each comes; None: `epochs` times the survey's.
        epochs: passes over the training windows, if `windows` is None.
        global_batch: windows of an optimiser step.
        warmup_steps: in which the learning rate rises.
        validation_windows: to evaluate on; None: all.
        gpus: that it is meant for; 0: a CPU.
    """

    name: str
    rows: tuple[Row, ...]
    windows: int | None
    epochs: int
    global_batch: int
    warmup_steps: int
    validation_windows: int | None
    gpus: int

    def only(self, names: Sequence[str] | None) -> "Budget":
        """With these rows only.

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


_PRESETS = (
    Row(S, "S"),
    Row(L, "L"),
    Row(SHOWN_TIME, "S", {"hide": ["magnitude"]}),
    Row(TIMES_ONLY, "S", {"hide": ["magnitude", "uncertainty"]}),
    Row(NO_CONV, "S-no-conv"),
    Row(NO_GATE, "S-no-gate"),
    Row(NO_MIX, "S-no-mix"),
    Row(V1, "astromer-v1"),
    Row(V2, "astromer-v2-paper"),
)
# Every model at about a third of its width, so at about an eighth of its parameters, and as deep as it is.
_NARROW: Mapping[str, Mapping[str, Any]] = {
    "S": {"width": 96},
    "L": {"width": 88},
    "astromer-v1": {"width": 88, "feed_forward": 44},
    "astromer-v2-paper": {"width": 88, "feed_forward": 336},
}
# Found by trial on Catalina (docs/reproduce.md). At 1e-3 Astromer stays at the window's mean for thousands of steps.
_RATES = {"S": 3e-3, "L": 3e-3, "astromer-v1": 3e-4, "astromer-v2-paper": 3e-4}


def _narrow(row: Row) -> Row:
    like = "S" if row.preset.startswith("S") else row.preset
    return replace(row, model={**_NARROW[like], **row.model}, learning_rate=_RATES[like])


BUDGETS: Mapping[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget(
            "small",
            tuple(map(_narrow, _PRESETS)),
            windows=10_000,
            epochs=1,
            global_batch=32,
            warmup_steps=50,
            validation_windows=2_000,
            gpus=0,
        ),
        Budget(
            "paper",
            _PRESETS,
            windows=None,
            epochs=100,
            global_batch=256,
            warmup_steps=100,
            validation_windows=None,
            gpus=4,
        ),
    )
}
