"""A fitted classifier: a linear map of standardised vectors, a temperature, and how common the classes are.

Probabilities are softmax(z / T + log prior), where z are the scores of a logistic regression that weights all classes
alike, and T is the temperature (Guo et al. 2017, section 4.2) that stars held out of the regression's training chose.

A saved classifier is two files: `classifier.safetensors` holds the numbers, and `classifier.json` the classes, the
model that it fits (its name, and a hash of its settings, weights and parts), and the SHA-256 of the first.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from astroco_fast.errors import UserError
from astroco_fast.files import read_json, sha256, write_text

DESCRIPTION, NUMBERS = "classifier.json", "classifier.safetensors"
FORMAT = 1
_ARRAYS = ("mean", "scale", "weight", "bias", "frequency")
_TEXTS = ("model", "digest", "priors")

Vectors = NDArray[np.float32]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Classifier:
    """A classifier of C classes on vectors of D numbers.

    Attributes:
        classes: the names of the classes.
        mean, scale: (D,) of the training stars' vectors.
        weight, bias: (C, D) and (C,), of the logistic regression.
        frequency: (C,) the share of each class among the labelled stars.
        temperature: T.
        priors: labels, for which the prior is `frequency`, or uniform.
        model: name or folder of the model whose vectors it takes.
        digest: the hash of the model and the parts (`astroco_fast.digest.model_digest`).
        parts: the vectors' parts.
        min_points: light curves with fewer good points have no vector.
    """

    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    frequency: NDArray[np.float64]
    temperature: float = 1.0
    priors: str = "labels"
    model: str = ""
    digest: str = ""
    parts: tuple[str, ...] = ()
    min_points: int = 1

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self.mean)

    def scores(self, vectors: Vectors) -> Probabilities:
        """The scores z (n, C) of vectors (n, D)."""
        return ((vectors - self.mean) / self.scale) @ self.weight.T + self.bias

    def probabilities(self, vectors: Vectors) -> Probabilities:
        """The calibrated probabilities (n, C) of vectors (n, D); each row adds up to 1."""
        return softmax(self.scores(vectors) / self.temperature + self.log_prior)

    @property
    def log_prior(self) -> NDArray[np.float64]:
        """The logs of the classes' priors, (C,)."""
        return np.log(self.frequency) if self.priors == "labels" else np.zeros(len(self.classes))

    def with_priors(self, priors: str | None) -> "Classifier":
        """The same classifier for another population; None: the same."""
        return self if priors is None else replace(self, priors=priors)

    def save(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, folder / NUMBERS)
        told = {
            "format": FORMAT,
            "classes": list(self.classes),
            **{name: getattr(self, name) for name in _TEXTS},
            "parts": list(self.parts),
            "min_points": self.min_points,
            "temperature": self.temperature,
            "sha256": sha256(folder / NUMBERS),
        }
        write_text(folder / DESCRIPTION, json.dumps(told, indent=1) + "\n")


def softmax(scores: NDArray[np.float64]) -> Probabilities:
    """Rows (n, C) of scores to rows of probabilities."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def load_classifier(folder: str | Path) -> Classifier:
    """Read a classifier that `Classifier.save` wrote.

    Raises:
        UserError: there is none, it is of another version, or a file is damaged; names the file.
    """
    path, numbers = Path(folder) / DESCRIPTION, Path(folder) / NUMBERS
    try:
        told = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a folder of astroco classify fit") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; fit the classifier again") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise UserError(f"{path}: not a classifier that this version of astroco_fast reads; fit it again")
    try:
        if sha256(numbers) != told["sha256"]:
            raise UserError(f"{numbers}: damaged, or of another classifier (its checksum differs); fit it again")
        arrays = load_file(numbers)
        if odd := [name for name in _ARRAYS if arrays[name].dtype.kind != "f" or not arrays[name].ndim]:
            raise TypeError(f"{odd[0]} is no array of real numbers")
        found = _checked(told, {name: arrays[name].astype(np.float64) for name in _ARRAYS})
    except OSError as error:
        raise UserError(f"{numbers}: {error.strerror}; fit the classifier again") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({str(error) or type(error).__name__}); fit the classifier again") from error
    return found


def _checked(told: dict[str, Any], arrays: dict[str, NDArray[np.float64]]) -> Classifier:
    """The classifier of a description and its arrays.

    Raises:
        KeyError, TypeError, ValueError: something is missing, of another type or shape, or not finite.
    """
    classes, parts = tuple(told["classes"]), tuple(told["parts"])
    texts = {name: told[name] for name in _TEXTS}
    if not all(isinstance(text, str) for text in (*classes, *parts, *texts.values())):
        raise TypeError("a name is no text")
    count, size = len(classes), arrays["mean"].shape[0]
    shapes = {"mean": (size,), "scale": (size,), "weight": (count, size), "bias": (count,), "frequency": (count,)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} has the shape {arrays[name].shape}, or is not finite")
    temperature = float(told["temperature"])
    if not 0 < temperature < np.inf or not (arrays["frequency"] > 0).all() or not (arrays["scale"] > 0).all():
        raise ValueError("a temperature, share or scale is not positive")
    if texts["priors"] not in ("labels", "uniform"):
        raise ValueError(f"priors is {texts['priors']!r}")
    rest: dict[str, Any] = {**arrays, **texts, "parts": parts, "min_points": int(told["min_points"])}
    return Classifier(classes, temperature=temperature, **rest)
