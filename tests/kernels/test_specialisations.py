"""A new batch never recompiles a kernel: numbers of windows or points, and dropout, do not specialise kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]

# This script prints, by op and batch, the keys under which Triton would cache the compiled kernels. It runs in its own
# process, because interpreted kernels have no keys. N is 1, odd, and multiples of 8 and 16, which Triton distinguishes.
SCRIPT = """
import json, sys
from astroco_fast import ops
from bench.audit.launches import Batch, kernels, model_of

batches = {
    "packed": Batch((40, 21, 0), 40, capacity=72),
    "another capacity": Batch((40, 21, 0), 40, capacity=77),
    "one point": Batch((1,), 1),
    "one window": Batch((33,), 33),
    "full": Batch((64, 64), 64),
    "padded": Batch((40, 21, 0), 40, "padded"),
    "padded, odd": Batch((31, 1, 5), 31, "padded"),
    "long": Batch((300, 2), 300),
}
found = {}
arch, preset, dtype = sys.argv[1:]
for op in ops.OPS:
    for name, batch in batches.items():
        found[f"{op}, {name}"] = sorted(kernel.key for kernel in kernels(arch, preset, dtype, op, batch))
    for salt in (1, 16, 12345):
        for module in model_of(preset).modules():
            if hasattr(module, "salt"):
                module.salt = salt
        found[f"{op}, salt {salt}"] = sorted(kernel.key for kernel in kernels(arch, preset, dtype, op))
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("arch", "preset", "dtype"),
    [
        ("sm_90", "S", "bf16"),
        pytest.param("gfx942", "L", "bf16", marks=pytest.mark.slow),
        pytest.param("sm_86", "S", "fp32", marks=pytest.mark.slow),
        pytest.param("sm_100", "L", "fp16", marks=pytest.mark.slow),
        pytest.param("sm_80", "tiny", "bf16", marks=pytest.mark.slow),
    ],
)
def test_batches_share_their_kernels(arch: str, preset: str, dtype: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, arch, preset, dtype]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first: dict[str, tuple[str, list[str]]] = {}
    for name, keys in found.items():
        op = name.partition(",")[0]
        assert keys, f"{name}: nothing is launched"
        before, expected = first.setdefault(op, (name, keys))
        assert keys == expected, f"{name} launches other kernels than {before}: {sorted(set(keys) ^ set(expected))}"
