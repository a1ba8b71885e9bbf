"""Figures of merit, computed from confusion matrices."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]


def confusion_matrix(true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Confusion:
    """The confusion matrix (C, C): entry (i, j) counts the stars of class i that were predicted as class j."""
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def f1_scores(confusion: Confusion) -> NDArray[np.float64]:
    """The F1 score of each class (C,), 2 TP / (2 TP + FP + FN); 0 for a class that is neither true nor predicted."""
    right = np.diag(confusion).astype(np.float64)
    total = confusion.sum(0) + confusion.sum(1)
    return np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)


def macro_f1(confusion: Confusion) -> float:
    """The mean of the classes' F1 scores, which weights all classes alike."""
    return float(f1_scores(confusion).mean())


def balanced_accuracy(confusion: Confusion) -> float:
    """The mean recall of the classes that have stars."""
    stars = confusion.sum(1)
    return float((np.diag(confusion)[stars > 0] / stars[stars > 0]).mean())


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and the sample standard deviation (divisor k - 1), which is None for a single value."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def plus_minus(figure: Mapping[str, float | None]) -> str:
    """A mean and its standard deviation as text."""
    deviation = "" if figure["std"] is None else f" ± {figure['std']:.3f}"
    return f"{figure['mean']:.3f}{deviation}"
