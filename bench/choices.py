"""What the paper leaves open, tried one change at a time on equal budgets with a small model.

    python -m bench.choices --data survey.store --classes RRab RRc EA --out choices --seeds 0 1

Each variant is preset S at a third of its width, pretrained on `STEPS` steps of 32 windows, then probed. A run that is
in the folder already is not run again, so several processes may each take some seeds, and a stopped one goes on.
Writes choices.md, .csv and .png after each run: every variant less the base of the same seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from astroco_fast import presets
from astroco_fast.errors import UserError
from astroco_fast.files import whole_file
from astroco_fast.model import AstroCo
from astroco_fast.plots import BLUE, GREY, drawing, new_figure
from astroco_fast.pretrain.config import PretrainConfig, TrainConfig
from astroco_fast.pretrain.distributed import Ranks
from astroco_fast.pretrain.signals import StopRequest
from astroco_fast.pretrain.start import pretrain
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.metrics import mean_and_deviation
from astroco_fast.probe.run import assign, probe
from astroco_fast.probe.splits import write_splits
from astroco_fast.reference.config import AstroCoConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, VALIDATION_WINDOWS = 344, 32, 2_000
WIDTH, LEARNING_RATE, WARMUP = 96, 1e-3, 50
FAST, FAST_RATE = "rate-3e-3", 3e-3
RESULT, SPLITS = "result.json", "splits.csv"
NOTE = f"""\
Preset S at width {WIDTH}, {STEPS} steps of {BATCH} windows, learning rate {LEARNING_RATE:g}, {WARMUP} steps of
warm-up; all else as the package's defaults. RMSE, in magnitudes, at the hidden points of {VALIDATION_WINDOWS:,}
validation windows. Macro-F1, per cent, of the linear head and the logistic regression on the frozen embeddings, its
mean over 20, 100 and 500 labels a class and three folds. Differences are to the base of the same seed: mean ± standard
deviation over seeds. What stands "at {FAST_RATE:g}" is one change to the variant with that learning rate, and its
differences are to that."""


@dataclass(frozen=True)
class Variant:
    """One change to the base.

    Attributes:
        name: of its runs' folders.
        choice, value: what was changed, to what.
        model, train: settings that differ from the base's.
        last_layer: the mix's logit of the last layer to begin with; the others begin at zero.
        base: name of the variant that it is one change away from.
    """

    name: str
    choice: str
    value: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    last_layer: float = 0.0
    base: str = "base"

    @property
    def title(self) -> str:
        """In tables."""
        return f"{self.choice} {self.value}".strip()


def _fast(name: str, choice: str, value: str, **changes: Any) -> Variant:
    """One change to the best learning rate's variant, as what a choice does may depend on how far training gets."""
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
    Variant("mix-last", "mix at first", "83 % last layer", last_layer=3.0),
    _fast("loss-curve", "loss", "curve", train={"loss": "curve"}),
    _fast("mix-last", "mix at first", "83 % last layer", last_layer=3.0),
    _fast("hide-sigma", "hide", "magnitude and uncertainty", model={"hide": ["magnitude", "uncertainty"]}),
    _fast("hide-magnitude", "hide", "magnitude only", model={"hide": ["magnitude"]}),
    _fast("warmup-200", "warm-up steps", "200", train={"warmup_steps": 200}),
)


def main() -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.choices", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="a store made by astroco convert, with labels")
    parser.add_argument("--classes", nargs="+", required=True, help="to probe")
    parser.add_argument("--out", type=Path, default=Path("choices"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for seed in args.seeds:
            for variant in VARIANTS:
                if not run(variant, seed, args.data, args.classes, args.out):
                    return 1
                write(args.out)
    except UserError as error:
        print(f"bench.choices: {error}", file=sys.stderr)
        return 2
    return 0


def run(variant: Variant, seed: int, data: str, classes: list[str], out: Path) -> bool:
    """Pretrain and probe a variant, unless that was done; False: a signal asked to stop."""
    place = out / f"{variant.name}-{seed}"
    if (place / RESULT).exists():
        return True
    name = f"S, {variant.name}"  # the run's settings tell which start the mix had
    build = partial(_mixing, last_layer=variant.last_layer)
    presets._PRESETS[name] = presets.Preset(name, presets.preset("S").config, LEARNING_RATE, build)
    train: dict[str, Any] = {"learning_rate": LEARNING_RATE, "warmup_steps": WARMUP, **variant.train}
    config = PretrainConfig(
        preset=name,
        data=data,
        out=str(place / "run"),
        seed=seed,
        model={"width": WIDTH, **variant.model},
        train=TrainConfig(
            max_steps=STEPS, global_batch=BATCH, evaluate_windows=VALIDATION_WINDOWS, plots=False, device="cpu", **train
        ),
    )
    with StopRequest() as stop:
        if pretrain(config, Ranks.start("cpu"), stop):
            return False
    summary = json.loads((place / "run" / "summary.json").read_text())
    results = probe(
        ProbeConfig(
            data=data, model=str(place / "run" / "checkpoints" / "best"), out=str(place / "probe"), classes=classes,
            splits=str(_splits(data, classes, out)), seeds=1, probes=["linear", "logistic"], plots=False, device="cpu",
        )
    )["results"]  # fmt: skip
    scores = {f"{entry['probe']} {entry['n']}": entry["macro_f1"] for entry in results}
    found = {"rmse_hidden": summary["best"]["rmse_hidden"], "rmse": summary["best"]["rmse"], "macro_f1": scores}
    (place / RESULT).write_text(json.dumps(found, indent=1) + "\n")
    return True


def _mixing(config: AstroCoConfig, last_layer: float) -> AstroCo:
    model = AstroCo(config)
    with torch.no_grad():
        model.mix_pool.logits[-1] = last_layer
    return model


def _splits(data: str, classes: list[str], out: Path) -> Path:
    """The same stars for all variants."""
    path = out / SPLITS
    if not path.exists():
        assigned = assign(ProbeConfig(data=data, model="", out="", classes=classes))
        write_splits(path, assigned.splits, assigned.stars.labels)
    return path


Found = dict[str, dict[int, dict[str, float]]]  # variant, seed, figure


def collect(out: Path) -> Found:
    """What has been found so far: RMSE at hidden points, and each probe's macro-F1 in per cent."""
    found: Found = {}
    for path in sorted(out.glob(f"*/{RESULT}")):
        name, _, seed = path.parent.name.rpartition("-")
        result = json.loads(path.read_text())
        f1 = {probe: 100 * value["mean"] for probe, value in result["macro_f1"].items()}
        figures = {"rmse_hidden": result["rmse_hidden"], "rmse": result["rmse"]}
        for kind in ("linear", "logistic"):
            figures[kind] = float(np.mean([value for probe, value in f1.items() if probe.startswith(kind)]))
        found.setdefault(name, {})[int(seed)] = figures | f1
    return found


def differences(found: Found, variant: Variant, name: str) -> list[float]:
    """To the variant's base of the same seed, by seed."""
    base, other = (found.get(which, {}) for which in (variant.base, variant.name))
    return [other[seed][name] - base[seed][name] for seed in sorted(base.keys() & other.keys())]


def write(out: Path) -> None:
    """choices.md, choices.csv and choices.png, of the runs there are."""
    found = collect(out)
    with whole_file(out / "choices.csv") as new, new.open("w", newline="") as file:
        names = list(next(iter(next(iter(found.values())).values())))
        table = csv.writer(file)
        table.writerow(["choice", "value", "seed", *names])
        for variant in VARIANTS:
            for seed, figures in found.get(variant.name, {}).items():
                table.writerow([variant.choice, variant.value, seed, *(f"{figures[name]:.5g}" for name in names)])
    with whole_file(out / "choices.md") as new:
        new.write_text(markdown(found))
    with drawing(), whole_file(out / "choices.png") as new:
        figure(found).savefig(new, format="png")


def markdown(found: Found) -> str:
    """The table of what was tried."""
    lines = [f"# Choices\n\n{NOTE}\n", "| | seeds | RMSE | less base | linear | less base | logistic | less base |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for variant in VARIANTS:
        if runs := found.get(variant.name):
            cells = [variant.title, str(len(runs))]
            for name, digits in (("rmse_hidden", 4), ("linear", 1), ("logistic", 1)):
                cells.append(f"{np.mean([figures[name] for figures in runs.values()]):.{digits}f}")
                cells.append("" if variant is BASE else _plus_minus(differences(found, variant, name), digits))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plus_minus(values: Sequence[float], digits: int) -> str:
    told = mean_and_deviation(list(values)) if values else {"mean": None, "std": None}
    if told["mean"] is None:
        return ""
    return f"{told['mean']:+.{digits}f}" + ("" if told["std"] is None else f" ± {told['std']:.{digits}f}")


def figure(found: Found) -> Figure:
    """Differences to the base, a dot a seed: RMSE at hidden points, macro-F1 of both probes."""
    shown = [variant for variant in VARIANTS if variant is not BASE and variant.name in found]
    drawn = new_figure(10, 1.2 + 0.3 * max(1, len(shown)))
    left, right = drawn.subplots(1, 2, sharey=True)
    for axes, names in ((left, {"rmse_hidden": BLUE}), (right, {"linear": BLUE, "logistic": GREY})):
        for place, variant in enumerate(shown):
            for offset, (name, colour) in zip((-0.12, 0.12), names.items(), strict=False):
                values = differences(found, variant, name)
                label = name if place == 0 and len(names) > 1 else None
                at = place + offset * (len(names) > 1)
                axes.plot(values, [at] * len(values), ".", color=colour, alpha=0.6, label=label)
                if values:
                    axes.plot(np.mean(values), at, "|", color=colour, markersize=13, markeredgewidth=2)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    left.set_yticks(range(len(shown)), [f"{variant.choice}: {variant.value}" for variant in shown])
    left.invert_yaxis()
    left.set_xlabel("RMSE at hidden points less the base's (mag)")
    right.set_xlabel("macro-F1 less the base's (%)")
    right.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
