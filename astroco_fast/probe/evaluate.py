"""Evaluation: train every probe on every split, and test it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from astroco_fast.data.metadata import Text
from astroco_fast.errors import UserError
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.heads import (
    Matrix,
    Sample,
    fill,
    fit_forest,
    fit_logistic,
    fit_neighbours,
    head_seed,
    medians,
    require_scikit_learn,
    train_linear,
)
from astroco_fast.probe.metrics import Confusion, confusion_matrix
from astroco_fast.probe.splits import Split


@dataclass(frozen=True)
class Outcome:
    """One trained probe on its fold's test stars.

    Attributes:
        probe: linear, logistic, knn or forest.
        n: training stars a class.
        fold: the split's fold.
        seed: the run of the linear head; None for probes without random numbers.
        epoch: the epoch that the validation stars chose; None for probes without epochs.
        c: the logistic regression's C; None for other probes.
        confusion: (C, C), test stars by true and predicted class.
    """

    probe: str
    n: int
    fold: int
    seed: int | None
    epoch: int | None
    c: float | None
    confusion: Confusion


def evaluate(
    vectors: Matrix,
    ids: Text,
    labels: Text,
    classes: Sequence[str],
    splits: Sequence[Split],
    config: ProbeConfig,
    missing: bool = False,
) -> list[Outcome]:
    """Train and test the configuration's probes on each split.

    Args:
        vectors: (n, D) float32, embeddings of any encoder, or features.
        ids: (n,) the stars' ids, among them all stars of the splits.
        labels: (n,) the stars' classes.
        classes: the C classes, in the order of the confusion matrices.
        splits: which stars train, validate and test.
        config: the probes and their settings. Those of data, model and splits are not used.
        missing: whether vectors may lack numbers (NaN), which are then filled with the training stars' medians.

    Returns:
        An outcome for each probe, split and, for the linear head, seed.

    Raises:
        UserError: a class without training or test stars, embeddings that are not finite, or no scikit-learn.
    """
    if {*config.probes} - {"linear"}:
        require_scikit_learn()
    outcomes: list[Outcome] = []
    with tqdm(total=len(splits), desc="probe", unit=" splits", disable=None) as progress:
        for split, samples in samples_of(vectors, ids, labels, classes, splits, missing):
            outcomes += _on_split(split, samples, len(classes), config)
            progress.update()
    return outcomes


def samples_of(
    vectors: Matrix, ids: Text, labels: Text, classes: Sequence[str], splits: Sequence[Split], missing: bool
) -> Iterator[tuple[Split, dict[str, Sample]]]:
    """Each split with the vectors and classes of its parts. Arguments and errors are those of `evaluate`."""
    usable = np.isfinite(vectors) | (np.isnan(vectors) if missing else False)
    if not usable.all():
        star = ids[int(np.argmax(~usable.all(1)))]
        raise UserError(f"the embedding of star {star!r} is not finite; has the model diverged?")
    row = {star: i for i, star in enumerate(ids)}
    number = {name: i for i, name in enumerate(classes)}
    known = np.array([number[label] for label in labels], dtype=np.int64)
    for split in splits:
        rows = {part: np.array([row[star] for star in stars]) for part, stars in split.parts.items()}
        samples = {part: Sample(vectors[at], known[at]) for part, at in rows.items()}
        _check_classes(split, samples, classes)
        if missing:
            values = medians(samples["train"].vectors)
            samples = {part: fill(sample, values) for part, sample in samples.items()}
        yield split, samples


def _on_split(split: Split, samples: dict[str, Sample], classes: int, config: ProbeConfig) -> Iterator[Outcome]:
    train, validation, test = samples["train"], samples["validation"], samples["test"]
    for probe in config.probes:
        if probe == "linear":
            for run in range(config.seeds):
                seed = head_seed(config.seed, split.n, split.fold, run)
                head = train_linear(train, validation, classes, config.head, seed)
                matrix = confusion_matrix(test.classes, head.predict(test.vectors), classes)
                yield Outcome(probe, split.n, split.fold, run, head.epoch, None, matrix)
        else:
            c = None
            if probe == "logistic":
                predict, c = fit_logistic(train, validation, config.logistic_c)
            elif probe == "knn":
                predict = fit_neighbours(train, config.neighbours)
            else:
                predict = fit_forest(train, head_seed(config.seed, split.n, split.fold, 0))
            matrix = confusion_matrix(test.classes, predict(test.vectors), classes)
            yield Outcome(probe, split.n, split.fold, None, None, c, matrix)


def _check_classes(split: Split, samples: dict[str, Sample], classes: Sequence[str]) -> None:
    for part in ("train", "test"):
        absent = [name for i, name in enumerate(classes) if not (samples[part].classes == i).any()]
        if absent:
            raise UserError(
                f"n = {split.n}, fold {split.fold}: no star of class {absent[0]!r} in {part}; correct the splits, or "
                "choose among the classes by --classes"
            )
