"""The budget `choices`: choices that the paper leaves open, changed one at a time in a small model on equal windows.

Each variant is preset S at a third of its width, trained with each of `SEEDS`. The page sets every variant against its
base of the same seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from astroco_fast import plots
from astroco_fast.reproduce.plan import WINDOWS, Budget, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, VALIDATION_WINDOWS = 344, 32, 2_000
WIDTH, LEARNING_RATE, WARMUP = 96, 1e-3, 50
FAST, FAST_RATE = "rate-3e-3", 3e-3
SEEDS = (0, 1)
FIGURES = {"rmse_hidden": 4, "linear": 1, "logistic": 1}  # with the decimals that the page gives
NOTE = f"""\
Preset S at width {WIDTH}, {STEPS} steps of {BATCH} windows, learning rate {LEARNING_RATE:g}, {WARMUP} steps of
warm-up; everything else as the package's defaults. RMSE, in magnitudes, at the hidden points of {VALIDATION_WINDOWS:,}
validation windows. Macro-F1, per cent, of the linear head and the logistic regression on the frozen embeddings: the
mean over all numbers of labels and folds. Differences are to the base of the same seed: mean ± standard deviation over
seeds. A variant "at {FAST_RATE:g}" is one change to the variant with that learning rate, and its differences are to
that."""


def start_at_last_layer(model: nn.Module) -> None:
    """Give the last layer 83 % of the initial layer mix, in place of an equal share (of S's five states)."""
    with torch.no_grad():
        model.mix_pool.logits[-1] = 3.0  # type: ignore[union-attr, operator]


@dataclass(frozen=True)
class Variant:
    """One change to the base.

    Attributes:
        name: of its runs, before their seed.
        choice: the choice that is changed.
        value: its new value.
        model: changes to the model's configuration.
        train: changes to the settings of training.
        mix_last: whether the layer mix starts at the last layer.
        base: name of the variant that this one is one change away from.
    """

    name: str
    choice: str
    value: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    mix_last: bool = False
    base: str = "base"

    def row(self, seed: int) -> Row:
        """The run of this variant with a seed."""
        return Row(
            f"{self.name}-{seed}",
            "S",
            {"width": WIDTH, **self.model},
            {"learning_rate": LEARNING_RATE, **self.train},
            seed,
            start_at_last_layer if self.mix_last else None,
        )


def _fast(name: str, choice: str, value: str, **changes: Any) -> Variant:
    """One change to the variant with the best learning rate, since its effect may depend on how far training gets."""
    train = {"learning_rate": FAST_RATE, **changes.pop("train", {})}
    return Variant(f"fast-{name}", f"at {FAST_RATE:g}: {choice}", value, train=train, base=FAST, **changes)


BASE = Variant("base", "base", "")
VARIANTS = (
    BASE,
    Variant("hide-magnitude", "hide", "magnitude only", model={"hide": ["magnitude"]}),
    Variant("hide-sigma", "hide", "magnitude and uncertainty", model={"hide": ["magnitude", "uncertainty"]}),
    Variant("hide-all", "hide", "all three", model={"hide": ["magnitude", "time", "uncertainty"]}),
    Variant("base-1e-2", "time base", "0.01", model={"time_base": 1e-2}),
    Variant("base-1e2", "time base", "100", model={"time_base": 1e2}),
    Variant("base-1e3", "time base", "1,000", model={"time_base": 1e3}),
    Variant("base-1e5", "time base", "100,000", model={"time_base": 1e5}),
    Variant("loss-curve", "loss", "curve", train={"loss": "curve"}),
    Variant("rate-3e-4", "learning rate", "0.0003", train={"learning_rate": 3e-4}),
    Variant("rate-3e-3", "learning rate", "0.003", train={"learning_rate": 3e-3}),
    Variant("rate-1e-2", "learning rate", "0.01", train={"learning_rate": 1e-2}),
    Variant("warmup-1", "warm-up steps", "1", train={"warmup_steps": 1}),
    Variant("warmup-200", "warm-up steps", "200", train={"warmup_steps": 200}),
    Variant("mix-last", "mix at first", "83 % last layer", mix_last=True),
    _fast("loss-curve", "loss", "curve", train={"loss": "curve"}),
    _fast("mix-last", "mix at first", "83 % last layer", mix_last=True),
    _fast("hide-sigma", "hide", "magnitude and uncertainty", model={"hide": ["magnitude", "uncertainty"]}),
    _fast("hide-magnitude", "hide", "magnitude only", model={"hide": ["magnitude"]}),
    _fast("warmup-200", "warm-up steps", "200", train={"warmup_steps": 200}),
)
CHOICES = Budget(
    "choices",
    tuple(variant.row(seed) for seed in SEEDS for variant in VARIANTS),
    windows=STEPS * BATCH,
    epochs=1,
    global_batch=BATCH,
    warmup_steps=WARMUP,
    validation_windows=VALIDATION_WINDOWS,
    gpus=0,
    stages=(WINDOWS,),
    head_seeds=1,
)


def found(results: Mapping[str, Any]) -> pd.DataFrame:
    """The runs there are.

    Args:
        results: as `Experiment.results` returns them.

    Returns:
        A row for each run, with the columns variant, seed, rmse_hidden (magnitudes) and, missing where there are no
        probes, linear and logistic (macro-F1, per cent).
    """
    runs = []
    for variant, seed in product(VARIANTS, SEEDS):
        stage = results["models"].get(variant.row(seed).name, {"stages": {}})["stages"].get(WINDOWS)
        if stage is not None:
            f1 = pd.DataFrame([(entry["probe"], 100 * entry["macro_f1"]["mean"]) for entry in stage["probes"]])
            means = {} if f1.empty else f1.groupby(0)[1].mean().to_dict()
            runs.append({"variant": variant.name, "seed": seed, "rmse_hidden": stage["best"]["rmse_hidden"], **means})
    return pd.DataFrame(runs, columns=["variant", "seed", *FIGURES]).astype(dict.fromkeys(FIGURES, float))


def of(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The figures of a variant, indexed by seed."""
    return runs[runs["variant"] == name].set_index("seed")[list(FIGURES)]


def differences(runs: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """The figures of a variant less those of its base, a row for each seed that both have."""
    own, base = of(runs, variant.name), of(runs, variant.base)
    return own[own.index.isin(base.index)] - base[base.index.isin(own.index)]


def page(results: Mapping[str, Any], drawn: Sequence[str]) -> Iterator[str]:
    """The lines of the page in Markdown.

    Args:
        results: as `Experiment.results` returns them.
        drawn: file names of the figures that there are.
    """
    runs = found(results)
    simulated = "SIMULATED " * results["simulated"]
    yield from (f"# What the paper leaves open, on {results['light_curves']:,} {simulated}light curves", "", NOTE, "")
    yield "| | seeds | RMSE | less base | linear | less base | logistic | less base |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for variant in _shown(runs):
        own, change = of(runs, variant.name), differences(runs, variant)
        cells = [f"{variant.choice} {variant.value}".strip(), str(len(own))]
        for name, digits in FIGURES.items():
            mean, change_mean, spread = own[name].mean(), change[name].mean(), change[name].std()
            cells.append("" if pd.isna(mean) else f"{mean:.{digits}f}")
            told = "" if variant is BASE or pd.isna(change_mean) else f"{change_mean:+.{digits}f}"
            cells.append(told + (f" ± {spread:.{digits}f}" if told and not pd.isna(spread) else ""))
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name in drawn:
        yield from (f"![Differences to the base]({name})", "")


def figures(results: Mapping[str, Any]) -> "dict[str, Figure | None]":
    """The figures by file name; None: there is nothing to draw yet."""
    return {"choices.png": _differences(found(results))}


def _differences(runs: pd.DataFrame) -> "Figure | None":
    """Differences to the base, a dot for each seed: RMSE at hidden points, and macro-F1 of both probes."""
    shown = [variant for variant in _shown(runs) if variant is not BASE]
    if not shown:
        return None
    figure = plots.new_figure(10, 1.2 + 0.3 * len(shown))
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "rmse_hidden", 0.0, plots.BLUE),
        (right, "linear", -0.12, plots.BLUE),
        (right, "logistic", 0.12, plots.GREY),
    )
    for axes, name, offset, colour in panels:
        for place, variant in enumerate(shown):
            values = differences(runs, variant)[name].dropna()
            label = name if place == 0 else None
            axes.plot(values, [place + offset] * len(values), ".", color=colour, alpha=0.6, label=label)
            axes.plot([values.mean()], [place + offset], "|", color=colour, markersize=13, markeredgewidth=2)
    for axes in (left, right):
        axes.axvline(0, color=plots.GREY, linewidth=0.8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    left.set_yticks(range(len(shown)), [f"{variant.choice}: {variant.value}" for variant in shown])
    left.invert_yaxis()
    left.set_xlabel("RMSE at hidden points less the base's (mag)")
    right.set_xlabel("macro-F1 less the base's (%)")
    right.legend(fontsize=8)
    return figure


def _shown(runs: pd.DataFrame) -> list[Variant]:
    return [variant for variant in VARIANTS if variant.name in set(runs["variant"])]
