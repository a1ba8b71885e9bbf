"""The verdicts on the paper's claims, from results written by hand."""

from typing import Any

import pytest

from astroco_fast.reproduce import paper, plan
from astroco_fast.reproduce.claims import FAILS, HOLDS, OPEN, claims, paired


def stage(rmse: float, f1: dict[int, list[float]]) -> dict[str, Any]:
    """A model's stage: RMSE at hidden points and, by size, the macro-F1 of each fold, with two seeds around it."""
    probes = [
        {
            "probe": "linear",
            "n": n,
            "runs": [
                {"fold": fold, "seed": seed, "macro_f1": value + shift}
                for fold, value in enumerate(folds)
                for seed, shift in enumerate((-0.01, 0.01))
            ],
        }
        for n, folds in f1.items()
    ]
    return {"best": {"rmse_hidden": rmse}, "probes": probes}


def models(**stages: dict[str, Any]) -> dict[str, Any]:
    names = {"s": paper.S, "l": paper.L, "v2": paper.V2, "v1": paper.V1, "conv": paper.NO_CONV, "gate": paper.NO_GATE}
    return {names[key]: {"stages": {plan.WINDOWS: value}} for key, value in stages.items()}


def verdicts(found: dict[str, Any], words: str) -> list[str]:
    return [claim.verdict for claim in claims(found, plan.WINDOWS) if words in claim.text]


def test_reconstruction_is_judged_by_hidden_points() -> None:
    found = models(s=stage(0.14, {}), l=stage(0.15, {}), v2=stage(0.16, {}))
    assert verdicts(found, "AstroCo-L reconstructs") == [FAILS]
    assert verdicts(found, "AstroCo-S reconstructs") == [HOLDS]
    assert verdicts(found, "than Astromer v1") == []


@pytest.mark.parametrize(
    ("other", "verdict"), [([0.50, 0.60, 0.40], HOLDS), ([0.70, 0.60, 0.50], OPEN), ([0.7, 0.8, 0.6], FAILS)]
)
def test_differences_are_taken_fold_by_fold(other: list[float], verdict: str) -> None:
    """Folds differ more than models do, so a model's advantage on each fold is set against its spread over folds."""
    found = models(s=stage(0.1, {20: [0.60, 0.70, 0.50]}), v2=stage(0.1, {20: other}))
    assert verdicts(found, "higher macro-F1") == [verdict]


def test_paired_difference() -> None:
    one, other = stage(0, {20: [0.5, 0.7]}), stage(0, {20: [0.4, 0.5]})
    difference = paired(one, other, 20)
    assert difference is not None
    assert difference["mean"] == pytest.approx(0.15)
    assert difference["std"] == pytest.approx(0.05 * 2**0.5)
    assert paired(one, other, 100) is None
    assert paired(one, None, 20) is None


def test_a_stage_that_is_not_there_has_no_claims() -> None:
    assert claims(models(s=stage(0.1, {})), plan.TIME) == []
