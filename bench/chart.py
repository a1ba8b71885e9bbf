"""The chart of a report: how many times as fast as eager PyTorch in bf16 each provider is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from astroco_fast.plots import BLACK, BLUE, GREEN, GREY, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR = 0.24  # height of a bar, in inches
COLOURS = {  # by the beginning of a provider's name
    "astroco_fast": BLUE, "eager bf16": GREY, "eager fp32": "#C8C8C8", "compiled": ORANGE, "ONNX": RED,
    "Astromer": GREEN,
}  # fmt: skip


def speeds(rows: pd.DataFrame, title: str) -> Figure:
    """Bars by case and provider, a panel for each task and preset, of models only.

    Args:
        rows: of `Results`.
        title: a second line of the heading, which names the machine.
    """
    from matplotlib.figure import Figure

    models = rows[rows.subject == "model"].sort_values(["batch", "kind"], kind="stable")
    tasks, presets = sorted(models.task.unique()), sorted(models.preset.unique(), key=lambda name: (name != "S", name))
    panels = {(t, p): models[(models.task == t) & (models.preset == p)] for t in tasks for p in presets}
    slots = {key: len(panel) + panel.group.nunique() for key, panel in panels.items()}  # a gap below each case
    heights = [max(slots[task, preset] for preset in presets) * BAR + 0.5 for task in tasks] or [1.0]
    figure = Figure(figsize=(7.5 * max(1, len(presets)), sum(heights) + 1.2), layout="constrained")
    figure.suptitle(f"Times as fast as eager PyTorch in bf16, by medians of interleaved rounds; windows/s\n{title}")
    shape = {"squeeze": False, "sharex": "row", "gridspec_kw": {"height_ratios": heights}}
    grid = figure.subplots(len(heights), max(1, len(presets)), **shape)
    for axes, ((task, preset), panel) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(f"AstroCo-{preset}, {task}", loc="left", fontweight="bold")
        _panel(axes, panel, models[models.task == task].ratio.max())
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, widest: float) -> None:
    place, names = 0, {}
    for (batch, kind), case in rows.groupby(["batch", "kind"]):
        style = {"ha": "right", "va": "center", "fontweight": "bold", "transform": axes.get_yaxis_transform()}
        axes.text(-0.01, place, f"batch {batch}, {kind}", **style)
        for row in case.sort_values("ratio", ascending=False, kind="stable").itertuples():
            place += 1
            axes.barh(place, row.ratio, height=0.82, color=_colour(row.provider))
            rate = f"{row.windows_per_s:,.0f}" if row.windows_per_s >= 100 else f"{row.windows_per_s:.3g}"
            axes.text(row.ratio + widest * 0.008, place, f"{row.ratio:.2f}×  {rate}/s", va="center", fontsize=8)
            names[place] = row.provider, BLUE if row.role == "ours" else BLACK
        place += 1
    axes.axvline(1, color=BLACK, linewidth=0.8, linestyle="--")
    axes.set_yticks(list(names), [name for name, _ in names.values()])
    for label, (_, colour) in zip(axes.get_yticklabels(), names.values(), strict=True):
        label.set_color(colour)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set(ylim=(place - 0.4, -0.7), xlim=(0, widest * 1.2))


def _colour(provider: str) -> str:
    if provider.startswith("astroco_fast") and provider.endswith("fp32"):
        return "#56B4E9"
    return next((colour for name, colour in COLOURS.items() if provider.startswith(name)), BLACK)
