"""Calibration: the temperature of a classifier, and how far probabilities are from frequencies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astroco_fast.classify.classifier import Probabilities, softmax

BINS = 10
_RANGE = (-3.0, 3.0)  # of the temperature's natural logarithm


def log_loss(probabilities: Probabilities, classes: NDArray[np.int64]) -> float:
    """The mean cross-entropy of stars with these classes (n,), as numbers from 0; in nats."""
    told = probabilities[np.arange(len(classes)), classes]
    return float(-np.log(np.maximum(told, np.finfo(np.float64).tiny)).mean())


def choose_temperature(
    scores: NDArray[np.float64], log_prior: NDArray[np.float64], classes: NDArray[np.int64]
) -> float:
    """The temperature with the lowest cross-entropy (Guo et al. 2017, section 4.2).

    Args:
        scores: (n, C) of stars that the classifier was not trained on.
        log_prior: (C,) which is added to the scores over the temperature.
        classes: (n,) the stars' classes.
    """
    from scipy.optimize import minimize_scalar  # scikit-learn needs scipy

    found = minimize_scalar(
        lambda log: log_loss(softmax(scores / np.exp(log) + log_prior), classes), bounds=_RANGE, method="bounded"
    )
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Reliability:
    """How often predictions are right, by their probability: arrays (BINS,), for bins of equal width from 0 to 1.

    Attributes:
        stars: the number of predictions in each bin.
        confidence: their mean probability; NaN in an empty bin.
        accuracy: the share of them that is right; NaN in an empty bin.
    """

    stars: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of accuracy and confidence over stars (Guo, Eq. 3)."""
        distance = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.stars * distance).sum() / max(self.stars.sum(), 1))


def reliability(probabilities: Probabilities, classes: NDArray[np.int64]) -> Reliability:
    """The reliability of the most probable classes of stars (n, C) with these true classes (n,)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == classes
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    stars = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=BINS) / stars for values in (confidence, right)]
    return Reliability(stars, *means)
