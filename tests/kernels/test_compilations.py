"""What Triton would compile of the kernels: each has a name of its own, and a new batch never recompiles one."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]

# This script prints the function, the name and the key in Triton's cache of every kernel that the ops launch; the
# symbols of some that it compiles; and the keys by op and batch. It runs in its own process, because interpreted
# kernels have none of these. N is 1, odd, and multiples of 8 and 16, which Triton distinguishes.
SCRIPT = """
import json, re, sys
from types import SimpleNamespace
from astroco_fast import ops
from bench.audit.binary import compiled, disassembled
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
arch, preset, dtype, *to_compile = sys.argv[1:]
names, symbols, keys = [], {}, {}
for kernel in {kernel.key: kernel for op in ops.OPS for kernel in kernels(arch, preset, dtype, op)}.values():
    name = kernel.function.repr(SimpleNamespace(constants=kernel.constants))
    names.append((kernel.name, name, kernel.key))
    if kernel.name in to_compile:
        binary = compiled(kernel)
        symbols[name] = [binary.metadata.name, *re.findall(r"Function : (\\w+)", disassembled(binary.asm["cubin"])[1])]
for op in ops.OPS:
    for name, batch in batches.items():
        keys[f"{op}, {name}"] = sorted(kernel.key for kernel in kernels(arch, preset, dtype, op, batch))
    for salt in (1, 16, 12345):
        for module in model_of(preset).modules():
            if hasattr(module, "salt"):
                module.salt = salt
        keys[f"{op}, salt {salt}"] = sorted(kernel.key for kernel in kernels(arch, preset, dtype, op))
print(json.dumps({"names": names, "symbols": symbols, "keys": keys}))
"""


@cache
def told(*arguments: str) -> dict[str, Any]:
    """What the script prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    with TemporaryDirectory() as empty:
        environment["TRITON_CACHE_DIR"] = empty
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DEFAULT = ("sm_90", "S", "bf16")
COMPILED = ("loss._forward_kernel", "mix._forward_kernel")


def test_a_profiler_can_tell_kernels_apart() -> None:
    """One name for each kernel, and none that says less than which op it belongs to."""
    found, symbols = (told(*DEFAULT, *COMPILED)[what] for what in ("names", "symbols"))
    functions: dict[str, str] = {}
    for function, name, key in found:
        assert name.startswith("astroco_"), function
        assert functions.setdefault(name, function) == function, f"{name} is the name of two functions"
        assert name not in key  # a name takes no part in caching: kernels are compiled no more often for it
    names = set(functions)
    assert {name for name in names if "gated_" in name} == {
        *(f"astroco_gated_rows_{form}" for form in ("forward_glu", "forward_gelu", "backward_glu", "backward_gelu")),
    }
    assert {"astroco_linear_rows_forward", "astroco_linear_onto_backward", "astroco_depthwise_backward_taps"} < names
    assert {"astroco_linear_onto_backward_mix"} < names
    assert {"astroco_residual_norm_forward", "astroco_residual_norm_forward_dropout"} < names
    assert set(symbols) == {"astroco_masked_loss_forward", "astroco_mix_forward_pool"}
    assert symbols == {name: [name, name] for name in symbols}


@pytest.mark.parametrize(
    ("arch", "preset", "dtype"),
    [
        DEFAULT,
        pytest.param("gfx942", "L", "bf16", marks=pytest.mark.slow),
        pytest.param("sm_86", "S", "fp32", marks=pytest.mark.slow),
        pytest.param("sm_100", "L", "fp16", marks=pytest.mark.slow),
        pytest.param("sm_80", "tiny", "bf16", marks=pytest.mark.slow),
    ],
)
def test_batches_share_their_kernels(arch: str, preset: str, dtype: str) -> None:
    found = told(arch, preset, dtype, *(COMPILED if (arch, preset, dtype) == DEFAULT else ()))["keys"]
    first: dict[str, tuple[str, list[str]]] = {}
    for name, keys in found.items():
        op = name.partition(",")[0]
        assert keys, f"{name}: nothing is launched"
        before, expected = first.setdefault(op, (name, keys))
        assert keys == expected, f"{name} launches other kernels than {before}: {sorted(set(keys) ^ set(expected))}"
