"""Probes on planted embeddings: separable classes are separated, others are not, and results are reproducible."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.probe import heads
from astroco_fast.probe.config import HeadConfig, ProbeConfig
from astroco_fast.probe.evaluate import Outcome, evaluate
from astroco_fast.probe.heads import C_GRID, Sample, fit_logistic, train_linear
from astroco_fast.probe.metrics import (
    balanced_accuracy,
    confusion_matrix,
    f1_scores,
    macro_f1,
    mean_and_deviation,
)
from astroco_fast.probe.splits import draw

CLASSES = ("EA", "LPV", "RRab", "RRc")
STARS, WIDTH = 70, 8
CONFIG = ProbeConfig(data="", model="", out="", seeds=2, head=HeadConfig(learning_rate=0.01, epochs=60))


def planted(distance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, ids and labels of classes, each moved by `distance` standard deviations on its own axis.

    The features' scales differ by six orders of magnitude.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.array(CLASSES, dtype=object), STARS)
    means = distance * np.eye(len(CLASSES), WIDTH)
    vectors = rng.normal(size=(len(labels), WIDTH)) + np.repeat(means, STARS, axis=0)
    vectors = vectors * np.logspace(-3, 3, WIDTH) + 5.0
    return vectors.astype(np.float32), np.array([f"s{i}" for i in range(len(labels))], dtype=object), labels


def probe(vectors: np.ndarray, ids: np.ndarray, labels: np.ndarray, config: ProbeConfig = CONFIG) -> list[Outcome]:
    splits = draw(ids, labels, (20,), validation=20, test=30, folds=2)
    return evaluate(vectors, ids, labels, CLASSES, splits, config)


def test_separable_embeddings_are_told_apart_by_every_probe() -> None:
    outcomes = probe(*planted(distance=8.0))
    assert [(o.probe, o.fold, o.seed) for o in outcomes[:4]] == [
        ("linear", 0, 0),
        ("linear", 0, 1),
        ("logistic", 0, None),
        ("knn", 0, None),
    ]
    assert len(outcomes) == 8
    for outcome in outcomes:
        assert outcome.confusion.sum(1).tolist() == [30] * len(CLASSES)
        assert macro_f1(outcome.confusion) > 0.97


def test_shuffled_labels_give_chance() -> None:
    vectors, ids, labels = planted(distance=8.0)
    shuffled = np.random.default_rng(1).permutation(labels)
    figures = [balanced_accuracy(outcome.confusion) for outcome in probe(vectors, ids, shuffled)]
    assert abs(np.mean(figures) - 1 / len(CLASSES)) < 0.08
    assert max(figures) < 0.45


def test_probes_repeat_and_differ_by_seed() -> None:
    def confusions(outcomes: list[Outcome]) -> list[list[list[int]]]:
        return [outcome.confusion.tolist() for outcome in outcomes]

    data = planted(distance=1.0)
    first = probe(*data)
    assert confusions(probe(*data)) == confusions(first)
    vectors, ids, labels = data
    order = np.random.default_rng(2).permutation(len(ids))
    assert confusions(probe(vectors[order], ids[order], labels[order])) == confusions(first)
    assert not np.array_equal(first[0].confusion, first[1].confusion)


def test_validation_stars_choose_the_epoch() -> None:
    """Training labels contradict validation's, so every step makes validation worse, and the first epoch is best."""
    vectors, _, labels = planted(distance=8.0)
    two = (labels == "EA") | (labels == "LPV")
    right = (labels[two] == "LPV").astype(np.int64)
    train, validation = Sample(vectors[two], 1 - right), Sample(vectors[two], right)
    head = HeadConfig(learning_rate=0.1, epochs=30, patience=4)
    assert train_linear(train, validation, 2, head, seed=0).epoch == 1
    assert train_linear(train, train, 2, head, seed=0).epoch > 5


def test_validation_stars_choose_the_penalty() -> None:
    """Of noise, the strongest penalty has the lowest cross-entropy; of separable classes, the weakest."""
    pytest.importorskip("sklearn")
    vectors, _, labels = planted(distance=8.0)
    classes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    noise = np.random.default_rng(0).permutation(classes)
    separable = Sample(vectors, classes)
    assert fit_logistic(separable, separable)[1] == max(C_GRID)
    halves = Sample(vectors[::2], noise[::2]), Sample(vectors[1::2], noise[1::2])
    predict, c = fit_logistic(*halves)
    assert c == min(C_GRID)
    fixed, same = fit_logistic(*halves, c=c)
    assert same == c
    assert np.array_equal(predict(vectors), fixed(vectors))


def test_head_is_what_autograd_and_adamw_make() -> None:
    """With all stars in one batch, each epoch is one step of AdamW with the cross-entropy's gradient."""
    vectors, _, labels = planted(distance=1.0)
    classes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    sample, count = Sample(vectors, classes), len(np.unique(labels))
    start, end = (
        train_linear(sample, sample, count, HeadConfig(learning_rate=rate, epochs=6, batch_size=len(classes)), seed=3)
        for rate in (1e-12, 0.01)
    )
    assert end.epoch == 6
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=HeadConfig().weight_decay)
    x = (torch.from_numpy(vectors) - start.mean) / start.scale
    for _ in range(end.epoch):
        optimizer.zero_grad()
        cross_entropy(x @ weight.T + bias, torch.from_numpy(classes)).backward()
        optimizer.step()
    torch.testing.assert_close(end.weight, weight.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(end.bias, bias.detach(), rtol=0, atol=1e-5)


def test_a_constant_feature_does_no_harm() -> None:
    vectors, ids, labels = planted(distance=8.0)
    vectors[:, -1] = 3.0
    assert min(macro_f1(outcome.confusion) for outcome in probe(vectors, ids, labels)) > 0.97


def test_embeddings_that_are_not_finite_name_the_star() -> None:
    vectors, ids, labels = planted(distance=1.0)
    vectors[17, 3] = np.nan
    with pytest.raises(UserError, match="star 's17' is not finite"):
        probe(vectors, ids, labels)


def test_gaps_are_filled_with_the_training_stars_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "TREES", 30)
    vectors, ids, labels = planted(distance=8.0)
    gaps = vectors.copy()
    gaps[::7, 4] = np.nan
    gaps[:, 5] = np.nan
    splits = draw(ids, labels, (20,), validation=20, test=30, folds=1)
    found = evaluate(gaps, ids, labels, CLASSES, splits, replace(CONFIG, probes=["logistic", "forest"]), missing=True)
    train = np.isin(ids, splits[0].train)
    filled = vectors.copy()
    filled[::7, 4] = np.nanmedian(gaps[train, 4])
    filled[:, 5] = 0
    expected = evaluate(filled, ids, labels, CLASSES, splits, replace(CONFIG, probes=["logistic", "forest"]))
    assert [o.confusion.tolist() for o in found] == [o.confusion.tolist() for o in expected]
    assert min(macro_f1(outcome.confusion) for outcome in found) > 0.95


def test_a_class_without_test_stars_is_named() -> None:
    vectors, ids, labels = planted(distance=1.0)
    splits = draw(ids[labels != "RRc"], labels[labels != "RRc"], (5,), validation=5, test=5, folds=1)
    with pytest.raises(UserError, match="no star of class 'RRc' in train"):
        evaluate(vectors, ids, labels, CLASSES, splits, CONFIG)


def test_without_scikit_learn_the_linear_head_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    data = planted(distance=8.0)
    with pytest.raises(MissingExtraError, match=r"scikit-learn: pip install 'astroco_fast\[probe\]'"):
        probe(*data)
    linear = ProbeConfig(
        data="", model="", out="", seeds=1, probes=["linear"], head=HeadConfig(learning_rate=0.01, epochs=60)
    )
    assert {outcome.probe for outcome in probe(*data, linear)} == {"linear"}


def test_figures_by_hand() -> None:
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 1]), 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(f1_scores(matrix), [2 / 2.5, 1 / 2.5, 0, 0])
    assert macro_f1(matrix) == pytest.approx(0.3)
    assert balanced_accuracy(matrix) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert mean_and_deviation([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0}
    assert mean_and_deviation([1.0]) == {"mean": 1.0, "std": None}


def test_figures_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    matrix = confusion_matrix(true, predicted, 4)
    assert macro_f1(matrix) == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert balanced_accuracy(matrix) == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
