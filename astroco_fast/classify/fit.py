"""`astroco classify fit`: a classifier of all labelled stars, and folds that tell how good it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from astroco_fast.classify.calibration import choose_temperature
from astroco_fast.classify.classifier import DESCRIPTION, NUMBERS, Classifier, Probabilities
from astroco_fast.classify.config import FitConfig
from astroco_fast.classify.report import write_report
from astroco_fast.classify.vectors import Labelled, Model, labelled_curves, labelled_table
from astroco_fast.data.store import Store
from astroco_fast.errors import UserError
from astroco_fast.files import refuse_input, scratch_folder, write_text
from astroco_fast.folders import ResultFolder, result_folder
from astroco_fast.pretrained import local_folder
from astroco_fast.probe.evaluate import samples_of
from astroco_fast.probe.heads import Sample, choose_logistic, require_scikit_learn
from astroco_fast.probe.splits import Split, draw, write_splits
from astroco_fast.released import given_or_best
from astroco_fast.vector_tables import EMBEDDING, is_embeddings

CACHE, CONFIG, SPLITS = f"{EMBEDDING}s.parquet", "config.yaml", "splits.csv"


@dataclass(frozen=True)
class Fold:
    """One fold: its classifier, on stars that took no part in it.

    Attributes:
        split: the stars.
        c: C of the logistic regression, which the validation stars chose.
        classifier: fitted to the training stars; the validation stars chose its temperature.
        true: (n,) the classes of the test stars, as numbers from 0.
        calibrated: (n, C) the test stars' probabilities.
        raw: (n, C) those of the logistic regression as it is, without temperature and priors.
    """

    split: Split
    c: float
    classifier: Classifier
    true: NDArray[np.int64]
    calibrated: Probabilities
    raw: Probabilities


def fit(config: FitConfig) -> Classifier:
    """Run `astroco classify fit`: embed, fit and test by folds, fit to all stars, and write the folder's files.

    Raises:
        UserError: the data, the labels, the model or the folder cannot be used; names what is wrong.
    """
    require_scikit_learn()
    out = Path(config.out)
    with _folder(out) as folder:
        stars = _labelled(config, folder)
        classes = tuple(sorted({*stars.labels}))
        n = len(stars.ids)
        # More than there are, so that the stars of each class are divided 3 : 1 : 1.
        splits = draw(stars.ids, stars.labels, [3 * n], validation=n, test=n, folds=config.folds, seed=config.seed,
                      allow_fewer=True)  # fmt: skip
        common = frequencies(stars.labels, classes)
        samples = samples_of(stars.vectors, stars.ids, stars.labels, classes, splits, missing=False)
        folds = [_fold(split, parts, classes, common, config) for split, parts in samples]
        number = {name: i for i, name in enumerate(classes)}
        everything = Sample(stars.vectors, np.array([number[label] for label in stars.labels], dtype=np.int64))
        c = float(np.sort([fold.c for fold in folds])[len(folds) // 2])
        temperature = float(np.exp(np.mean([np.log(fold.classifier.temperature) for fold in folds])))
        fitted, _ = _logistic(everything, None, classes, common, c)
        fitted = replace(fitted, temperature=temperature, priors=config.priors, min_points=config.min_points,
                         model=stars.model, digest=stars.digest, parts=stars.parts)  # fmt: skip
        with scratch_folder(out / DESCRIPTION) as made:
            write_text(made / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
            write_splits(made / SPLITS, splits, dict(zip(stars.ids, stars.labels, strict=True)))
            write_report(made, folds, fitted, c, stars, config)
            fitted.save(made)
            folder.replace(made)
    print(f"{out}: a classifier of {len(classes)} classes by {stars.model}; {out / 'report.md'} says how good it is")
    return fitted


def frequencies(labels: Any, classes: tuple[str, ...]) -> NDArray[np.float64]:
    """The share (C,) of each class among labels (n,)."""
    return np.array([np.count_nonzero(labels == name) / len(labels) for name in classes])


def _labelled(config: FitConfig, folder: ResultFolder) -> Labelled:
    out = folder.path
    if is_embeddings(Path(config.data)):
        refuse_input(out / CACHE, [Path(config.data)], "the embeddings")
        return labelled_table(config)
    name = given_or_best(config.model)
    model = Model.open(name, config.parts, config.device)
    if (local_folder(name) / "finetune.json").is_file():
        print(f"note: {name} was fine-tuned on labels: folds that test its training stars flatter it.")
    folder.claim([CACHE])
    return labelled_curves(config, model, out / CACHE)


def _logistic(
    train: Sample, validation: Sample | None, classes: tuple[str, ...], common: NDArray[np.float64], c: float | None
) -> tuple[Classifier, float]:
    """A classifier with the temperature 1, and its C."""
    fitted, chosen = choose_logistic(train, validation or train, c)
    scaler, regression = fitted[0], fitted[1]
    weight, bias = regression.coef_, regression.intercept_
    if len(classes) == 2:  # scikit-learn gives the second class's score, the first's being zero
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    mean, scale = np.asarray(scaler.mean_, dtype=np.float64), np.asarray(scaler.scale_, dtype=np.float64)
    return Classifier(classes, mean, scale, weight.astype(np.float64), bias.astype(np.float64), common), chosen


def _fold(
    split: Split, parts: dict[str, Sample], classes: tuple[str, ...], common: NDArray[np.float64], config: FitConfig
) -> Fold:
    train, validation, test = parts["train"], parts["validation"], parts["test"]
    found, c = _logistic(train, validation, classes, common, config.c)
    found = replace(found, priors=config.priors)
    raw = replace(found, priors="uniform").probabilities(test.vectors)
    temperature = choose_temperature(found.scores(validation.vectors), found.log_prior, validation.classes)
    found = replace(found, temperature=temperature)
    return Fold(split, c, found, test.classes, found.probabilities(test.vectors), raw)


@contextmanager
def _folder(out: Path) -> Iterator[ResultFolder]:
    """Make the folder and lock it."""
    if Store.is_store(out):
        raise UserError(f"{out}: a store of light curves is no place for results; choose another --out")
    busy = "another astroco classify is writing to it; wait for it, or choose another --out"
    with result_folder(out, "classify", busy, lambda _: None) as folder:
        folder.claim([DESCRIPTION, NUMBERS])
        yield folder
