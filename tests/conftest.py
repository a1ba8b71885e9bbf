"""Settings that must precede all imports of the package."""

import gc
import os
from pathlib import Path

import pytest

# Test processes, and the ranks that they start, run side by side: one thread each, or they wait for one another. Runs
# are compared bit for bit, and sums depend on the number of threads. OpenMP reads this when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

gc.disable()  # until the tests are collected: it took a fifth of the time of their imports

# Without a GPU, kernels run in Triton's interpreter; triton reads this once, when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tests, and the processes that they start, run the reference unless they choose another backend. The instruction set
# for the CPU's kernels moves to a variable of another name, which pytest-xdist's processes inherit.
CPU_ISA = os.environ.setdefault("ASTROCO_TEST_CPU_ISA", os.environ.get("ASTROCO_CPU_ISA", "")) or None
os.environ["ASTROCO_CPU_ISA"] = "none"


def pytest_collection_finish() -> None:
    """Collect garbage again, but never look through what the modules made: a million objects, which all stay."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures as empty files, for tests of what is drawn: rendering takes most of the time."""
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **options: Path(path).touch())


@pytest.fixture
def fresh_selfcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reset the self-check's verdicts and warnings, and shorten its windows; return the file of verdicts."""
    from astroco_fast import selfcheck

    monkeypatch.setenv("ASTROCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selfcheck, "enabled", True)
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setattr(selfcheck, "_warned", set())
    for lengths in ("LENGTHS", "CPU_LENGTHS"):
        monkeypatch.setattr(selfcheck, lengths, (9, 0, 5, 1))
    return tmp_path / "cache" / "selfcheck.json"
