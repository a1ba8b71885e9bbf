"""Classifiers of embeddings. Each standardises them by the training stars' mean and standard deviation."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from astroco_fast.data.hashing import STREAM_PROBE, hash64
from astroco_fast.errors import MissingExtraError
from astroco_fast.probe.config import HeadConfig

Matrix = NDArray[np.float32]
Classes = NDArray[np.int64]

C_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the logistic regression
TREES = 300  # of the forest


@dataclass(frozen=True)
class Sample:
    """Stars of one part of a split: embeddings (n, D), and classes (n,) as numbers from 0."""

    vectors: Matrix
    classes: Classes


@dataclass(frozen=True)
class LinearHead:
    """A trained head: class scores = standardised vectors @ weight.T + bias. `epoch` is the one that was chosen."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    epoch: int

    def predict(self, vectors: Matrix) -> Classes:
        """The class with the highest score, (n,)."""
        x = (torch.from_numpy(vectors) - self.mean) / self.scale
        return (x @ self.weight.T + self.bias).argmax(1).numpy()


def train_linear(train: Sample, validation: Sample, classes: int, config: HeadConfig, seed: int) -> LinearHead:
    """Train the paper's linear head. The validation stars choose its epoch.

    Args:
        train, validation: the stars.
        classes: C, the number of classes.
        config: the training's settings.
        seed: seed of the initial weights and of the order of the stars; the same seed gives the same head.

    Returns:
        The head of the epoch with the lowest cross-entropy on the validation stars. Epochs count from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.from_numpy(train.vectors)
    mean, scale = vectors.mean(0), vectors.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a constant feature becomes zero
    x, y = (vectors - mean) / scale, torch.from_numpy(train.classes)
    x_val, y_val = (torch.from_numpy(validation.vectors) - mean) / scale, torch.from_numpy(validation.classes)
    bound = x.shape[1] ** -0.5
    weight = torch.empty(classes, x.shape[1]).uniform_(-bound, bound, generator=generator)
    bias, target = torch.zeros(classes), one_hot(y, classes).float()
    groups = [{"params": [weight], "weight_decay": config.weight_decay}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    best, lowest, chosen = (weight.clone(), bias.clone()), float("inf"), 0
    for epoch in range(1, config.epochs + 1):
        for rows in torch.randperm(len(x), generator=generator).split(config.batch_size):
            # The cross-entropy's gradient as a formula, because autograd takes three times as long for so small a step.
            inputs = x[rows]
            by_score = (torch.addmm(bias, inputs, weight.T).softmax(1) - target[rows]) / len(rows)
            weight.grad, bias.grad = by_score.T @ inputs, by_score.sum(0)
            optimizer.step()
        value = float(cross_entropy(x_val @ weight.T + bias, y_val))
        if value < lowest:
            best, lowest, chosen = (weight.clone(), bias.clone()), value, epoch
        elif epoch - chosen >= config.patience:
            break
    return LinearHead(mean, scale, *best, epoch=chosen)


def head_seed(seed: int, n: int, fold: int, run: int) -> int:
    """The seed of one run of the linear head: 63 bits, a function of (seed, n, fold, run) alone."""
    return int(hash64(STREAM_PROBE, seed, n, fold, run)) >> 1


def fit_logistic(
    train: Sample, validation: Sample, c: float | None = None
) -> tuple[Callable[[Matrix], Classes], float]:
    """Fit scikit-learn's logistic regression to standardised embeddings, with all classes weighted alike.

    Args:
        train, validation: the stars.
        c: the inverse of the penalty; None: the one of `C_GRID` with the lowest cross-entropy on the validation stars.

    Returns:
        A function that predicts the classes (n,) of embeddings (n, D), and C.
    """
    fitted, chosen = choose_logistic(train, validation, c)
    return fitted.predict, chosen


def choose_logistic(train: Sample, validation: Sample, c: float | None = None) -> tuple[Any, float]:
    """The fitted pipeline of scikit-learn (a scaler, then the regression) that `fit_logistic` predicts by, and C."""
    require_scikit_learn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(inverse: float) -> Any:
        classifier = LogisticRegression(C=inverse, class_weight="balanced", max_iter=5000)
        return make_pipeline(StandardScaler(), classifier).fit(train.vectors, train.classes)

    def loss(fitted: Any) -> float:
        column = {number: i for i, number in enumerate(fitted.classes_)}
        columns = [column[number] for number in validation.classes]
        probability = fitted.predict_proba(validation.vectors)[np.arange(len(columns)), columns]
        return float(-np.log(np.maximum(probability, np.finfo(np.float64).tiny)).mean())  # a weak penalty gives zeros

    if c is not None:
        return fit(c), c
    fitted = {inverse: fit(inverse) for inverse in C_GRID}
    chosen = min(fitted, key=lambda inverse: loss(fitted[inverse]))
    return fitted[chosen], chosen


def fit_neighbours(train: Sample, neighbours: int) -> Callable[[Matrix], Classes]:
    """Fit scikit-learn's k-nearest neighbours to standardised embeddings; k is at most the number of training stars.

    Returns:
        A function that predicts the classes (n,) of embeddings (n, D).
    """
    require_scikit_learn()
    from sklearn.neighbors import KNeighborsClassifier

    return _fit(KNeighborsClassifier(n_neighbors=min(neighbours, len(train.classes))), train)


def fit_forest(train: Sample, seed: int) -> Callable[[Matrix], Classes]:
    """Fit scikit-learn's extremely randomised trees (Geurts et al. 2006), with all classes weighted alike.

    On features of Catalina's variable stars they did as well as a random forest. Gradient-boosted trees had a macro-F1
    lower by 0.02 from 20 stars a class, and higher by 0.01 from 500.

    Returns:
        A function that predicts the classes (n,) of vectors (n, D).
    """
    require_scikit_learn()
    from sklearn.ensemble import ExtraTreesClassifier

    trees = ExtraTreesClassifier(TREES, max_features=0.3, class_weight="balanced", random_state=seed % 2**32)
    return _fit(trees, train)


def require_scikit_learn() -> None:
    """Raise MissingExtraError if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        purpose = "every probe but linear (--probes '[linear]' does without)"
        raise MissingExtraError("scikit-learn", "probe", purpose)


def fill(sample: Sample, values: NDArray[np.float32]) -> Sample:
    """The sample with `values` (D,) in place of missing numbers (NaN)."""
    return Sample(np.where(np.isnan(sample.vectors), values, sample.vectors), sample.classes)


def medians(vectors: Matrix) -> NDArray[np.float32]:
    """The medians (D,) of the numbers that are there (not NaN); 0 where there are none."""
    some = np.isfinite(vectors).any(0)
    found = np.zeros(vectors.shape[1], dtype=np.float32)
    found[some] = np.nanmedian(vectors[:, some], axis=0)
    return found


def _fit(classifier: Any, train: Sample) -> Callable[[Matrix], Classes]:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predict: Callable[[Matrix], Classes] = (
        make_pipeline(StandardScaler(), classifier).fit(train.vectors, train.classes).predict
    )
    return predict
