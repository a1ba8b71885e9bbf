"""The modules that `import astroco_fast` loads. Names are compared, because times depend on the machine."""

import subprocess
import sys

import torch

from astroco_fast.kernels.backend import constant_while_tracing

LISTED = """
import sys, torch
before = set(sys.modules)
import astroco_fast
astroco_fast.AstroCo
astroco_fast.set_backend
print(*sorted(set(sys.modules) - before))
"""


def test_the_encoder_brings_in_little_besides_torch() -> None:
    told = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    new = told.stdout.split()
    packages = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
    assert packages <= {"astroco_fast", "einops", "safetensors"}
    # torch._dynamo, which decorators of torch.compiler import, takes longer to load than torch itself. No kernel is
    # needed either.
    assert not [name for name in new if name.startswith("torch.") or ".kernels.triton." in name]


def test_the_mark_is_the_one_that_torch_sets() -> None:
    """`constant_while_tracing` marks a function as torch's own decorator does, without importing torch._dynamo."""

    def function() -> None: ...

    def other() -> None: ...

    constant_while_tracing(function)
    torch.compiler.assume_constant_result(other)
    assert vars(function) == vars(other) != {}
