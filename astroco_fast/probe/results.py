"""The results of a probe as JSON, CSV, Markdown and figures."""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from astroco_fast import machine
from astroco_fast.files import write_text
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.evaluate import Outcome
from astroco_fast.probe.figures import COMPARISON, draw
from astroco_fast.probe.metrics import balanced_accuracy, f1_scores, macro_f1, mean_and_deviation, plus_minus
from astroco_fast.probe.splits import PARTS, Split
from astroco_fast.probe.tasks import NEIGHBOURS, Score
from astroco_fast.text import cell, printable

RESULTS, TASKS = "results", "tasks.csv"
TEXTS = (f"{RESULTS}.json", f"{RESULTS}.csv", f"{RESULTS}.md")
_PACKAGES = ("astroco_fast", "torch", "numpy", "scikit-learn", "light-curve")
_NAMES = {
    "linear": "linear head",
    "logistic": "logistic regression",
    "knn": "k-nearest neighbours",
    "forest": "extra trees",
}

# The tasks' figures, and what the tables call them; a figure of classes is the mean over them.
_FIGURES = {
    "ari": "k-means: ARI",
    "nmi": "NMI",
    "homogeneity": "homogeneity",
    "auroc": "novelty: AUROC",
    "purity": f"purity of {NEIGHBOURS} neighbours",
}

Outcomes = Mapping[str, Sequence[Outcome]]  # by the name of the vectors
Scores = Mapping[str, Sequence[Score]]


def summarise(
    outcomes: Outcomes,
    scores: Scores,
    pairs: Sequence[tuple[str, str]],
    classes: Sequence[str],
    splits: Sequence[Split],
    labels: Mapping[str, str],
    config: ProbeConfig,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """All results as plain data.

    `results` has an entry for each kind of vectors, probe and size, over all of its folds and seeds, `differences` one
    for each pair of vectors, probe and size, and `tasks` one for each kind of vectors, figure and class.
    """
    return {
        **facts,
        "versions": {name: machine.package_version(name) for name in _PACKAGES},
        "classes": list(classes),
        "stars": [_counts(split, classes, labels) for split in splits],
        "results": [
            {"vectors": vectors, **_entry(probe, n, runs, classes)}
            for vectors, of_vectors in outcomes.items()
            for (probe, n), runs in _grouped(of_vectors).items()
        ],
        "differences": [
            {"vectors": one, "less": other, **difference}
            for one, other in pairs
            for difference in _differences(_grouped(outcomes[one]), _grouped(outcomes[other]))
        ],
        "tasks": [
            {"vectors": vectors, **entry} for vectors, of_vectors in scores.items() for entry in _of_tasks(of_vectors)
        ],
        "settings": config.to_dict(),
    }


def _grouped(outcomes: Sequence[Outcome]) -> dict[tuple[str, int], list[Outcome]]:
    """The outcomes of each probe and size."""
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.probe, outcome.n), []).append(outcome)
    return groups


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
        "c": outcome.c,
        "macro_f1": macro_f1(outcome.confusion),
        "balanced_accuracy": balanced_accuracy(outcome.confusion),
        "f1": dict(zip(classes, f1_scores(outcome.confusion).tolist(), strict=True)),
        "confusion": outcome.confusion.tolist(),
    }


def _differences(
    one: Mapping[tuple[str, int], Sequence[Outcome]], other: Mapping[tuple[str, int], Sequence[Outcome]]
) -> Iterator[dict[str, Any]]:
    """Macro-F1 of one less that of the other, paired by fold, for each probe and size that both have."""
    for probe, n in one:
        if (probe, n) in other:
            by_fold = [_of_folds(outcomes[probe, n]) for outcomes in (one, other)]
            paired = [by_fold[0][fold] - by_fold[1][fold] for fold in by_fold[0]]
            yield {"probe": probe, "n": n, "macro_f1": mean_and_deviation(paired), "folds": paired}


def _of_tasks(scores: Sequence[Score]) -> Iterator[dict[str, Any]]:
    """Each figure of each task: of its classes, and of their mean, over folds and seeds."""
    runs: dict[tuple[str, str, str], dict[tuple[int, int | None], list[float]]] = {}
    for score in scores:
        for of in {score.of, ""}:
            runs.setdefault((score.task, score.figure, of), {}).setdefault((score.fold, score.seed), []).append(
                score.value
            )
    for (task, figure, of), values in runs.items():
        means = [float(np.mean(run)) for run in values.values()]
        numbered = [
            {"fold": fold, "seed": seed, "value": mean} for (fold, seed), mean in zip(values, means, strict=True)
        ]
        yield {"task": task, "figure": figure, "class": of, "value": mean_and_deviation(means), "runs": numbered}


def _of_folds(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """Fold -> macro-F1, the mean over seeds."""
    scores: dict[int, list[float]] = {}
    for outcome in outcomes:
        scores.setdefault(outcome.fold, []).append(macro_f1(outcome.confusion))
    return {fold: float(np.mean(values)) for fold, values in scores.items()}


def _counts(split: Split, classes: Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """The number of stars of each class in each part of a split."""
    counted = {part: Counter(labels[star] for star in stars) for part, stars in split.parts.items()}
    parts = {part: {name: counts[name] for name in classes} for part, counts in counted.items()}
    return {"n": split.n, "fold": split.fold, **parts}


def write_results(out: Path, results: Mapping[str, Any], plots: bool) -> list[str]:
    """Write results.json, results.csv, results.md and, if asked for and matplotlib is there, the figures.

    Returns:
        The names of the files.
    """
    texts = (json.dumps(results, indent=1) + "\n", _csv(results), _markdown(results))
    files = {out / name: text for name, text in zip(TEXTS, texts, strict=True)}
    if results["tasks"]:
        files[out / TASKS] = _tasks_csv(results["tasks"])
    for path, text in files.items():
        write_text(path, text)
    paths = list(files)
    if plots and find_spec("matplotlib") is not None:
        paths += draw(out, results, _NAMES)
    return [path.name for path in paths]


def result_names(sizes: Iterable[int]) -> list[str]:
    """The names of all files that `write_results` may write, for results of these sizes."""
    return [*TEXTS, TASKS, COMPARISON, *(f"confusion_{n}.png" for n in sizes)]


def is_result(name: str) -> bool:
    """Whether `write_results` may write a file of this name."""
    return name in result_names([]) or re.fullmatch(r"confusion_\d+\.png", name) is not None


def _csv(results: Mapping[str, Any]) -> str:
    """CSV with a row for each run: vectors, probe, n, fold, seed, epoch, c, figures."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ["fold", "seed", "epoch", "c", "macro_f1", "balanced_accuracy"]
    writer.writerow(["vectors", "probe", "n", *figures, *(f"f1_{name}" for name in results["classes"])])
    for entry in results["results"]:
        place = [entry["vectors"], entry["probe"], entry["n"]]
        writer.writerows([*place, *(run[name] for name in figures), *run["f1"].values()] for run in entry["runs"])
    return text.getvalue()


def _tasks_csv(entries: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a row for each run: vectors, task, figure, class (empty: the mean over classes), fold, seed, value."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["vectors", "task", "figure", "class", "fold", "seed", "value"])
    for entry in entries:
        place = [entry[name] for name in ("vectors", "task", "figure", "class")]
        writer.writerows([*place, run["fold"], run["seed"], run["value"]] for run in entry["runs"])
    return text.getvalue()


def _markdown(results: Mapping[str, Any]) -> str:
    settings, entries = results["settings"], results["results"]
    simulated = ", SIMULATED light curves" if results["simulated"] else ""
    lines = [
        f"# Probe of {settings['model']} on {settings['data']}{simulated}",
        "",
        f"Mean and sample standard deviation over folds and, for the linear head, seeds ({_runs(entries)}).",
    ]
    for title, figure in (("Macro-F1", "macro_f1"), ("Balanced accuracy", "balanced_accuracy")):
        lines += ["", f"{title}, by training stars a class:", "", *_by_size(entries, figure)]
    if results["differences"]:
        lines += ["", "Differences in macro-F1, paired by fold (mean and sample standard deviation over folds):", ""]
        lines += _by_size(results["differences"], "macro_f1", sign=True)
    lines += _tasks(results)
    lines += ["", "F1 by class:", "", f"| vectors | probe | n | {' | '.join(map(cell, results['classes']))} |"]
    lines.append("|---|---|---|" + "---|" * len(results["classes"]))
    for entry in entries:
        place = f"{cell(entry['vectors'])} | {_NAMES[entry['probe']]} | {entry['n']}"
        lines.append(f"| {place} | {' | '.join(map(plus_minus, entry['f1'].values()))} |")
    lines += ["", "Stars a class (fewest to most over classes and folds):", "", "| n | train | validation | test |"]
    lines.append("|---|---|---|---|")
    for n in dict.fromkeys(entry["n"] for entry in results["stars"]):
        lines.append(f"| {n} | {' | '.join(_range(results['stars'], n, part) for part in PARTS)} |")
    if results["copies"]:
        lines += ["", f"{of_copies(results['copies'])}."]
    lines += ["", *(f"{entry['name']}: sha256 {entry['sha256']}  " for entry in results["vectors"])]
    lines.append(f"Stars: sha256 {results['data_sha256']}")
    return "\n".join(map(printable, lines)) + "\n"


def _tasks(results: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the tasks beside classification: all classes together, and novelty by class."""
    found = {(entry["vectors"], entry["figure"], entry["class"]): entry["value"] for entry in results["tasks"]}
    if not found:
        return
    n, classes = max(entry["n"] for entry in results["stars"]), results["classes"]
    yield from ("", f"Other tasks, on the folds of {n} training stars a class (chance: {_chance(len(classes))}):", "")
    yield f"| vectors | {' | '.join(_FIGURES.values())} |"
    yield "|---|" + "---|" * len(_FIGURES)
    names = list(dict.fromkeys(vectors for vectors, _, _ in found))
    for name in names:
        yield f"| {cell(name)} | {' | '.join(plus_minus(found[name, figure, '']) for figure in _FIGURES)} |"
    yield from ("", "Novelty by the class that was held out, AUROC:", "")
    yield f"| vectors | {' | '.join(map(cell, classes))} |"
    yield "|---|" + "---|" * len(classes)
    for name in names:
        yield f"| {cell(name)} | {' | '.join(plus_minus(found[name, 'auroc', of]) for of in classes)} |"


def _chance(classes: int) -> str:
    return f"ARI and NMI 0, AUROC 0.5, purity {1 / classes:.3f} where classes have equally many stars"


def of_copies(copies: Collection[str]) -> str:
    """A sentence that counts the stars that were left out as copies."""
    return f"{len(copies):,} stars left out, whose light curves equal another star's point by point"


def _by_size(entries: Sequence[Mapping[str, Any]], figure: str, sign: bool = False) -> Iterator[str]:
    """A table with a row for each kind of vectors (or pair) and probe, and a column for each size."""
    sizes = sorted({entry["n"] for entry in entries})
    yield f"| vectors | probe | {' | '.join(map(str, sizes))} |"
    yield "|---|---|" + "---|" * len(sizes)
    table: dict[tuple[str, str], dict[int, str]] = {}
    for entry in entries:
        name = entry["vectors"] if "less" not in entry else f"{entry['vectors']} less {entry['less']}"
        plus = "+" if sign and entry[figure]["mean"] >= 0 else ""
        table.setdefault((name, entry["probe"]), {})[entry["n"]] = plus + plus_minus(entry[figure])
    for (name, probe), cells in table.items():
        yield f"| {cell(name)} | {_NAMES[probe]} | {' | '.join(cells.get(n, '') for n in sizes)} |"


def _runs(entries: Sequence[Mapping[str, Any]]) -> str:
    runs = {entry["probe"]: len(entry["runs"]) for entry in entries}
    return ", ".join(f"{_NAMES[probe]}: {count} runs" for probe, count in runs.items())


def _range(stars: Sequence[Mapping[str, Any]], n: int, part: str) -> str:
    counts = [count for entry in stars if entry["n"] == n for count in entry[part].values()]
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
