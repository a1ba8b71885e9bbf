"""`astroco probe --against`: rivals beside the model, on the same stars and in the same tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from astroco_fast import plots, probe
from astroco_fast.probe import heads
from tests.probe.survey import FEW, table, tiny_model

pytest.importorskip("light_curve")
pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)
    monkeypatch.setattr(heads, "TREES", 5)
    monkeypatch.setattr(heads, "C_GRID", (0.1, 1.0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pq.write_table(table(), tmp_path / "survey.parquet")
    return tmp_path / "survey.parquet"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def other_model(folder: Path) -> Path:
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(folder)
    return folder


def run(data: Path, model: Path, out: Path, against: str, *flags: str) -> int:
    return probe.main(
        ["--data", str(data), "--model", str(model), "--out", str(out), "--against", against, *FEW, *flags]
    )


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_rivals_are_rows_of_the_same_table(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, run_folder = tmp_path / "out", tmp_path / "runs" / "S" / "checkpoints" / "best"
    against = f"[features, statistics, {other_model(run_folder)}]"
    assert run(data, model, out, against) == 0
    results = results_of(out)
    rows = ["model", "features, no period", "features", "features + model", "statistics", "S"]
    assert list(dict.fromkeys(entry["vectors"] for entry in results["results"])) == rows
    probes = {row: [e["probe"] for e in results["results"] if e["vectors"] == row and e["n"] == 4] for row in rows}
    assert probes["model"] == probes["S"] == ["linear", "logistic", "knn"]
    assert probes["statistics"] == probes["features + model"] == ["linear", "logistic", "knn", "forest"]
    assert sorted(path.name for path in out.glob("*.parquet"))[0].startswith("embeddings-")
    assert {"features.parquet", "statistics.parquet", "embeddings.parquet", "comparison.png"} <= {
        path.name for path in out.iterdir()
    }
    assert {row["vectors"] for row in csv.DictReader((out / "results.csv").open())} == {*rows}
    text = (out / "results.md").read_text()
    assert "| features, no period | extra trees |" in text
    assert "| features + model less features | extra trees | " in text
    capsys.readouterr()
    assert run(data, model, out, against, "--plots", "false") == 0
    assert capsys.readouterr().out.count(" 0 of them embedded now") == 4


def test_the_model_alone_gives_the_same_figures(data: Path, model: Path, tmp_path: Path) -> None:
    assert run(data, model, tmp_path / "alone", "[]", "--plots", "false") == 0
    assert run(data, model, tmp_path / "both", "[statistics]", "--plots", "false") == 0
    alone, both = results_of(tmp_path / "alone"), results_of(tmp_path / "both")
    assert both["results"][: len(alone["results"])] == alone["results"]
    assert alone["differences"] == []


def test_differences_are_paired_by_fold(data: Path, model: Path, tmp_path: Path) -> None:
    assert run(data, model, tmp_path / "out", "[statistics]", "--plots", "false") == 0
    results = results_of(tmp_path / "out")
    by_fold = {}
    for entry in results["results"]:
        if (entry["probe"], entry["n"]) == ("linear", 4):
            scores = [(run["fold"], run["macro_f1"]) for run in entry["runs"]]
            by_fold[entry["vectors"]] = [np.mean([s for f, s in scores if f == fold]) for fold in (0, 1)]
    expected = np.subtract(by_fold["model"], by_fold["statistics"])
    found = results["differences"][0]
    assert (found["vectors"], found["less"], found["probe"], found["n"]) == ("model", "statistics", "linear", 4)
    np.testing.assert_allclose(found["folds"], expected)
    assert found["macro_f1"]["std"] == pytest.approx(np.std(expected, ddof=1))


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("[features, features]", "against must name different rivals"),
        ("[MODEL]", "against must name different rivals, and not the model itself"),
        ("[COPY]", "COPY has the weights of model; leave it out of --against"),
        ("[feature]", "feature: no such folder"),
    ],
)
def test_a_wrong_rival_is_one_line(
    data: Path, model: Path, tmp_path: Path, against: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(tmp_path / "copy")
    names = {"MODEL": str(model), "COPY": str(tmp_path / "copy")}
    for name, path in names.items():
        against, message = against.replace(name, path), message.replace(name, path)
    assert run(data, model, tmp_path / "out", against) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
