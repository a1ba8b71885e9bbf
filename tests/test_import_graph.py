"""Imports run one way: the package imports the kernels, these the reference, and that errors and file helpers."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT, Graph, cycles, draw, grouped, import_graph

# The bottom of the graph: modules without tensors and without parts of the model.
BOTTOM = {f"astroco_fast.{name}" for name in ("errors", "files", "private", "text", "checksums", "machine")}
LAYERS = ("bottom", "reference", "kernels", "package")


def layer(module: str) -> str:
    if module in BOTTOM:
        return "bottom"
    name = module.split(".")[1]
    return name if name in LAYERS else "package"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph()


def test_no_arrow_points_back(graph: Graph) -> None:
    upwards = [
        f"{name} -> {target}"
        for name, targets in graph.items()
        for target in targets
        if LAYERS.index(layer(target)) > LAYERS.index(layer(name))
    ]
    assert not upwards


def test_nothing_imports_in_a_circle(graph: Graph) -> None:
    assert cycles(graph) == []


def test_no_two_groups_of_modules_import_one_another(graph: Graph, tmp_path: Path) -> None:
    counts = grouped(graph)
    assert not [(a, b) for a, b in counts if (b, a) in counts]
    pytest.importorskip("matplotlib")
    draw(graph, tmp_path / "imports.png")
    assert (tmp_path / "imports.png").stat().st_size > 0


def test_a_circle_and_an_arrow_back_are_found(tmp_path: Path) -> None:
    sources = {
        "reference/a.py": "def f():\n    from astroco_fast import ops\n",
        "astroco_fast/ops.py": "from astroco_fast.reference.a import f\n",
        "kernels/b.py": "from . import c\n",
        "kernels/c.py": "import astroco_fast.reference.a\n",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    graph = import_graph(tmp_path)
    assert graph["astroco_fast.reference.a"] == {"astroco_fast.ops"}
    assert graph["astroco_fast.kernels.b"] == {"astroco_fast.kernels.c"}
    assert graph["astroco_fast.kernels.c"] == {"astroco_fast.reference.a"}
    assert cycles(graph) == [["astroco_fast.ops", "astroco_fast.reference.a"]]


@pytest.mark.parametrize("name", ["tests", "bench", "astroco_fast", "docs"])
def test_a_checkouts_other_folders_are_no_part_of_the_package(name: str) -> None:
    code = f"import importlib.util as u; print(u.find_spec('astroco_fast.{name}'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "None\n"


@pytest.mark.parametrize("name", ["kernels", "reference"])
def test_a_folder_of_the_package_is_not_imported_twice(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert f"import astroco_fast.{name} instead" in done.stderr
