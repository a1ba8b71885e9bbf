"""The paper's models, the budgets `small` and `paper` to train them under, and the paper's printed results."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from astroco_fast.reproduce.plan import Budget, Row

S, L = "AstroCo-S", "AstroCo-L"
SHOWN_TIME, TIMES_ONLY = "AstroCo-S with times", "AstroCo-S, times only"
NO_CONV, NO_GATE, NO_MIX = "S-no-conv", "S-no-gate", "S-no-mix"
V1, V2 = "Astromer v1", "Astromer v2"
UNTRAINED = "AstroCo-S, untrained"

RECONSTRUCTION = (V1, V2, S, L, SHOWN_TIME, TIMES_ONLY)  # rows of Table 1, and curves of Figure 3
ABLATION = (S, NO_CONV, NO_GATE, NO_MIX)  # rows of Table 2

# Figures printed in arXiv 2509.24134, of models pretrained on MACHO: RMSE in magnitudes at all probed points;
# macro-F1, per cent, with 20, 100 and 500 labels a class of the paper's own labelled stars.
PAPER_RMSE: Mapping[str, float] = {V1: 0.148, V2: 0.113, S: 0.060, L: 0.044}
PAPER_SIZES = (20, 100, 500)
PAPER_F1: Mapping[str, tuple[float, float, float]] = {
    S: (66.6, 74.9, 79.1),
    NO_CONV: (63.9, 73.4, 78.4),
    NO_GATE: (65.6, 74.2, 77.8),
    V2: (65.6, 71.0, 74.2),
}

_FULL_WIDTH = (
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
# About a third of each preset's width, so about an eighth of its parameters, at its full depth.
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
    return replace(row, model={**_NARROW[like], **row.model}, train={"learning_rate": _RATES[like]})


SMALL = Budget(
    "small",
    tuple(map(_narrow, _FULL_WIDTH)),
    windows=10_000,
    epochs=1,
    global_batch=32,
    warmup_steps=50,
    validation_windows=2_000,
    gpus=0,
)
FULL = Budget(
    "paper",
    _FULL_WIDTH,
    windows=None,
    epochs=100,
    global_batch=256,
    warmup_steps=100,
    validation_windows=None,
    gpus=4,
)
