"""The report of an experiment: README.md with its page, results.json, results.csv and the figures."""

import csv
import json
from collections.abc import Mapping
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astroco_fast import plots
from astroco_fast.files import whole_file, write_text
from astroco_fast.reproduce import choices, figures, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(out: Path, results: Mapping[str, Any], runs: Mapping[str, Path]) -> list[Path]:
    """Write the report of the results so far.

    Args:
        out: the folder to write to.
        results: as `Experiment.results` returns them.
        runs: the folder of each model's pretraining.

    Returns:
        The files. A write that fails leaves the file as it was.
    """
    tried = results["budget"]["name"] == choices.CHOICES.name
    drawn = []
    if find_spec("matplotlib") is not None:
        with plots.drawing():
            made = choices.figures(results) if tried else figures.figures(results, runs)
            for name, figure in made.items():
                if figure is not None:
                    drawn.append(name)
                    _save(figure, out / name)
    page = choices.page if tried else tables.page
    texts = {
        "README.md": "\n".join([*page(results, drawn), _provenance(results)]) + "\n",
        "results.json": json.dumps(results, indent=1) + "\n",
        "results.csv": _csv(results),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in (*texts, *drawn)]


def _save(figure: "Figure", path: Path) -> None:
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _provenance(results: Mapping[str, Any]) -> str:
    """The machine, the versions and the seed, and how to repeat the experiment."""
    machine = results["environment"]
    return (
        f"{machine['cpu']}, {machine['ranks']} process(es) of {machine['threads']} threads, "
        f"{machine['gpu'] or 'no GPU'}; torch {machine['torch']}, astroco_fast {machine['astroco_fast']}; seed "
        f"{results['settings']['seed']}. Repeat it: `astroco reproduce --config config.yaml --out ELSEWHERE`."
    )


def _csv(results: Mapping[str, Any]) -> str:
    """A row for each model and stage."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    reached = [
        f"{name}{role}" for name in ("rmse", "r2", "trivial_rmse") for role in ("", "_hidden", "_random", "_unchanged")
    ]
    entries = [e for facts in results["models"].values() for s in facts["stages"].values() for e in s["probes"]]
    keys = list(dict.fromkeys((entry["probe"], entry["n"]) for entry in entries))
    header = ["model", "stage", "parameters", "windows_seen", "training_seconds", *reached]
    writer.writerow([*header, *(f"macro_f1_{probe}_{n}{what}" for probe, n in keys for what in ("", "_std"))])
    for name, facts in results["models"].items():
        for stage, found in facts["stages"].items():
            probed = {(entry["probe"], entry["n"]): entry["macro_f1"] for entry in found["probes"]}
            f1 = [probed[key][what] if key in probed else None for key in keys for what in ("mean", "std")]
            spent = (found["parameters"], found["windows_seen"], round(found["training_seconds"], 1))
            writer.writerow([name, stage, *spent, *(found["best"].get(key) for key in reached), *f1])
    return text.getvalue()
