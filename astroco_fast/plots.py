"""The figures of a run, drawn with matplotlib's object interface, which opens no window.

with drawing():
    layer_mix(weights, "title").savefig("mix.png")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.data.masking import HIDDEN, RANDOM, UNCHANGED
from astroco_fast.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, RED, GREEN, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#8C8C8C", "#222222"
ROLES = {"hidden": (HIDDEN, BLUE, "o"), "random": (RANDOM, RED, "s"), "unchanged": (UNCHANGED, GREEN, "^")}
NIGHT, SEASON = 0.5, 60.0  # days without a point that separate two nights and two seasons
_DAYS = f"days since the first point (points side by side; dotted: more than {SEASON:.0f} days between)"
_PHASE = "phase, counted from the window's first point"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "figure.titlesize": 13,
    "font.size": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


@dataclass
class Reconstruction:
    """A window with a model's reconstruction of it.

    Attributes:
        title: name of the light curve.
        time: (n,) days; phases, counted from the window's first point, if it is folded.
        mag: (n,) the true magnitudes.
        err: (n,) their uncertainties.
        shown: (n,) the magnitudes that the model is given, which differ from the true ones at random and hidden points.
        role: (n,) uint8, 0 or a role of `astroco_fast.data.masking`.
        predicted: (n,) the reconstruction.
        folded: whether the window is of the folded view.
    """

    title: str
    time: NDArray[Any]
    mag: NDArray[Any]
    err: NDArray[Any]
    shown: NDArray[Any]
    role: NDArray[np.uint8]
    predicted: NDArray[Any]
    folded: bool = False


@contextmanager
def drawing() -> Iterator[None]:
    """A context with the style that the figures of this module are drawn and saved in.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise MissingExtraError("matplotlib", "plots", "drawing plots") from None
    with rc_context(STYLE):
        yield


def training_curves(train: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Loss, RMSE by role, and R2 by role, against the optimiser step.

    Args:
        train, validation: the lines of metrics.jsonl (see `astroco_fast.pretrain.log`) of each split.
        title: of the figure.
    """
    figure = new_figure(13, 4.6)
    figure.suptitle(title)
    loss, rmse, r2 = figure.subplots(1, 3)

    loss.set_title("Training and validation, all probed points")
    loss.set_ylabel("loss, RMSE (mag)")
    loss.plot(*_series(train, "loss"), color=ORANGE, alpha=0.5, linewidth=0.9, label="training loss")
    steps, values = _series(train, "rmse")
    loss.plot(steps, _smooth(values), color=ORANGE, label="training RMSE, smoothed")
    _line(loss, validation, "rmse", color=BLACK, label="validation, all probed")
    _trivial(loss, validation, "trivial_rmse")

    rmse.set_title("Validation RMSE by role")
    rmse.set_ylabel("RMSE (mag)")
    r2.set_title("Validation $R^2$ by role")
    r2.set_ylabel("$R^2$")
    for axes, name in ((rmse, "rmse"), (r2, "r2")):
        _line(axes, validation, name, color=BLACK)
        for role, (_, colour, marker) in ROLES.items():
            _line(axes, validation, f"{name}_{role}", color=colour, label=role, marker=marker)
    _trivial(rmse, validation, "trivial_rmse_hidden")
    r2.axhline(0, color=GREY, linestyle="--")
    _focus(loss, rmse, r2, validation)
    for axes in (loss, rmse, r2):
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.25, linewidth=0.6)
    legend(figure)
    return figure


def reconstructions(windows: Sequence[Reconstruction], title: str) -> "Figure":
    """Light curves with their probed points by role, and the model's reconstruction of these.

    Surveys observe a star in bursts that are years apart; on a plain time axis the points of a burst would hide one
    another. So points are drawn side by side in time order, with small gaps between nights; the axis gives the days.
    Folded windows are drawn against phase.

    Args:
        windows: one for each panel.
        title: of the figure.
    """
    columns = min(2, len(windows))
    rows = -(-len(windows) // columns)
    figure = new_figure(7.5 * columns, 2.7 * rows + 1.2)
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, window in zip(panels.flat, windows, strict=False):
        _reconstruction(axes, window)
    labels = [_PHASE if window.folded else _DAYS for window in windows]
    lowest = 0 if len(set(labels)) > 1 else len(windows) - columns
    for axes, label in list(zip(panels.flat, labels, strict=False))[lowest:]:
        axes.set_xlabel(label)
    for axes in panels.flat[len(windows) :]:
        axes.set_visible(False)
    figure.supylabel("magnitude (less the window's mean)")
    legend(figure)
    return figure


def layer_mix(weights: NDArray[Any], title: str) -> "Figure":
    """Bars of the weights (L + 1,), with sum 1, of the input and of each block's output in the mixed sequence."""
    figure = new_figure(1.6 + 0.9 * max(6, len(weights)), 4)
    axes = figure.subplots()
    names = ["input"] + [f"block {i}" for i in range(1, len(weights))]
    bars = axes.bar(names, weights, color=[GREY] + [BLUE] * (len(weights) - 1), width=0.7)
    axes.bar_label(bars, fmt="%.3f", label_type="center", color="white")
    axes.axhline(1 / len(weights), color=BLACK, linestyle="--", linewidth=1, label="equal weights (the start)")
    axes.margins(y=0.2)
    axes.set_ylabel("share in the layer mix")
    figure.suptitle(title, fontsize="medium")
    axes.legend(loc="upper left")
    return figure


def _reconstruction(axes: "Axes", window: Reconstruction) -> None:
    mag, err, role, predicted = window.mag, window.err, window.role, window.predicted
    place = window.time if window.folded else _side_by_side(axes, window.time)
    axes.set_title(window.title, loc="left", fontsize="small")

    def draw(at: NDArray[np.bool_], values: NDArray[Any], **style: Any) -> None:
        axes.plot(place[at], values[at], linestyle="none", **style)

    def draw_true(at: NDArray[np.bool_], colour: str, alpha: float, **style: Any) -> None:
        bars: dict[str, Any] = {"fmt": "none", "ecolor": colour, "elinewidth": 0.8, "alpha": alpha}
        axes.errorbar(place[at], mag[at], err[at], zorder=2, **bars)
        draw(at, mag, color=colour, alpha=alpha, zorder=3, **style)

    draw_true(role == 0, GREY, 0.6, marker=".", markersize=5, label="visible")
    for name, (value, colour, marker) in ROLES.items():
        at = role == value
        axes.vlines(place[at], mag[at], predicted[at], color=ORANGE, linewidth=0.9, zorder=2.5)
        draw_true(at, colour, 1.0, marker=marker, markersize=4.5, label=f"{name}: true")
    draw(role == RANDOM, window.shown, color=RED, marker="x", markersize=5, label="random: as the model saw it")
    edge = {"markeredgecolor": BLACK, "markeredgewidth": 0.6}
    draw(role > 0, predicted, color=ORANGE, marker="D", markersize=4.2, zorder=5, label="reconstruction", **edge)
    axes.invert_yaxis()


def _side_by_side(axes: "Axes", time: NDArray[Any]) -> NDArray[np.float64]:
    """The places (n,) of points of these times on the axis, which is labelled in days at the seasons' first points."""
    gaps = np.diff(time)
    place = np.concatenate([[0.0], np.cumsum(1 + (gaps > NIGHT) + 3.0 * (gaps > SEASON))])
    first = np.flatnonzero(gaps > SEASON) + 1
    for at in place[first]:
        axes.axvline(at - 2.5, color=GREY, linestyle=":", linewidth=0.8)
    starts = [0]
    for point in first.tolist():  # labels that do not overlap
        if place[point] - place[starts[-1]] > place[-1] / 12:
            starts.append(point)
    axes.set_xticks(place[starts], [f"{time[point] - time[0]:.0f}" for point in starts])
    axes.margins(x=0.015)
    return place


def legend(figure: "Figure") -> None:
    """Draw one legend for all panels, below them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(8, len(found)))


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return np.array([step for step, _ in points], dtype=np.int64), np.array([value for _, value in points])


def _line(axes: "Axes", records: Sequence[dict[str, Any]], key: str, *, marker: str = "o", **style: Any) -> None:
    steps, values = _series(records, key)
    axes.plot(steps, values, marker=marker if len(steps) < 40 else None, markersize=4, **style)


def _trivial(axes: "Axes", validation: Sequence[dict[str, Any]], key: str) -> None:
    _, values = _series(validation, key)
    if len(values):
        axes.axhline(values[-1], color=GREY, linestyle="--", label="trivial answer: the window's mean")
        where: dict[str, Any] = {
            "xy": (0.99, values[-1]),
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
        }
        axes.annotate(f"{values[-1]:.3f}", xytext=(0, 3), ha="right", color=GREY, **where)


def _focus(loss: "Axes", rmse: "Axes", r2: "Axes", validation: Sequence[dict[str, Any]]) -> None:
    """Limit the axes so that a model's first steps, far worse than the trivial answer, do not flatten the rest."""
    for axes, key in ((loss, "trivial_rmse"), (rmse, "trivial_rmse_hidden")):
        _, values = _series(validation, key)
        if len(values):
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.5 * values[-1]))
    r2.set_ylim(bottom=max(r2.get_ylim()[0], -0.5))


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over a fortieth of the series, over fewer values at its ends."""
    half = len(values) // 80
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))
