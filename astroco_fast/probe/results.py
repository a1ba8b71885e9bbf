"""The results of a probe as JSON, CSV, Markdown and figures."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from astroco_fast import machine, plots
from astroco_fast.files import whole_file, write_text
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.evaluate import Outcome
from astroco_fast.probe.metrics import balanced_accuracy, f1_scores, macro_f1, mean_and_deviation
from astroco_fast.probe.splits import PARTS, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = "results"
_PACKAGES = ("astroco_fast", "torch", "numpy", "scikit-learn")
_NAMES = {"linear": "linear head", "logistic": "logistic regression", "knn": "k-nearest neighbours"}


def summarise(
    outcomes: Sequence[Outcome],
    classes: Sequence[str],
    splits: Sequence[Split],
    labels: Mapping[str, str],
    config: ProbeConfig,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """All results as plain data. `results` has an entry for each probe and size, over all of its folds and seeds."""
    keys = list(dict.fromkeys((outcome.probe, outcome.n) for outcome in outcomes))
    return {
        **facts,
        "versions": {name: machine.package_version(name) for name in _PACKAGES},
        "classes": list(classes),
        "stars": [_counts(split, classes, labels) for split in splits],
        "results": [
            _entry(probe, n, [outcome for outcome in outcomes if (outcome.probe, outcome.n) == (probe, n)], classes)
            for probe, n in keys
        ],
        "settings": config.to_dict(),
    }


def _entry(probe: str, n: int, outcomes: Sequence[Outcome], classes: Sequence[str]) -> dict[str, Any]:
    """One probe and size: means and deviations over its runs, the summed confusion matrix, and the runs."""
    f1 = np.array([f1_scores(outcome.confusion) for outcome in outcomes])
    return {
        "probe": probe,
        "n": n,
        "macro_f1": mean_and_deviation([macro_f1(outcome.confusion) for outcome in outcomes]),
        "balanced_accuracy": mean_and_deviation([balanced_accuracy(outcome.confusion) for outcome in outcomes]),
        "f1": {name: mean_and_deviation(f1[:, i].tolist()) for i, name in enumerate(classes)},
        "confusion": np.sum([outcome.confusion for outcome in outcomes], axis=0).tolist(),
        "runs": [_run(outcome, classes) for outcome in outcomes],
    }


def _run(outcome: Outcome, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "fold": outcome.fold,
        "seed": outcome.seed,
        "epoch": outcome.epoch,
        "macro_f1": macro_f1(outcome.confusion),
        "balanced_accuracy": balanced_accuracy(outcome.confusion),
        "f1": dict(zip(classes, f1_scores(outcome.confusion).tolist(), strict=True)),
        "confusion": outcome.confusion.tolist(),
    }


def _counts(split: Split, classes: Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """The number of stars of each class in each part of a split."""
    counted = {part: Counter(labels[star] for star in stars) for part, stars in split.parts.items()}
    parts = {part: {name: counts[name] for name in classes} for part, counts in counted.items()}
    return {"n": split.n, "fold": split.fold, **parts}


def write_results(out: Path, results: Mapping[str, Any], outcomes: Sequence[Outcome], draw: bool) -> list[Path]:
    """Write results.json, results.csv, results.md and, if asked for and matplotlib is there, confusion_N.png.

    Returns:
        The paths of the files, each of which is replaced once it is whole.
    """
    texts = {
        "json": json.dumps(results, indent=1) + "\n",
        "csv": _csv(outcomes, results["classes"]),
        "md": _markdown(results),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(out / f"{RESULTS}.{ending}")
        write_text(paths[-1], text)
    if draw and find_spec("matplotlib") is not None:
        paths += _draw(out, results)
    return paths


def _csv(outcomes: Sequence[Outcome], classes: Sequence[str]) -> str:
    """CSV with a row for each run: probe, n, fold, seed, epoch, figures."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ["fold", "seed", "epoch", "macro_f1", "balanced_accuracy"]
    writer.writerow(["probe", "n", *figures, *(f"f1_{name}" for name in classes)])
    for outcome in outcomes:
        run = _run(outcome, classes)
        writer.writerow([outcome.probe, outcome.n, *(run[name] for name in figures), *run["f1"].values()])
    return text.getvalue()


def _markdown(results: Mapping[str, Any]) -> str:
    settings, entries = results["settings"], results["results"]
    simulated = ", SIMULATED light curves" if results["simulated"] else ""
    lines = [
        f"# Probe of {settings['model']} on {settings['data']}{simulated}",
        "",
        "Mean and sample standard deviation over folds and, for the linear head, seeds. n: training stars a class.",
        "",
        "| probe | n | macro-F1 | balanced accuracy | folds x seeds |",
        "|---|---|---|---|---|",
    ]
    for entry in entries:
        figures = f"{plus_minus(entry['macro_f1'])} | {plus_minus(entry['balanced_accuracy'])}"
        lines.append(f"| {_NAMES[entry['probe']]} | {entry['n']} | {figures} | {_runs(entry)} |")
    lines += ["", "F1 by class:", "", f"| probe | n | {' | '.join(map(_cell, results['classes']))} |"]
    lines.append("|---|---|" + "---|" * len(results["classes"]))
    for entry in entries:
        lines.append(
            f"| {_NAMES[entry['probe']]} | {entry['n']} | {' | '.join(map(plus_minus, entry['f1'].values()))} |"
        )
    lines += ["", "Stars a class (fewest to most over classes and folds):", "", "| n | train | validation | test |"]
    lines.append("|---|---|---|---|")
    for n in dict.fromkeys(entry["n"] for entry in results["stars"]):
        lines.append(f"| {n} | {' | '.join(_range(results['stars'], n, part) for part in PARTS)} |")
    lines += ["", f"Model: sha256 {results['model_sha256']}  ", f"Stars: sha256 {results['data_sha256']}"]
    return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    return name.replace("|", "\\|")


def _runs(entry: Mapping[str, Any]) -> str:
    folds = len({run["fold"] for run in entry["runs"]})
    return f"{folds} x {len(entry['runs']) // folds}"


def _range(stars: Sequence[Mapping[str, Any]], n: int, part: str) -> str:
    counts = [count for entry in stars if entry["n"] == n for count in entry[part].values()]
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def plus_minus(figure: Mapping[str, float | None]) -> str:
    """A mean and its standard deviation as text."""
    deviation = "" if figure["std"] is None else f" ± {figure['std']:.3f}"
    return f"{figure['mean']:.3f}{deviation}"


def _draw(out: Path, results: Mapping[str, Any]) -> list[Path]:
    """Draw confusion_N.png for each size: of the linear head or, without it, of the first probe."""
    probe = results["results"][0]["probe"]
    simulated = ", SIMULATED" if results["simulated"] else ""
    paths = []
    with plots.drawing():
        for entry in results["results"]:
            if entry["probe"] == probe:
                score = f"macro-F1 {plus_minus(entry['macro_f1'])}"
                title = f"{_NAMES[probe]}, {entry['n']} training stars a class{simulated}\n{score}, {_runs(entry)} runs"
                figure = confusion_figure(np.array(entry["confusion"]), results["classes"], title)
                paths.append(out / f"confusion_{entry['n']}.png")
                with whole_file(paths[-1]) as partial:
                    figure.savefig(partial, format="png")
    return paths


def confusion_figure(confusion: Any, classes: Sequence[str], title: str) -> "Figure":
    """A figure of a confusion matrix (C, C), in per cent of each true class's stars."""
    from matplotlib.figure import Figure

    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.4 + 0.62 * len(classes)
    figure = Figure(figsize=(max(side, 4.8), max(side, 4.2)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share):
        colour = "white" if value > 55 else plots.BLACK
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title}\nper cent of each true class's test stars", fontsize="medium", loc="left")
    return figure
