"""The names of kernels in a profiler: one each, and none that says less than which op it belongs to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]

# This script prints, for every kernel that the ops launch, its function, its name, and its key in Triton's cache. It
# compiles some and prints their symbols, too. It runs in its own process, because interpreted kernels have neither.
SCRIPT = """
import json, re
from types import SimpleNamespace
from astroco_fast import ops
from bench.audit.binary import compiled, disassembled
from bench.audit.launches import kernels

found, symbols = [], {}
for kernel in {kernel.key: kernel for op in ops.OPS for kernel in kernels("sm_90", "S", "bf16", op)}.values():
    name = kernel.function.repr(SimpleNamespace(constants=kernel.constants))
    found.append((kernel.name, name, kernel.key))
    if kernel.name in ("loss._forward_kernel", "mix._forward_kernel"):
        binary = compiled(kernel)
        symbols[name] = [binary.metadata.name, *re.findall(r"Function : (\\w+)", disassembled(binary.asm["cubin"])[1])]
print(json.dumps([found, symbols]))
"""


def test_a_profiler_can_tell_kernels_apart(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, symbols = json.loads(done.stdout)
    functions: dict[str, str] = {}
    for function, name, key in found:
        assert name.startswith("astroco_"), function
        assert functions.setdefault(name, function) == function, f"{name} is the name of two functions"
        assert name not in key  # a name takes no part in caching: kernels are compiled no more often for it
    names = set(functions)
    assert {name for name in names if "gated_" in name} == {
        "astroco_gated_linear_forward_gelu",
        *(f"astroco_gated_rows_{form}" for form in ("forward_glu", "backward_glu", "backward_gelu")),
    }
    assert {"astroco_linear_rows_forward", "astroco_linear_onto_backward", "astroco_depthwise_backward_taps"} < names
    assert {"astroco_residual_norm_forward", "astroco_residual_norm_forward_dropout"} < names
    assert set(symbols) == {"astroco_masked_loss_forward", "astroco_mix_forward_pool"}
    assert symbols == {name: [name, name] for name in symbols}
