"""The notebooks of docs/tutorials: stored as their sources stand, they run offline in an empty folder, and hold."""

import ast
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from astroco_fast.cli import COMMANDS

jupytext = pytest.importorskip("jupytext", reason="the extra notebooks is not installed")
nbformat = pytest.importorskip("nbformat")

from docs import notebooks  # noqa: E402

ROOT = Path(__file__).parent.parent
NAMES = ("classes", "survey", "pretraining")
FIGURES = 600_000  # bytes of all stored figures; in base64 they take a third more
# Imported by every Python that the kernel starts: TCP leads to this machine only.
OFFLINE = """
import socket
connect = socket.socket.connect
def only_here(self, address):
    outside = self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost")
    if outside and self.type == socket.SOCK_STREAM:
        raise OSError(f"no network in this test: {address}")
    return connect(self, address)
socket.socket.connect = only_here
"""
OFFLINE_CELL = """
try:
    __import__("socket").create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    assert "no network in this test" in str(error), error
"""


def stored(name: str) -> Any:
    return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", 4)


def code(name: str) -> str:
    """The source's code, and each `!command` as a call of `shell`."""
    cells = [cell.source for cell in notebooks.read(name).cells if cell.cell_type == "code"]
    text = "\n".join(cells).replace("\\\n", " ")
    return re.sub(r"^!(.*)$", lambda found: f"shell({found[1]!r})", text, flags=re.MULTILINE)


def test_the_notebooks_are_those_of_the_site() -> None:
    assert {path.stem for path in notebooks.FOLDER.glob("*.py")} == {*NAMES}
    assert {path.stem for path in notebooks.FOLDER.glob("*.ipynb")} == {*NAMES}
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"tutorials/(\w+)\.md", site) == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_that_of_its_source(name: str) -> None:
    def cells(notebook: Any) -> list[tuple[str, str]]:
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert cells(stored(name)) == cells(notebooks.read(name)), "run: make notebooks"
    nbformat.validate(stored(name))
    outputs = [output for cell in stored(name).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "SIMULATED" in code(name)
    assert "simulated" in notebooks.read(name).cells[0].source


def test_the_stored_figures_are_small() -> None:
    text = "".join((notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") for name in NAMES)
    figures = re.findall(r'"image/png": "([^"]*)"', text)
    assert len(figures) > 8
    assert sum(len(figure) for figure in figures) * 3 / 4 < FIGURES


@pytest.mark.parametrize("name", NAMES)
def test_the_names_and_commands_that_a_notebook_uses_exist(name: str) -> None:
    tree = ast.parse(code(name))
    used = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astroco_fast")
        for alias in node.names
    ] + [
        ("astroco_fast", node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "af"
    ]
    assert [f"{module}.{word}" for module, word in used if not hasattr(importlib.import_module(module), word)] == []
    run = re.findall(r"\bastroco (\w+)", code(name))
    assert len(run) > 1
    assert [command for command in run if command not in COMMANDS] == []


def test_the_survey_is_left_as_it_is_without_lsdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On Python 3.10, for which LSDB does not exist, the other notebooks are run all the same."""
    run = []
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("# %%\nprint(1)\n")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    monkeypatch.setattr(notebooks, "find_spec", lambda name: None)
    monkeypatch.setattr(notebooks, "execute", lambda notebook, folder: run.append(notebook) or notebook)
    notebooks.main([])
    assert len(run) == 2
    assert "survey: left as it is, because it needs LSDB" in capsys.readouterr().out
    assert sorted(path.stem for path in tmp_path.glob("*.ipynb")) == ["classes", "pretraining"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_offline_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for module in ("sklearn", "faiss", "matplotlib", *(["lsdb"] if name == "survey" else ["light_curve"])):
        pytest.importorskip(module)
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "sitecustomize.py").write_text(OFFLINE)
    (tmp_path / "work").mkdir()
    notebook = notebooks.read(name)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(OFFLINE_CELL))
    path = f"{tmp_path / 'offline'}:{ROOT}"
    notebooks.execute(notebook, tmp_path / "work", PYTHONPATH=path)
    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stdout"
    )
    assert "astroco: error" not in printed
    CHECKS[name](tmp_path / "work", printed)


def check_classes(folder: Path, printed: str) -> None:
    results = json.loads((folder / "classifier" / "results.json").read_text())
    assert len(results["classes"]) == 8
    assert np.mean([fold["macro_f1"] for fold in results["folds"]]) > 0.75  # by chance 0.125 at most
    assert np.mean([fold["calibration_error"] for fold in results["folds"]]) < 0.1
    classes = pd.read_parquet(folder / "classes.parquet")
    assert len(classes) == 200
    assert (classes["class"] == classes["label"]).mean() > 0.8
    assert (pd.read_parquet(folder / "near.parquet")["label"] == "EA").sum() >= 3
    assert len(pd.read_parquet(folder / "embeddings.parquet")) == 600
    assert (folder / "page.html").stat().st_size > 500_000


def check_survey(folder: Path, printed: str) -> None:
    rows = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("vectors/vectors/dataset/**/Npix*.parquet")))
    stars = pd.read_parquet(folder / "stars.parquet")
    assert sorted(rows["id"]) == sorted(stars["id"])
    assert np.isfinite(np.stack(rows["embedding"].to_numpy())).all()
    assert {"ra", "dec", "label", "true_period", "period", "n_points"} < {*rows.columns}
    assert "400 rows, 0 of them without a vector" in printed
    assert "page.html: 400 light curves" in printed


def check_pretraining(folder: Path, printed: str) -> None:
    assert "dropped points: sentinel value" in printed
    assert "kept                                               595 curves" in printed
    assert "exit code 75" in printed
    assert "Going on from runs/survey/checkpoints/step-000000" in printed
    metrics = pd.read_json(folder / "runs" / "survey" / "metrics.jsonl", lines=True)
    last = metrics[metrics["split"] == "validation"].iloc[-1]
    assert last["step"] == 90
    assert last["rmse_hidden"] < 0.6 * last["trivial_rmse_hidden"]
    for name in ("model", "live", "optimizer"):
        one, other = (
            load_file(folder / "runs" / run / "checkpoints" / "last" / f"{name}.safetensors")
            for run in ("survey", "unbroken")
        )
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one), name
    results = pd.read_csv(folder / "probe" / "results.csv")
    score = results[results["probe"] == "logistic"].groupby("vectors")["macro_f1"].mean()
    assert score["survey"] > score["statistics"] + 0.1
    assert len(pd.read_parquet(folder / "embeddings.parquet")) == 595


CHECKS: dict[str, Callable[[Path, str], None]] = {
    "classes": check_classes,
    "survey": check_survey,
    "pretraining": check_pretraining,
}
