"""`astroco reproduce` from light curves to its report, with models that take milliseconds a step."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from astroco_fast import plots, reproduce
from astroco_fast.data.convert import convert
from astroco_fast.data.store import Store
from astroco_fast.pretrain.ranks import Diverged
from astroco_fast.probe import heads
from astroco_fast.probe.config import ProbeConfig
from astroco_fast.probe.run import probe
from astroco_fast.reproduce import kept, paper, report, run
from astroco_fast.reproduce.cost import expected
from astroco_fast.reproduce.paper import PAPER_F1, PAPER_RMSE
from astroco_fast.reproduce.plan import TIME, WINDOWS, Budget, Row
from astroco_fast.reproduce.run import BUDGETS
from tests.probe.survey import survey, table

_FIGURES = report.figures.figures
_SMALL = {"width": 16, "heads": 2, "layers": 1, "window": 8}
_RATE = {"learning_rate": 1e-3}
_ROWS = (
    Row(paper.S, "S", {**_SMALL, "kernel": 4}, _RATE),
    Row(paper.NO_CONV, "S-no-conv", {**_SMALL, "kernel": 4}, _RATE),
    Row(paper.V2, "astromer-v2-paper", {**_SMALL, "feed_forward": 8}, _RATE),
)


def quick_probe(config: ProbeConfig, assigned: Mapping[str, str]) -> dict[str, Any]:
    """The probe with fewer folds and epochs."""
    return probe(replace(config, folds=2, head=replace(config.head, epochs=5)), assigned)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)
    sizes = {"windows": 96, "global_batch": 16, "warmup_steps": 2, "validation_windows": 6}
    tiny = Budget("small", _ROWS, epochs=1, gpus=0, head_seeds=1, **sizes)
    monkeypatch.setattr(run, "probe", quick_probe)
    monkeypatch.setattr(heads, "C_GRID", (0.1, 1.0))
    monkeypatch.setattr(run, "BUDGETS", {**BUDGETS, "small": tiny})
    # A start reports after each model and stage, and drawing takes most of its time.
    monkeypatch.setattr(report.figures, "figures", lambda results, runs: {})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pq.write_table(table(), tmp_path / "survey.parquet")
    return tmp_path / "survey.parquet"


def start(data: Path, out: Path, *flags: str) -> int:
    usual = ("--sizes", "[4, 5]", "--test", "3", "--device", "cpu")
    return reproduce.main(["--data", str(data), "--out", str(out), *usual, *flags])


def test_report(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report has all tables with the paper's figures; a second start repeats no work."""
    out, given = tmp_path / "out", {}
    monkeypatch.setattr(report.figures, "figures", lambda *arguments: given.update(last=arguments) or {})
    assert start(data, out) == 0
    results = json.loads((out / "results.json").read_text())
    for facts in results["models"].values():
        stages = facts["stages"]
        assert stages[WINDOWS]["windows_seen"] == 96
        assert stages[TIME]["windows_seen"] >= 96
        assert {(entry["probe"], entry["n"]) for entry in stages[TIME]["probes"]} == {
            (probe, n) for probe in ("linear", "logistic") for n in (4, 5)
        }
    assert results["untrained"]["probes"]
    page = (out / "README.md").read_text()
    assert f"*{PAPER_RMSE[paper.S]:.3f}*" in page
    assert all(f"*{figure}*" in page for figure in PAPER_F1[paper.NO_CONV])
    assert f"{results['models'][paper.S]['stages'][WINDOWS]['best']['rmse_hidden']:.4f}" in page
    with (out / "results.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == [name for name in results["models"] for _ in range(2)]
    made = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.safetensors")}
    assert len(made) == 2 * len(_ROWS) + 1
    capsys.readouterr()
    assert start(data, out) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.safetensors")} == made
    assert "Pretraining" not in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report.figures, "figures", _FIGURES)
    report.write_report(out, *given["last"])
    for name in ("figure3.png", "training.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


def test_the_slowest_sets_the_time(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model three times as fast as the slowest gets three times its steps, and the slowest no further ones."""
    seconds = {paper.S: 10.0, paper.NO_CONV: 30.0, paper.V2: 15.0}
    by_run = {row.folder: seconds[row.name] for row in _ROWS}
    monkeypatch.setattr(kept, "training_seconds", lambda folder, summary: by_run[folder.name])
    assert start(data, tmp_path / "out", "--probe", "false") == 0
    models = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    steps = {name: facts["stages"][TIME]["step"] for name, facts in models.items()}
    assert steps == {paper.S: 18, paper.NO_CONV: 6, paper.V2: 12}


def test_a_model_that_stays_is_probed_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest is the same model after both stages, so the second stage copies its probes."""
    probed = []
    monkeypatch.setattr(report.figures, "figures", _FIGURES)

    def counted(config, assigned):  # type: ignore[no-untyped-def]
        probed.append(Path(config.model).name)
        return probe(config, assigned)

    probe = run.probe
    monkeypatch.setattr(run, "probe", counted)
    monkeypatch.setattr(kept, "training_seconds", lambda folder, summary: 10.0 * summary["step"] / 6)
    out = tmp_path / "out"
    assert start(data, out, "--models", f"[{paper.NO_CONV}]") == 0
    assert probed == ["S-no-conv-equal-windows"]
    stages = json.loads((out / "results.json").read_text())["models"][paper.NO_CONV]["stages"]
    assert stages[TIME]["probes"] == stages[WINDOWS]["probes"] != []
    assert not (out / "figure3.png").exists()  # it does not show ablations


def test_adding_a_slower_model_extends_equal_time(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal time is the time of the slowest of all rows, so rows of an earlier start train on."""
    seconds = {"AstroCo-S": 10.0, "S-no-conv": 20.0}
    monkeypatch.setattr(kept, "training_seconds", lambda folder, summary: seconds[folder.name] * summary["step"] / 6)
    out = tmp_path / "out"
    for rows, steps in ((f"[{paper.S}]", [6]), (f"[{paper.S}, {paper.NO_CONV}]", [12, 6])):
        assert start(data, out, "--models", rows) == 0
        models = json.loads((out / "results.json").read_text())["models"]
        assert [facts["stages"][TIME]["step"] for facts in models.values()] == steps
        assert all(facts["stages"][TIME]["probes"] for facts in models.values())


def test_a_diverged_model_is_left_out(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(config, ranks, stop, initialise):  # type: ignore[no-untyped-def]
        if config.preset == "S-no-conv":
            raise Diverged("not finite")
        return pretrain(config, ranks, stop, initialise)

    pretrain = run.pretrain
    monkeypatch.setattr(run, "pretrain", diverges)
    assert start(data, tmp_path / "out", "--probe", "false") == 3
    models = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert {name: len(facts["stages"]) for name, facts in models.items()} == {paper.S: 2, paper.NO_CONV: 0, paper.V2: 2}


def test_a_mistake_can_be_mended_in_the_same_folder(data: Path, tmp_path: Path) -> None:
    """A refused start does not claim the folder, and probes may follow a training without them."""
    out = tmp_path / "out"
    rows = ("--models", f"[{paper.S}]")
    assert start(tmp_path / "nothing.csv", out, *rows) == 2
    assert start(data, out, *rows, "--sizes", "[400]") == 2
    assert start(data, out, *rows, "--probe", "false") == 0
    assert start(data, out, *rows) == 0
    stages = json.loads((out / "results.json").read_text())["models"][paper.S]["stages"]
    assert all(found["probes"] for found in stages.values())


def test_interrupted_comparison_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop in the second model's training, the same command ends with the results of an undisturbed run."""
    flags = ("--probe", "false", "--models", f"[{paper.S}, {paper.NO_CONV}]")
    monkeypatch.setattr(kept, "training_seconds", lambda folder, summary: 1.0)
    assert start(data, tmp_path / "whole", *flags) == 0
    trained = []

    def interrupted(config, ranks, stop, initialise):  # type: ignore[no-untyped-def]
        trained.append(config.preset)
        if len(trained) == 2:
            stop._signalled = True
        return pretrain(config, ranks, stop, initialise)

    pretrain = run.pretrain
    monkeypatch.setattr(run, "pretrain", interrupted)
    assert start(data, tmp_path / "parts", *flags) == 75
    assert start(data, tmp_path / "parts", *flags) == 0
    whole, parts = (json.loads((tmp_path / name / "results.json").read_text())["models"] for name in ("whole", "parts"))
    for name, facts in whole.items():
        for stage, found in facts["stages"].items():
            assert parts[name]["stages"][stage]["best"] == found["best"]


def test_damaged_results_are_made_anew(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kept model with a changed bit, one that is half removed, and a probe without some of its results."""
    out, flags = tmp_path / "out", ("--models", f"[{paper.NO_CONV}]", "--sizes", "[4]")
    assert start(data, out, *flags) == 0
    before = (out / "results.csv").read_bytes()
    models, probes = (sorted(path for path in (out / name).iterdir()) for name in ("models", "probes"))
    (last,) = (path for path in models if path.name.endswith(TIME.replace(" ", "-")))
    (last / "summary.json").unlink()
    (probes[0] / "results.csv").unlink()
    assert start(data, out, *flags) == 0
    assert "kept anew" in capsys.readouterr().out
    assert (out / "results.csv").read_bytes() == before
    assert (probes[0] / "results.csv").exists()
    (first,) = (path for path in models if path.name.endswith(WINDOWS.replace(" ", "-")))
    weights = bytearray((first / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (first / "model.safetensors").write_bytes(weights)
    run_of_it = json.loads((out / "runs" / first.name.removesuffix("-equal-windows") / "summary.json").read_text())
    went_on = run_of_it["step"] > json.loads((first / "summary.json").read_text())["step"]
    assert start(data, out, *flags) == (2 if went_on else 0)
    assert (out / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--models", "[AstroCo-XL]"), "no row 'AstroCo-XL'; there are: 'AstroCo-S'"),
        (("--sizes", "[4, 500]"), "EW"),
        (("--windows", "0"), "windows must be at least 1"),
    ],
)
def test_bad_input_is_found_before_any_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert start(data, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_folder_of_another_comparison_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--probe", "false", "--models", f"[{paper.S}]")
    assert start(data, out, *flags) == 0
    assert start(data, out, *flags, "--seed", "1") == 2
    assert "other settings (seed)" in capsys.readouterr().err


def test_paper_budget_says_what_it_costs(tmp_path: Path) -> None:
    """The paper's budget states its modelled cost; a CPU's budget states none."""
    convert(survey(), tmp_path / "store")
    lines = list(expected(BUDGETS["paper"], Store.open(tmp_path / "store"), None, 0))
    assert "4 GPUs" in lines[1]
    assert "Modelled, not measured" in lines[1]
    assert len(list(expected(BUDGETS["small"], Store.open(tmp_path / "store"), None, 0))) == 1


def test_budgets_hold_every_row_of_the_tables() -> None:
    for budget in (BUDGETS["small"], BUDGETS["paper"]):
        names = [row.name for row in budget.rows]
        assert {*paper.RECONSTRUCTION, *paper.ABLATION} == {*names}
        assert len({row.folder for row in budget.rows}) == len(names)
        hide = {row.name: dict(row.model).get("hide") for row in budget.rows}
        assert hide.pop(paper.SHOWN_TIME) == ["magnitude"]
        assert hide.pop(paper.TIMES_ONLY) == ["magnitude", "uncertainty"]
        assert {*hide.values()} == {None}
