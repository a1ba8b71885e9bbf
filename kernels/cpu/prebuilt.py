"""Libraries of the kernels that are installed with the package, one for each instruction set of x86 CPUs.

`make wheels` compiles them into a wheel for Linux, by the plans that `build` follows at first use elsewhere.

They are bound to no version of Python, and to PyTorch by the names of a few functions only: one of Sleef's and one of
c10's, and those of the OpenMP runtime, which has to be PyTorch's. A library names libtorch_cpu and libc10 as the files
that have them, which are loaded by then. It names no file of the runtime, whose name differs between PyTorch's builds:
the dynamic linker goes on to what libtorch_cpu itself needs. It looks for every function when it loads a library, so
that a PyTorch without one of them is found out before any kernel runs.

A library is trusted as the package's Python is: both lie in the same folder, and no other folder is looked into.
"""

import ctypes
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from astroco_fast.kernels.cpu import build

FOLDER = Path(__file__).parent / "prebuilt"
LEVELS = ("amx_bf16", "avx512_bf16", "avx512", "avx2")
_INDEX = "index.json"  # what the libraries are made of, and by what


class Unusable(Exception):
    """The package has no library that can be used here. The message says why in one line."""


def library(sources: Path, isa: build.Isa) -> build.Library:
    """Load the package's library for an instruction set.

    Args:
        sources: the folder from which the library must have been made; the structs that it takes are read there.
        isa: the instruction set.

    Raises:
        Unusable: the package has none, or it cannot be loaded with this PyTorch.
    """
    index = FOLDER / _INDEX
    if not index.is_file():
        raise Unusable("this installation brings no compiled kernels")
    told = json.loads(index.read_text())
    if isa.name not in told["libraries"]:
        raise Unusable(f"this installation brings no kernels compiled for {isa.name}")
    if told["sources"] != build.sources_key(sources):
        raise Unusable("the kernels' sources are not those that the installation's library was compiled from")
    path = FOLDER / f"{isa.name}.so"
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        made = f"compiled with PyTorch {told['torch']}"
        raise Unusable(f"the installation's library, {made}, does not fit {torch.__version__}: {error}") from error
    return build.Library(handle, isa, told["compiler"], told["libraries"][isa.name], path)


def make(folder: Path, levels: tuple[str, ...] = LEVELS) -> None:
    """Compile a library for each of these instruction sets into a folder, by the first compiler there is.

    Raises:
        BuildFailed: there is no compiler, it cannot compile one of them, or this is another system than Linux on x86.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise build.BuildFailed("libraries are prebuilt on Linux on x86-64 only")
    if not (found := build.compilers()):
        raise build.BuildFailed("no C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    plans = [build.plan(build.SOURCES, build.ISAS[level], found[0], prebuilt=True) for level in levels]
    for plan in plans:
        with tempfile.TemporaryDirectory(prefix="astroco_fast-") as scratch:
            shutil.copy(build.compile(plan, Path(scratch)), folder / f"{plan.isa.name}.so")
    index = {
        "torch": torch.__version__,
        "compiler": plans[0].version,
        "sources": build.sources_key(build.SOURCES),
        "libraries": {plan.isa.name: plan.key for plan in plans},
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")
