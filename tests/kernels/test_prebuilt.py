"""The libraries that a wheel brings: the one for this CPU is taken where it fits this PyTorch, and tells why not."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from astroco_fast import diagnosis, ops
from astroco_fast.kernels.cpu import build, native, prebuilt
from tests import wheels
from tests.kernels import small_library
from tests.kernels.small_library import no_compiling, numbers
from tests.test_install import ROOT, bare_environment, run

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or build.isas()[0] not in prebuilt.LEVELS or not build.compilers(),
    reason="needs Linux, an x86 CPU with AVX2 or more, and a C++ compiler",
)


@pytest.fixture
def installed(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installation that brings the small library for the CPU's best two instruction sets."""
    monkeypatch.setattr(build, "wish", None)
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "prebuilt")
    prebuilt.make(prebuilt.FOLDER, tuple(build.isas()[:2]))
    return prebuilt.FOLDER


def kernels_told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(ops, "_choice", None)
    return list(diagnosis._cpu_kernels())


def test_taken_before_any_compiler(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiling(monkeypatch)
    assert native.missing() is None
    assert numbers(3, 4) == [3, 4]
    best, cache = build.isas()[0], Path(os.environ["ASTROCO_CACHE"])
    assert native.library().path == installed / f"{best}.so"
    assert not cache.exists()
    (line,) = kernels_told(monkeypatch)
    assert line.startswith(f"kernels: for {best}, prebuilt by ")
    assert line.endswith(f" in {installed / best}.so")


def test_the_library_is_that_of_the_cpu(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiling(monkeypatch)
    lower = build.isas()[1:]
    monkeypatch.setattr(build, "isas", lambda: lower)
    assert native.library().path == installed / f"{lower[0]}.so"


def test_it_uses_pytorchs_threads_and_names_no_runtime(installed: Path) -> None:
    out = torch.zeros(3, dtype=torch.int64)
    small_library.call("team", out=out)
    assert out.tolist() == [torch.get_num_threads()] * 3
    assert b"libgomp" not in (installed / f"{build.isas()[0]}.so").read_bytes()


def compiled_instead(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Assert that the library was compiled here, for this reason, which the doctor tells."""
    assert native.missing() is None
    assert numbers(3, 4) == [3, 4]
    assert reason in native.library().unused
    compiled, why = kernels_told(monkeypatch)
    assert "compiled here by" in compiled
    assert why == f"not prebuilt: {native.library().unused}"


def test_an_installation_without_any(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "none")
    compiled_instead(monkeypatch, "this installation brings no compiled kernels")


def test_an_instruction_set_that_the_wheel_has_not(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "wish", "default")
    compiled_instead(monkeypatch, "no kernels compiled for default")


def test_sources_that_were_changed_since(installed: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The structs are read from the sources, so a library of others would read past them."""
    (sources / "part.h").write_text("// another")
    compiled_instead(monkeypatch, "not those that the installation's library was compiled from")


@pytest.fixture
def misfit(sources: Path) -> None:
    """Make the prebuilt libraries call a function that this PyTorch lacks."""
    lacking = 'extern "C" void not_in_this_torch();\nvoid here() { not_in_this_torch(); }\n'
    (sources / "main.cpp").write_text(f"{small_library.SOURCE}\n#ifdef ASTROCO_PREBUILT\n{lacking}#endif\n")


def test_a_pytorch_that_lacks_a_function(misfit: None, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.0")
    compiled_instead(monkeypatch, "does not fit 9.0: ")
    assert "undefined symbol: not_in_this_torch" in native.library().unused


def test_a_pytorch_that_lacks_a_function_and_no_compiler(
    misfit: None, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(RuntimeWarning, match="ops run in plain PyTorch on the CPU"):
        reason = native.missing() or ""
    assert "no C++ compiler" in reason
    assert "undefined symbol: not_in_this_torch" in reason


def test_made_on_linux_with_a_compiler_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compilers", list)
    with pytest.raises(build.BuildFailed, match=r"no C\+\+ compiler"):
        prebuilt.make(tmp_path)
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: "riscv64")
    with pytest.raises(build.BuildFailed, match="on Linux on x86-64 only"):
        prebuilt.make(tmp_path)


# --- The wheel ----------------------------------------------------------------------------------------------------

RUN = """
import json, sys, torch, astroco_fast as af
from astroco_fast import ops
from astroco_fast.kernels.cpu import native
torch.manual_seed(0)
x = torch.randn(3, 4, 50)
model = af.AstroCo.from_preset("tiny")
found = []
for precision in (torch.float32, torch.bfloat16):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        for _ in range(2):
            model.zero_grad()
            torch.manual_seed(1)
            y = model(*x)
            y.embedding.square().sum().backward()
            gradient = model.blocks[0].feed_forward.w_out.weight.grad
            found += [part.float().flatten().tolist() for part in (y.embedding, gradient)]
print(json.dumps({"library": str(native.library().path), "vectors": found}))
"""


@pytest.mark.slow
def test_the_wheel_runs_without_a_compiler_and_computes_the_same_bits(tmp_path: Path) -> None:
    """Compiled here by the same compiler, the library's results are equal bit for bit, forwards and backwards."""
    pytest.importorskip("auditwheel")
    (tmp_path / "work").mkdir()
    _, pure = wheels.pure(tmp_path / "work")
    wheel = wheels.platform(pure, tmp_path / "work")
    assert wheel.stat().st_size - pure.stat().st_size < 1e6
    assert "-py3-none-manylinux_2_" in wheel.name
    glibc = int(wheel.name.split("manylinux_2_")[1].split("_")[0])
    assert glibc <= 28
    names = {name.split("/prebuilt/")[1] for name in zipfile.ZipFile(wheel).namelist() if "/prebuilt/" in name}
    assert names - {""} == {"index.json", *(f"{level}.so" for level in prebuilt.LEVELS)}

    programs = bare_environment(tmp_path / "environment")
    run(programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    environment = {"PATH": str(programs), "ASTROCO_CPU_ISA": "", "ASTROCO_CACHE": str(tmp_path / "cache")}
    for level, capability in ((build.isas()[0], ""), ("avx2", "avx2")):
        environment["ATEN_CPU_CAPABILITY"] = capability
        told = run(programs / "python", "-m", "astroco_fast", "doctor", cwd=tmp_path, **environment)
        assert f"kernels: for {level}, prebuilt by " in told
        without = json.loads(run(programs / "python", "-c", RUN, cwd=tmp_path, **environment))
        assert without["library"].startswith(str(tmp_path / "environment"))
        assert not list((tmp_path / "cache").rglob("*.so"))
        here = environment | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        compiled = json.loads(run(sys.executable, "-c", RUN, cwd=tmp_path, **here))
        assert compiled["library"].startswith(str(tmp_path / "cache"))
        assert compiled["vectors"] == without["vectors"]
        for path in (tmp_path / "cache").rglob("*.so"):
            path.unlink()


@pytest.mark.slow
def test_make_wheels_needs_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("auditwheel")
    environment = os.environ | {"PATH": str(tmp_path), "CXX": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.wheels", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "make wheels: no C++ compiler\n"
