"""The feed-forward's two forms of training, which compute both up-projections again or keep them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from astroco_fast import Layout
from astroco_fast.reference.sublayers import FeedForward
from tests.kernels import harness
from tests.kernels.harness import Case
from tests.kernels.test_sublayers import check

pytest.importorskip("triton")

from astroco_fast.kernels.triton import feed_forward as sublayer

CASES = [
    Case(33, 276, "packed", torch.bfloat16, "training", "contiguous"),
    Case(33, 64, "padded", torch.float32, "training", "sliced"),
    Case(32, 64, "empty", torch.float16, "evaluation", "expanded"),
    Case(31, 64, "packed", torch.float32, "inference", "contiguous"),
]


@pytest.mark.parametrize("case", CASES, ids=harness.name)
def test_form_that_keeps(case: Case, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_sublayer` has the default form."""
    monkeypatch.setattr(sublayer, "KEEP", True)
    check("feed_forward", case, triton, device)


@pytest.mark.parametrize("keep", [False, True])
def test_tensors_saved_for_backward(
    keep: bool, triton: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backward keeps rows of x and of the normalised sum, two numbers a row, and with `KEEP` both up-projections."""
    monkeypatch.setattr(sublayer, "KEEP", keep)
    rows, width = 7, 64
    module = FeedForward(width, 4, 0.1).to(device)
    layout = Layout.packed(torch.tensor([rows]), rows, device)
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
        sublayer.feed_forward(module, torch.randn(rows, width, device=device, requires_grad=True), layout)
    kept = sum(x[0].numel() for x in found if x.shape[:1] == (rows,) and x.dim() == 2)
    assert kept == 2 * width + 2 + (8 * width if keep else 0)


def test_environment() -> None:
    """The variable is read on import: in children of one process that has imported PyTorch and Triton."""
    script = """
import os, torch, triton.language
for value in (None, "0", "1"):
    if os.fork() == 0:
        os.environ.pop("ASTROCO_TRITON_KEEP", None)
        os.environ.update({} if value is None else {"ASTROCO_TRITON_KEEP": value})
        from astroco_fast.kernels.triton.feed_forward import KEEP
        print(KEEP, flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


@pytest.mark.slow
def test_keeping_kernels_keep_to_the_bars(tmp_path: Path) -> None:
    """The audit's own tests run the default form only."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"ASTROCO_TRITON_KEEP": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "bench.audit", "--op", "feed_forward"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
