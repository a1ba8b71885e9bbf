"""Calls of the CPU kernels' library: arguments, threads, and their cost."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from astroco_fast.kernels.cpu import build, native
from astroco_fast.kernels.cpu.arguments import Kernel, structs
from tests.conftest import CPU_ISA
from tests.kernels.small_library import call, numbers

HERE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")


def test_arguments(sources: Path) -> None:
    x, y = torch.arange(5.0), nn.Parameter(torch.arange(5.0) * 10)
    out = torch.zeros(6, dtype=torch.float64)
    call("sum", out=out, x=x, y=y, n=3, truth=True, factor=0.1, none=None)
    assert out.tolist() == [torch.get_num_threads(), 3, 30, 3, 0.1, 1]
    whole = torch.zeros(1, dtype=torch.int64)
    call("sum", none=whole, out=out, x=None, y=y, n=4, truth=False, factor=2)  # a whole number for a float
    assert out.tolist() == [torch.get_num_threads(), -1, 40, 4, 2, 0]
    call("sum", out=out, x=torch.empty(0), y=None, n=0, truth=False, factor=0.0, none=None)
    assert out[1].item() == -1  # a tensor without elements is null, too
    assert numbers(-(2**63), True) == [-(2**63), 1]
    with pytest.raises(TypeError, match="int"):
        numbers(0.5, 1)
    with pytest.raises(ValueError, match="exported_absent"):
        Kernel("exported_absent", "TeamArguments", ["out"])((whole, 1))


def test_refused_arguments(sources: Path) -> None:
    values: dict[str, object] = {"x": torch.zeros(5), "y": None, "n": 0, "truth": 0, "factor": 0.0, "none": None}
    out = torch.zeros(6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"exported_sum: out must be torch\.float64, contiguous, got torch\.float32"):
        call("sum", out=out.float(), **values)
    with pytest.raises(ValueError, match=r"exported_sum: x must be .*, contiguous, got .* with strides \(2,\)"):
        call("sum", out=out, **(values | {"x": torch.zeros(10)[::2]}))
    with pytest.raises(TypeError, match="SumArguments: nothing gives the field x"):
        call("sum", out=out)
    with pytest.raises(TypeError, match="TeamArguments has no field for more"):
        call("team", out=out, more=0)


@pytest.mark.parametrize(
    "declaration", ["int32_t n;", "int64_t n, m;", "float p;", "T size;", "void* x;", "float*** x;", "int64_t f();"]
)
def test_declarations_that_are_no_argument(tmp_path: Path, declaration: str) -> None:
    (tmp_path / "some.h").write_text(f"struct SomeArguments {{\n  int64_t threads;  // fine\n  {declaration}\n}};\n")
    with pytest.raises(ValueError, match=r"some\.h: SomeArguments declares"):
        structs(tmp_path)


def test_native_calls_release_the_gil(sources: Path) -> None:
    """A call can wait for a value that another thread writes."""
    flag = torch.zeros(2, dtype=torch.int64)
    native.library()
    other = threading.Timer(0.05, lambda: flag.__setitem__(0, 7))
    other.start()
    call("wait", out=flag)
    other.join()
    assert flag.tolist() == [7, 7]


def test_a_call_is_cheap(sources: Path) -> None:
    flags = torch.ones(2, dtype=torch.int64)
    out, x = torch.zeros(6, dtype=torch.float64), torch.zeros(5)
    kernel = Kernel("exported_sum", "SumArguments", ["out", "x", "y", "n", "truth", "factor", "none"])

    def seconds() -> float:
        start = time.thread_time()
        for _ in range(1000):
            kernel((out, x, x, 3, True, 0.1, flags, 1))
        return time.thread_time() - start

    assert min(seconds() for _ in range(5)) < 0.05  # 50 microseconds a call, 20 times the usual time


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_which_is_torchs(sources: Path) -> None:
    script = (
        "import sys, re, pathlib, torch\n"
        "from astroco_fast.kernels.cpu import build\n"
        "from astroco_fast.kernels.cpu.arguments import Kernel\n"
        "build.SOURCES = pathlib.Path(sys.argv[1])\n"
        "def runtimes():\n"
        "    maps = pathlib.Path('/proc/self/maps').read_text()\n"
        "    return sorted(set(re.findall(r'/\\S*lib(?:gomp|i?omp)\\S*', maps)))\n"
        "before = runtimes()\n"
        "out = torch.zeros(3, dtype=torch.int64)\n"
        "kernel = Kernel('exported_team', 'TeamArguments', ['out'])\n"
        "kernel((out, torch.get_num_threads()))\n"
        "print(before == runtimes(), len(before), before == [str(build.openmp())])\n"
        "for threads in (1, 3):\n"
        "    torch.set_num_threads(threads)\n"
        "    kernel((out, threads))\n"
        "    print(out.tolist())\n"
    )
    environment = os.environ | {"ASTROCO_CPU_ISA": CPU_ISA or ""}
    told = subprocess.run(
        [sys.executable, "-c", script, str(sources)], capture_output=True, text=True, cwd=HERE, env=environment
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == ["True 1 True", "[1, 1, 1]", "[3, 3, 3]"]
