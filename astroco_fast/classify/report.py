"""The report of `astroco classify fit`: figures by fold and by class, confusion and reliability."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast import plots
from astroco_fast.classify.calibration import Reliability, log_loss, reliability
from astroco_fast.classify.classifier import Classifier
from astroco_fast.classify.config import FitConfig
from astroco_fast.classify.vectors import Labelled
from astroco_fast.errors import MissingExtraError
from astroco_fast.files import write_text
from astroco_fast.probe.figures import confusion_figure
from astroco_fast.probe.metrics import confusion_matrix, f1_scores, macro_f1, mean_and_deviation, plus_minus
from astroco_fast.text import cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from astroco_fast.classify.fit import Fold

REPORT, RESULTS, TESTED = "report.md", "results.json", "tested.csv"
CONFUSION, RELIABILITY = "confusion.png", "reliability.png"
FIGURES = ("macro_f1", "accuracy", "log_loss", "calibration_error", "calibration_error_raw")


def write_report(
    out: Path, folds: "Sequence[Fold]", fitted: Classifier, c: float, stars: Labelled, config: FitConfig
) -> None:
    """Write report.md, results.json, tested.csv and, if matplotlib is installed, the figures.

    Args:
        out: an existing folder.
        folds: the folds.
        fitted: the classifier of all stars.
        c: its C.
        stars: the labelled stars.
        config: the settings.
    """
    results = summarise(folds, fitted, c, stars)
    write_text(out / RESULTS, json.dumps(results, indent=1) + "\n")
    with (out / TESTED).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fold", "id", "label", "class", *(f"p_{name}" for name in fitted.classes)])
        for fold in folds:
            for star, true, row in zip(fold.split.test, fold.true, fold.calibrated, strict=True):
                said = [fitted.classes[true], fitted.classes[int(row.argmax())], *(f"{p:.6f}" for p in row)]
                writer.writerow([fold.split.fold, star, *said])
    drawn = _draw(out, folds, fitted, results) if config.plots else False
    write_text(out / REPORT, report_text(results, drawn))


def summarise(folds: "Sequence[Fold]", fitted: Classifier, c: float, stars: Labelled) -> dict[str, Any]:
    """The figures, as JSON types; those of each fold are of its test stars."""
    size = len(fitted.classes)
    rows, confusions = [], []
    for fold in folds:
        confusion = confusion_matrix(fold.true, fold.calibrated.argmax(1), size)
        confusions.append(confusion)
        rows.append(
            {
                "fold": fold.split.fold,
                "c": fold.c,
                "temperature": fold.classifier.temperature,
                "stars": {part: len(ids) for part, ids in fold.split.parts.items()},
                "macro_f1": macro_f1(confusion),
                "accuracy": float(np.diag(confusion).sum() / confusion.sum()),
                "log_loss": log_loss(fold.calibrated, fold.true),
                "calibration_error": reliability(fold.calibrated, fold.true).error,
                "calibration_error_raw": reliability(fold.raw, fold.true).error,
                "f1": f1_scores(confusion).tolist(),
            }
        )
    confusion = np.sum(confusions, axis=0)
    return {
        "classes": list(fitted.classes),
        "labelled_stars": [int(np.count_nonzero(stars.labels == name)) for name in fitted.classes],
        "model": fitted.model,
        "model_sha256": fitted.digest,
        "parts": list(fitted.parts),
        "priors": fitted.priors,
        "c": c,
        "temperature": fitted.temperature,
        "simulated": stars.simulated,
        "folds": rows,
        **{name: mean_and_deviation([row[name] for row in rows]) for name in FIGURES},
        "f1": [mean_and_deviation([row["f1"][i] for row in rows]) for i in range(size)],
        "recall": _share(confusion, 1),
        "precision": _share(confusion, 0),
        "confusion": confusion.tolist(),
        "calibration_error_pooled": _pooled(folds, "calibrated").error,
    }


def report_text(results: dict[str, Any], drawn: bool) -> str:
    """The report in Markdown."""
    rows, simulated = results["folds"], " SIMULATED" * results["simulated"]
    count = sum(results["labelled_stars"])
    tested = rows[0]["stars"]["test"]
    lines = [
        "# Classifier",
        "",
        f"{len(results['classes'])} classes, {count:,}{simulated} labelled stars, vectors of {results['model']} "
        f"(SHA-256 {results['model_sha256'][:12]}). Logistic regression, C = {results['c']:g}, temperature "
        f"{results['temperature']:.3f}; probabilities for classes that are "
        + ("as common as among these stars." if results["priors"] == "labels" else "all equally common."),
        "",
        f"The figures below are of {len(rows)} folds, drawn anew from all stars: 60 % of each class train a fold's "
        f"classifier, 20 % choose its C and temperature, and the other 20 %, {tested:,} stars, test it. The saved "
        "classifier is fitted to all stars, with the folds' median C and their geometric mean temperature; it has not "
        "been tested itself, and saw more stars than those that were.",
        "",
        "| | mean over folds |",
        "|---|---|",
        f"| macro-F1 | {plus_minus(results['macro_f1'])} |",
        f"| accuracy | {plus_minus(results['accuracy'])} |",
        f"| cross-entropy, nats | {plus_minus(results['log_loss'])} |",
        f"| expected calibration error | {plus_minus(results['calibration_error'])} |",
        f"| the same before calibration | {plus_minus(results['calibration_error_raw'])} |",
        f"| expected calibration error, folds pooled | {results['calibration_error_pooled']:.3f} |",
        "",
        "Expected calibration error: the mean distance between the probability of the predicted class and the share of "
        "right predictions, in ten bins (Guo et al. 2017). Of few stars it is above zero by chance alone.",
        "",
        "| class | stars | F1 | recall | precision |",
        "|---|---|---|---|---|",
    ]
    for i, name in enumerate(results["classes"]):
        figures = f"{plus_minus(results['f1'][i])} | {results['recall'][i]:.3f} | {results['precision'][i]:.3f}"
        lines.append(f"| {cell(name)} | {results['labelled_stars'][i]:,} | {figures} |")
    lines += ["", "| fold | macro-F1 | accuracy | calibration error | C | temperature |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row['macro_f1']:.3f} | {row['accuracy']:.3f} | {row['calibration_error']:.3f}"
        lines.append(f"| {row['fold']} | {figures} | {row['c']:g} | {row['temperature']:.3f} |")
    if drawn:
        lines += ["", f"![confusion matrix]({CONFUSION})", "", f"![reliability]({RELIABILITY})"]
    return "\n".join([*lines, ""])


def reliability_figure(before: Reliability, after: Reliability, title: str) -> "Figure":
    """A figure of the share of right predictions against their probability, and of how many there are of each.

    A bar is Wilson's interval of one standard error, which is wide where a bin has few predictions.
    """
    figure = plots.new_figure(5.4, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=plots.GREY, linestyle="--", linewidth=1)
    named = (("before calibration", before, plots.ORANGE, "s"), ("calibrated", after, plots.BLUE, "o"))
    for name, found, colour, marker in named:
        some = found.stars > 0
        label = f"{name}, error {found.error:.3f}"
        low, high = wilson(found.accuracy[some], found.stars[some])
        bars = [np.maximum(found.accuracy[some] - low, 0), np.maximum(high - found.accuracy[some], 0)]
        style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 1.2, "label": label}
        upper.errorbar(found.confidence[some], found.accuracy[some], yerr=bars, **style)
    upper.set_ylabel("share of right predictions")
    upper.set_ylim(-0.02, 1.02)
    upper.legend(loc="lower right")
    upper.set_title(title, fontsize="medium", loc="left")
    edges = np.linspace(0, 1, len(after.stars) + 1)
    lower.bar(edges[:-1], after.stars, width=np.diff(edges), align="edge", color=plots.BLUE, alpha=0.6)
    lower.set_ylabel("predictions")
    lower.set_xlabel("probability of the predicted class")
    lower.set_xlim(0, 1)
    return figure


def wilson(share: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval (1927) of one standard error for shares (k,) of n (k,) trials: its lower and upper ends."""
    centre = (share + 0.5 / n) / (1 + 1 / n)
    half = np.sqrt(share * (1 - share) / n + 0.25 / n**2) / (1 + 1 / n)
    return centre - half, centre + half


def _draw(out: Path, folds: "Sequence[Fold]", fitted: Classifier, results: dict[str, Any]) -> bool:
    """Draw the figures; whether matplotlib is there to do so."""
    simulated = ", SIMULATED" * results["simulated"]
    title = f"{len(folds)} folds{simulated}\nmacro-F1 {plus_minus(results['macro_f1'])}"
    try:
        with plots.drawing():
            confusion = confusion_figure(np.array(results["confusion"]), fitted.classes, title)
            confusion.savefig(out / CONFUSION, format="png")
            before, after = _pooled(folds, "raw"), _pooled(folds, "calibrated")
            title = f"Test stars of {len(folds)} folds{simulated}"
            reliability_figure(before, after, title).savefig(out / RELIABILITY, format="png")
    except MissingExtraError as error:
        print(f"No figures: {error}")
        return False
    return True


def _pooled(folds: "Sequence[Fold]", kind: str) -> Reliability:
    """The reliability over the test stars of all folds."""
    probabilities = np.concatenate([getattr(fold, kind) for fold in folds])
    return reliability(probabilities, np.concatenate([fold.true for fold in folds]))


def _share(confusion: NDArray[np.int64], axis: int) -> list[float]:
    """Right predictions over all of each true (axis 1) or predicted (axis 0) class; 0 where there are none."""
    return [float(right / max(total, 1)) for right, total in zip(np.diag(confusion), confusion.sum(axis), strict=True)]
