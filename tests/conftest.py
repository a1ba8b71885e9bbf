"""Settings that must stand before anything is imported."""

import os
from pathlib import Path

import pytest
import torch

# Without a GPU, kernels run in Triton's interpreter; triton reads this once, when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tests mean the reference unless they ask for another backend, in processes that they start too. What the CPU's kernels
# are to be built for is kept under another name: test processes of pytest-xdist inherit what stands here.
CPU_ISA = os.environ.setdefault("ASTROCO_TEST_CPU_ISA", os.environ.get("ASTROCO_CPU_ISA", "")) or None
os.environ["ASTROCO_CPU_ISA"] = "none"


@pytest.fixture
def fresh_selfcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Verdicts and warnings of the self-check start anew, in small windows; gives the file where verdicts are kept."""
    from astroco_fast import selfcheck

    monkeypatch.setenv("ASTROCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selfcheck, "enabled", True)
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setattr(selfcheck, "_warned", set())
    for lengths in ("LENGTHS", "CPU_LENGTHS"):
        monkeypatch.setattr(selfcheck, lengths, (9, 0, 5, 1))
    return tmp_path / "cache" / "selfcheck.json"
