"""The figure of a report: who is how many times as fast as eager PyTorch in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astroco_fast.plots import BLACK, BLUE, GREEN, GREY, ORANGE, RED
from bench.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT, BAR = "#56B4E9", 0.24  # inches a bar is high
TO_THE_LEFT: Any = {"ha": "right", "va": "center"}
# By the beginning of a provider's name; the first that fits.
COLOURS = (
    ("astroco_fast", BLUE),
    ("eager bf16", GREY),
    ("eager fp32", "#C8C8C8"),
    ("compiled", ORANGE),
    ("ONNX", RED),
    ("Astromer", GREEN),
)


def speeds(rows: list[Row], title: str) -> Figure:
    """Bars by case and provider, a panel a task and preset: models only.

    Args:
        rows: of a report; those of ops are left out.
        title: below the heading, what it was measured on.
    """
    from matplotlib.figure import Figure

    models = [row for row in rows if row.subject == "model"]
    tasks = sorted({row.task for row in models})
    presets = sorted({row.preset for row in models}, key=lambda name: (name != "S", name))
    panels = {(task, p): [r for r in models if (r.task, r.preset) == (task, p)] for task in tasks for p in presets}
    heights = [max(_slots(panels[task, p]) for p in presets) * BAR + 0.5 for task in tasks] or [1.0]
    figure = Figure(figsize=(7.5 * max(1, len(presets)), sum(heights) + 1.2), layout="constrained")
    figure.suptitle(f"Times as fast as eager PyTorch in bf16, by medians of interleaved rounds; windows/s\n{title}")
    grid = figure.subplots(
        len(heights), max(1, len(presets)), squeeze=False, sharex="row", gridspec_kw={"height_ratios": heights}
    )
    for axes, (task, preset) in zip(grid.flat, panels, strict=False):
        axes.set_title(f"AstroCo-{preset}, {task}", loc="left", fontweight="bold")
        _panel(axes, panels[task, preset], max((row.ratio for p in presets for row in panels[task, p]), default=1.0))
    return figure


def _groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By case, smallest batch first; in each the fastest first."""
    ordered = sorted(rows, key=lambda row: (row.batch, row.kind, -row.ratio))
    return {group: [row for row in ordered if row.group == group] for group in dict.fromkeys(r.group for r in ordered)}


def _slots(rows: list[Row]) -> int:
    """A bar each, and a gap below each case."""
    return len(rows) + len(_groups(rows))


def _panel(axes: Axes, rows: list[Row], widest: float) -> None:
    place, shown = 0.0, []
    for group in _groups(rows).values():
        axes.text(-0.01, place, _case(group[0]), transform=axes.get_yaxis_transform(), fontweight="bold", **TO_THE_LEFT)
        for row in group:
            place += 1
            axes.barh(place, row.ratio, height=0.82, color=_colour(row.provider))
            axes.text(row.ratio + widest * 0.008, place, f"{row.ratio:.2f}×  {_rate(row)}/s", va="center", fontsize=8)
            shown.append((place, row))
        place += 1
    axes.axvline(1, color=BLACK, linewidth=0.8, linestyle="--")
    axes.set_yticks([at for at, _ in shown], [row.provider for _, row in shown])
    for label, (_, row) in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(BLUE if row.role == "ours" else BLACK)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set_ylim(place - 0.4, -0.7)
    axes.set_xlim(0, widest * 1.2)


def _case(row: Row) -> str:
    return f"batch {row.batch}, {row.kind}"


def _rate(row: Row) -> str:
    return f"{row.windows_per_s:,.0f}" if row.windows_per_s >= 100 else f"{row.windows_per_s:.3g}"


def _colour(provider: str) -> str:
    if provider.startswith("astroco_fast") and provider.endswith("fp32"):
        return LIGHT
    return next((colour for name, colour in COLOURS if provider.startswith(name)), BLACK)
