"""The page of the paper's comparison: Tables 1 and 2, the figures' tables, the claims and the budget, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from astroco_fast.reproduce.claims import claims, linear_head
from astroco_fast.reproduce.paper import ABLATION, PAPER_F1, PAPER_RMSE, PAPER_SIZES, RECONSTRUCTION, UNTRAINED
from astroco_fast.reproduce.plan import STAGES

ROLES = ("", "_hidden")


def page(results: Mapping[str, Any], drawn: Sequence[str]) -> Iterator[str]:
    """The lines of the page.

    Args:
        results: as `Experiment.results` returns them.
        drawn: file names of the figures that there are.
    """
    models, settings, budget = results["models"], results["settings"], results["budget"]
    data = Path(settings["data"]).name if settings["data"] else "a simulated survey"
    simulated = "SIMULATED " * results["simulated"]
    yield f"# The paper's tables on {results['light_curves']:,} {simulated}light curves, budget {budget['name']}"
    yield ""
    yield (
        f"Ours: measured by `astroco reproduce`, one run a model, {data}. *Paper*: what arXiv 2509.24134 prints, of "
        "models pretrained on 1.5 million MACHO windows and probed on other stars: there for comparison of orders, not "
        "of sizes; blank where it prints nothing."
    )
    yield ""
    yield (
        "**Equal windows**: every model has seen as many training windows, or stopped early (see the budget). **Equal "
        "time**: every model has trained for as long as the slowest took for those windows. RMSE in magnitudes; R2 "
        "about each window's own mean; *hidden*: the points whose magnitude the model did not see, the figure to "
        "compare models by (Astromer v1 sees all). Differences in macro-F1 are paired by fold, mean and standard "
        "deviation; one pretraining a model: what another seed of it would change is in no spread here."
    )
    yield from ("", "## Table 1: reconstruction of validation stars", "")
    yield from _reconstruction(models)
    yield from ("", "## Table 2: ablation", "")
    yield from _probes(models, ABLATION)
    yield from ("", "## Figure 3: macro-F1 against labels", "")
    yield from _probes({**models, UNTRAINED: _untrained(results)}, (*RECONSTRUCTION, UNTRAINED))
    yield from ("", *_link(drawn, "figure3.png", "macro-F1 against labels"))
    for stage in STAGES:
        yield from (f"## The paper's claims here, {stage}", "", "| claim | here | figures |", "|---|---|---|")
        yield from (f"| {claim.text} | {claim.verdict} | {claim.figures} |" for claim in claims(models, stage))
        yield ""
    yield from ("## Budget", "")
    yield from _budget(models, budget)
    yield from ("", *_link(drawn, "training.png", "hidden points' RMSE while training"))


def _link(drawn: Sequence[str], name: str, text: str) -> list[str]:
    return [f"![{text}]({name})", ""] if name in drawn else []


def _reconstruction(models: Mapping[str, Any]) -> Iterator[str]:
    """RMSE (magnitudes) and R2 of the best evaluation of each stage, hidden points first."""
    names = [f"{name} {role}, {stage}" for role in ("hidden", "all") for name in ("RMSE", "R2") for stage in STAGES]
    yield from _head("model", "parameters", *names, "*paper: RMSE all*")
    for name in (name for name in RECONSTRUCTION if name in models):
        stages = [models[name]["stages"].get(stage) for stage in STAGES]
        parameters = next((f"{stage['parameters']:,}" for stage in stages if stage), "")
        cells = [
            _decimals(stage and stage["best"][f"{figure}{role}"])
            for role in reversed(ROLES)
            for figure in ("rmse", "r2")
            for stage in stages
        ]
        yield _line(name, parameters, *cells, _paper(PAPER_RMSE.get(name), 3))
    done = [facts["stages"][stage] for facts in models.values() for stage in STAGES if stage in facts["stages"]]
    if done:
        trivial = [_decimals(done[0]["best"][f"trivial_rmse{role}"]) for role in reversed(ROLES)]
        yield _line("the window's mean", "", *(cell for value in trivial for cell in (value, value, "", "")), "")


def _probes(models: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Macro-F1 of the linear head, per cent: mean and standard deviation over folds and seeds."""
    sizes = sorted({entry["n"] for facts in models.values() for s in facts["stages"].values() for entry in s["probes"]})
    sizes = sizes or list(PAPER_SIZES)
    yield from _head(
        "macro-F1, %",
        *(f"{n} labels, {stage}" for n in sizes for stage in STAGES),
        *(f"*paper: {n}*" for n in PAPER_SIZES),
    )
    for name in (name for name in names if name in models):
        stages = [models[name]["stages"].get(stage) for stage in STAGES]
        cells = [_per_cent(linear_head(stage, n)) for n in sizes for stage in stages]
        yield _line(name, *cells, *(_paper(figure, 1) for figure in PAPER_F1.get(name, (None,) * len(PAPER_SIZES))))


def _untrained(results: Mapping[str, Any]) -> dict[str, Any]:
    """The untrained model in the form of a trained one, the same at the end of either stage."""
    return {"stages": dict.fromkeys(STAGES, results["untrained"]) if results["untrained"]["probes"] else {}}


def _budget(models: Mapping[str, Any], budget: Mapping[str, Any]) -> Iterator[str]:
    """Each model's settings, and the windows and minutes that it was trained for."""
    yield (
        f"{budget['global_batch']} windows a step, AdamW, learning rate constant after {budget['warmup_steps']} steps, "
        "average of weights over steps; the best evaluation of each stage counts."
    )
    yield ""
    yield from _head(
        "model",
        "preset",
        "width x layers",
        "learning rate",
        *(f"{what}, {s}" for s in STAGES for what in ("windows", "min")),
    )
    for name, facts in models.items():
        shape = f"{facts['model']['width']} x {facts['model']['layers']}"
        stages = [facts["stages"].get(stage) for stage in STAGES]
        spent = [
            cell
            for stage in stages
            for cell in ((f"{stage['windows_seen']:,}", f"{stage['training_seconds'] / 60:.1f}") if stage else ("", ""))
        ]
        yield _line(name, facts["preset"], shape, f"{facts['learning_rate']:g}", *spent)


def _head(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _per_cent(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    figure = entry["macro_f1"]
    return f"{100 * figure['mean']:.1f}" + ("" if figure["std"] is None else f" ± {100 * figure['std']:.1f}")


def _paper(value: float | None, decimals: int) -> str:
    return "" if value is None else f"*{value:.{decimals}f}*"
