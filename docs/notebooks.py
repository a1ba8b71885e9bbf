"""Run the notebooks of docs/tutorials and store them with their outputs: `make notebooks`, or

    .venv/bin/python docs/notebooks.py classes pretraining

The source of a notebook is NAME.py, in jupytext's percent format: cells below `# %%`, text below `# %% [markdown]`.
NAME.ipynb is made from it, and holds the outputs that the site shows; nobody edits it. Figures are stored with 256
colours, `WIDTH` pixels wide at most.
"""

import base64
import io
import os
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent / "tutorials"
SECONDS = 3600  # for one cell, on a busy machine
COLOURS, WIDTH = 256, 1400
SPEED = re.compile(r"[^\n]*(\[\d+:\d\d[^\n]*/[^\n]*\]| windows/s)[ \r]*\n")  # progress bars, and a run's speed


def main(names: list[str]) -> None:
    for name in names or [path.stem for path in sorted(FOLDER.glob("*.py"))]:
        if name == "survey" and find_spec("lsdb") is None:
            print("survey: left as it is, because it needs LSDB, which takes Python 3.11 or newer")
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(read(name), Path(folder))
        print(f"{name}: {tidy(notebook):,} bytes of figures")
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def read(name: str) -> NotebookNode:
    """The notebook of a source, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}  # jupytext draws ids at random
    return notebook


def execute(notebook: NotebookNode, folder: Path, **environment: str) -> NotebookNode:
    """Run a notebook in a folder, in a kernel of this interpreter, and return it with its outputs.

    Args:
        notebook: is changed.
        folder: the kernel's working folder.
        environment: more variables of the kernel's environment.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!astroco` is this environment's
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    return client.execute(env={**os.environ, "PATH": path, **environment})


def tidy(notebook: NotebookNode) -> int:
    """Make figures small, and leave out what is of this machine alone; returns the bytes of all figures."""
    size = 0
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = SPEED.sub("", output.text).replace("\r", "")
                continue
            output.metadata = {}
            if output.output_type == "execute_result":
                output.execution_count = None
            if "image/png" in output.data:
                figure = shrink(base64.b64decode(output.data["image/png"]))
                size += len(figure)
                output.data["image/png"] = base64.b64encode(figure).decode()
    return size


def shrink(png: bytes) -> bytes:
    """A PNG with `COLOURS` colours, at most `WIDTH` pixels wide."""
    image, small = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.thumbnail((WIDTH, WIDTH))
    image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
