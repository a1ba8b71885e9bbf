"""The paper's claims, each judged by the results of an experiment."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from astroco_fast.probe.metrics import mean_and_deviation
from astroco_fast.reproduce.paper import NO_CONV, NO_GATE, NO_MIX, PAPER_SIZES, SHOWN_TIME, TIMES_ONLY, V2, L, S

HOLDS, FAILS, OPEN = "holds", "does not hold", "within the spread"


class Claim(NamedTuple):
    """A claim of the paper, the verdict here (`HOLDS`, `FAILS` or `OPEN`), and the figures that it rests on."""

    text: str
    verdict: str
    figures: str


def claims(models: Mapping[str, Any], stage: str) -> list[Claim]:
    """The claims that a stage's results can judge.

    Args:
        models: the models by name, as `Experiment.results` returns them.
        stage: one of `plan.STAGES`.
    """
    there = {name: facts["stages"][stage] for name, facts in models.items() if stage in facts["stages"]}
    return [*_reconstruction(there), *_probes(there)]


def _reconstruction(there: Mapping[str, Any]) -> Iterator[Claim]:
    """Claims about RMSE. Each model has one run, so there is no spread to set a difference against.

    Astromer v1 is left out: in training it sees the magnitudes that it is asked for.
    """
    for better, worse in ((L, S), (S, V2), (SHOWN_TIME, V2), (TIMES_ONLY, V2)):
        if {better, worse} <= there.keys():
            low, high = (there[name]["best"]["rmse_hidden"] for name in (better, worse))
            if low is not None and high is not None:
                text = f"{better} reconstructs hidden points better than {worse}"
                yield Claim(text, HOLDS if low < high else FAILS, f"RMSE {low:.4f} against {high:.4f} mag")


def _probes(there: Mapping[str, Any]) -> Iterator[Claim]:
    """Claims about macro-F1, each set against the spread of the paired difference over folds."""
    comparisons: list[tuple[str, str, str, Sequence[int]]] = [
        (S, V2, "a higher macro-F1 than Astromer v2", PAPER_SIZES),
        (S, NO_CONV, "convolutions raise the macro-F1", PAPER_SIZES),
        (S, NO_GATE, "the gate raises the macro-F1", PAPER_SIZES),
        (NO_GATE, NO_CONV, "without convolutions is worse than without the gate", PAPER_SIZES[:2]),
        (NO_CONV, NO_GATE, "without the gate is worse than without convolutions", PAPER_SIZES[2:]),
        (S, NO_MIX, "mixing the layers is better than the last layer", PAPER_SIZES),
    ]
    for better, worse, text, sizes in comparisons:
        for n in sizes:
            difference = paired(there.get(better), there.get(worse), n)
            if difference is not None:
                mean, spread = 100 * difference["mean"], 100 * difference["std"]
                verdict = OPEN if abs(mean) <= spread else HOLDS if mean > 0 else FAILS
                yield Claim(f"{text}, {n} labels", verdict, f"{mean:+.1f} ± {spread:.1f} % ({better} less {worse})")


def paired(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, n: int) -> dict[str, Any] | None:
    """Mean and standard deviation over folds of the difference in the linear head's macro-F1, averaged over its seeds.

    Both models were probed on the same folds, so a fold's difficulty drops out of the difference. None: a model was not
    probed, or only on one fold.
    """
    folds = [_by_fold(stage, n) for stage in (one, other)]
    shared = sorted({*folds[0]} & {*folds[1]})
    if len(shared) < 2:
        return None
    return mean_and_deviation([folds[0][fold] - folds[1][fold] for fold in shared])


def _by_fold(stage: Mapping[str, Any] | None, n: int) -> dict[int, float]:
    """The linear head's macro-F1 on each fold, averaged over its seeds."""
    entry = linear_head(stage, n)
    runs = [] if entry is None else entry["runs"]
    folds = sorted({run["fold"] for run in runs})
    return {fold: float(np.mean([run["macro_f1"] for run in runs if run["fold"] == fold])) for fold in folds}


def linear_head(stage: Mapping[str, Any] | None, n: int) -> dict[str, Any] | None:
    """The linear head's entry with n training stars a class; None: there is none."""
    entries = [] if stage is None else stage["probes"]
    return next((entry for entry in entries if (entry["probe"], entry["n"]) == ("linear", n)), None)
