"""The figures of a probe: confusion matrices, and the comparison with rivals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from astroco_fast import plots
from astroco_fast.files import whole_file
from astroco_fast.probe.metrics import plus_minus
from astroco_fast.text import figure_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISON = "comparison.png"
_STYLES = {
    "linear": (plots.BLUE, "o"),
    "logistic": (plots.ORANGE, "s"),
    "knn": (plots.GREY, "v"),
    "forest": (plots.GREEN, "^"),
}


def draw(out: Path, results: Mapping[str, Any], names: Mapping[str, str]) -> list[Path]:
    """Draw confusion_N.png for each size, and comparison.png if there are rivals.

    Args:
        out: the folder.
        results: as `astroco_fast.probe.results.summarise` returns them.
        names: the probes' names in full.

    Returns:
        The paths of the figures.
    """
    simulated = ", SIMULATED" if results["simulated"] else ""
    first = results["results"][0]
    figures = {}
    with plots.drawing():
        for entry in results["results"]:
            if (entry["vectors"], entry["probe"]) == (first["vectors"], first["probe"]):
                score = f"macro-F1 {plus_minus(entry['macro_f1'])}, {len(entry['runs'])} runs"
                title = f"{names[entry['probe']]}, {entry['n']} training stars a class{simulated}\n{score}"
                matrix = np.array(entry["confusion"])
                figures[f"confusion_{entry['n']}.png"] = confusion_figure(matrix, results["classes"], title)
        if len(results["vectors"]) > 1:
            figures[COMPARISON] = comparison_figure(results["results"], names, simulated)
        for name, figure in figures.items():
            with whole_file(out / name) as partial:
                figure.savefig(partial, format="png")
    return [out / name for name in figures]


def comparison_figure(entries: Sequence[Mapping[str, Any]], names: Mapping[str, str], simulated: str = "") -> "Figure":
    """A figure of macro-F1 with a panel for each size, a line for each kind of vectors, and a mark for each probe.

    Args:
        entries: the results of each kind of vectors, probe and size, see `astroco_fast.probe.results.summarise`.
        names: the probes' names in full.
        simulated: the end of the title.
    """
    vectors = list(dict.fromkeys(entry["vectors"] for entry in entries))
    sizes = sorted({entry["n"] for entry in entries})
    probes = [probe for probe in _STYLES if any(entry["probe"] == probe for entry in entries)]
    figure = plots.new_figure(2 + 3.4 * len(sizes), 1.8 + 0.55 * len(vectors))
    figure.suptitle(f"Macro-F1 on test stars{simulated}")
    panels = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, n in zip(panels, sizes, strict=True):
        for entry in entries:
            if entry["n"] == n:
                colour, marker = _STYLES[entry["probe"]]
                shift = 0.16 * (probes.index(entry["probe"]) - (len(probes) - 1) / 2)
                figures = entry["macro_f1"]
                place, spread = vectors.index(entry["vectors"]) + shift, figures["std"] or 0.0
                bar: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 1.2}
                axes.errorbar(figures["mean"], place, xerr=spread, label=names[entry["probe"]], **bar)
        axes.set_title(f"{n} training stars a class")
        axes.set_yticks(range(len(vectors)), vectors)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        for between in range(len(vectors) - 1):
            axes.axhline(between + 0.5, color=plots.GREY, alpha=0.3, linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("macro-F1")
    panels[0].set_ylim(len(vectors) - 0.5, -0.5)
    plots.legend(figure)
    return figure


def confusion_figure(confusion: Any, classes: Sequence[str], title: str) -> "Figure":
    """A figure of a confusion matrix (C, C), in per cent of each true class's stars."""
    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.4 + 0.62 * len(classes)
    figure = plots.new_figure(max(side, 4.8), max(side, 4.2))
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share):
        colour = "white" if value > 55 else plots.BLACK
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
    names = [figure_text(name) for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title}\nper cent of each true class's test stars", fontsize="medium", loc="left")
    return figure
