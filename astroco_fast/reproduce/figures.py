"""The figures of the paper's comparison: macro-F1 against labels, and the training curves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from astroco_fast import plots
from astroco_fast.pretrain.report import read_metrics, training_lines
from astroco_fast.reproduce.claims import linear_head
from astroco_fast.reproduce.paper import (
    NO_CONV,
    NO_GATE,
    NO_MIX,
    PAPER_F1,
    PAPER_SIZES,
    RECONSTRUCTION,
    SHOWN_TIME,
    TIMES_ONLY,
    UNTRAINED,
    V1,
    V2,
    L,
    S,
)  # fmt: skip
from astroco_fast.reproduce.plan import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: Mapping[str, dict[str, Any]] = {
    S: {"color": plots.BLUE, "marker": "o"},
    L: {"color": "#56B4E9", "marker": "s"},
    SHOWN_TIME: {"color": plots.BLUE, "marker": "D", "linestyle": ":"},
    TIMES_ONLY: {"color": plots.BLUE, "marker": "h", "linestyle": "--"},
    NO_CONV: {"color": plots.RED, "marker": "v"},
    NO_GATE: {"color": plots.ORANGE, "marker": "^"},
    NO_MIX: {"color": "#CC79A7", "marker": "P"},
    V1: {"color": plots.BLACK, "marker": "x", "linestyle": "--"},
    V2: {"color": plots.GREEN, "marker": "*"},
}
_SPAN = 25  # lines of metrics in the running mean of a training curve; a fifth of all lines where that is less


def figures(results: Mapping[str, Any], runs: Mapping[str, Path]) -> "dict[str, Figure | None]":
    """The figures by file name; None: there is nothing to draw yet.

    Args:
        results: as `Experiment.results` returns them.
        runs: the folder of each model's pretraining.
    """
    return {"figure3.png": labels(results), "training.png": training(results, runs)}


def labels(results: Mapping[str, Any]) -> "Figure | None":
    """Macro-F1 of the linear head against labels: ours at the end of each stage, and the paper's printed figures."""
    models = {name: facts for name, facts in results["models"].items() if name in RECONSTRUCTION}
    entries = [entry for facts in models.values() for s in facts["stages"].values() for entry in s["probes"]]
    sizes = sorted({entry["n"] for entry in entries if entry["probe"] == "linear"})
    if not sizes:
        return None
    figure = plots.new_figure(13.5, 5.2)
    simulated = "SIMULATED " * results["simulated"]
    figure.suptitle(f"Linear head on frozen embeddings, {results['light_curves']:,} {simulated}light curves")
    *ours, paper = figure.subplots(1, len(STAGES) + 1)
    for axes, stage in zip(ours, STAGES, strict=True):
        axes.set_title(f"ours, {stage}")
        for name, facts in models.items():
            _errors(axes, sizes, facts["stages"].get(stage), label=name, **_STYLES[name])
        _errors(axes, sizes, results["untrained"], label=UNTRAINED, color=plots.GREY, marker=".")
    low, high = zip(*(axes.get_ylim() for axes in ours if axes.has_data()), strict=True)
    for axes in ours:
        axes.set_ylim(min(low), max(high))
        axes.set_ylabel("macro-F1 (%)")
    paper.set_title("printed in the paper (MACHO)")
    for name in (S, V2):
        paper.plot(PAPER_SIZES, PAPER_F1[name], label=name, markerfacecolor="none", **_STYLES[name])
    for axes in (*ours, paper):
        axes.set_xscale("log")
        axes.set_xticks(ticks := sizes if axes is not paper else list(PAPER_SIZES), [str(n) for n in ticks])
        axes.minorticks_off()
        axes.set_xlabel("labels a class")
        axes.grid(alpha=0.25, linewidth=0.6)
    plots.legend(figure)
    return figure


def _errors(axes: "Axes", sizes: list[int], found: Mapping[str, Any] | None, **style: Any) -> None:
    """Draw means with bars of one standard deviation over folds and seeds."""
    entries = [entry for n in sizes if (entry := linear_head(found, n)) is not None]
    if entries:
        mean = [100 * entry["macro_f1"]["mean"] for entry in entries]
        deviation = [100 * (entry["macro_f1"]["std"] or 0) for entry in entries]
        axes.errorbar([entry["n"] for entry in entries], mean, deviation, capsize=3, **style)


def training(results: Mapping[str, Any], runs: Mapping[str, Path]) -> "Figure | None":
    """RMSE at the hidden points of training windows, against the windows seen and against time."""
    curves = {name: list(_curve(runs[name])) for name, facts in results["models"].items() if facts["stages"]}
    figure = plots.new_figure(13.5, 5.2)
    figure.suptitle("Hidden points of training windows, running mean")
    panels = figure.subplots(1, 2, sharey=True)
    lowest, highest = np.inf, 0.0
    for name, curve in curves.items():
        if not curve:
            continue
        windows, minutes, rmse = np.array(curve).T
        span = max(1, min(_SPAN, len(curve) // 5))
        mean = np.convolve(rmse, np.full(span, 1 / span), mode="valid")
        lowest, highest = min(lowest, mean.min()), max(highest, np.median(mean))
        for axes, place in zip(panels, (windows / 1000, minutes), strict=True):
            axes.plot(place[span - 1 :], mean, label=name, **{**_STYLES[name], "marker": ""})
    if not highest:
        return None
    for axes, what in zip(panels, ("thousand windows seen", "minutes of training"), strict=True):
        axes.set_xlabel(what)
        axes.set_ylim(0.95 * lowest, 1.25 * highest)
        axes.grid(alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel("RMSE (mag)")
    plots.legend(figure)
    return figure


def _curve(run: Path) -> Iterator[tuple[float, float, float]]:
    """The windows seen, the minutes of training and the RMSE of each training line."""
    for seconds, line in training_lines(read_metrics(run)):
        if line.get("rmse_hidden") is not None:
            yield line["windows_seen"], seconds / 60, line["rmse_hidden"]
