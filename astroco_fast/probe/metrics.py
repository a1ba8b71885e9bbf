"""Figures of merit, all of them from confusion matrices."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]


def confusion_matrix(true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Confusion:
    """(C, C): entry (i, j) counts the stars of class i that were taken for class j."""
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def f1_scores(confusion: Confusion) -> NDArray[np.float64]:
    """(C,), the F1 score of each class, 2 TP / (2 TP + FP + FN); 0 where nothing was, or was taken for, the class."""
    right = np.diag(confusion).astype(np.float64)
    total = confusion.sum(0) + confusion.sum(1)
    return np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)


def macro_f1(confusion: Confusion) -> float:
    """The mean over classes of the F1 score: each class counts the same, however many stars it has."""
    return float(f1_scores(confusion).mean())


def balanced_accuracy(confusion: Confusion) -> float:
    """The mean over the classes that have stars of the share of its stars that were recognised."""
    stars = confusion.sum(1)
    return float((np.diag(confusion)[stars > 0] / stars[stars > 0]).mean())


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (divisor k - 1); of a single value there is no deviation."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}
