"""Scores of light curves, which are those of their windows, and figures of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.training import EMPTY, TrainingData
from astroco_fast.finetune.classes import Classes, balanced_weights
from astroco_fast.probe.metrics import confusion_matrix, macro_f1


def add_scores(
    table: NDArray[np.float64],
    data: TrainingData,
    index: NDArray[np.int64],
    lengths: NDArray[np.int64],
    logits: NDArray[np.float64],
) -> None:
    """Add windows' scores, weighted by their points, and the points to the table (n, C + 1) of the light curves."""
    some = index != EMPTY
    rows = np.concatenate([logits * lengths[:, None], lengths[:, None]], axis=1)[some]
    np.add.at(table, data.table.curve[index[some]].astype(np.int64), rows)


def figures(table: NDArray[np.float64], classes: Classes) -> dict[str, Any]:
    """Figures of the light curves that have points in a table (n, C + 1) of scores: a curve's are the mean of its
    windows', weighted by points.
    """
    seen = np.flatnonzero(table[:, -1])
    scores, true = table[seen, :-1] / table[seen, -1:], classes.of_curve[seen]
    shifted = scores - scores.max(1, keepdims=True)
    each = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(true)), true]
    weight = balanced_weights(true, len(classes.names))[true]
    confusion = confusion_matrix(true, scores.argmax(1), len(classes.names))
    return {
        "loss": float((weight * each).sum() / weight.sum()),
        "macro_f1": macro_f1(confusion),
        "accuracy": float(np.diag(confusion).sum() / confusion.sum()),
        "curves": len(seen),
    }
