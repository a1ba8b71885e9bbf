"""How the CPU kernels' library is compiled: compilers, instruction sets, and the reference where it cannot be."""

import platform
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

import astroco_fast as af
from astroco_fast import kernels, ops, verdicts
from astroco_fast.kernels import cpu as backend
from astroco_fast.kernels.cpu import build, native
from tests.kernels import small_library

pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")

# --- Machines without a library -----------------------------------------------------------------------------------


def assert_reference(reason: str) -> None:
    """Assert that ops run on the reference, with one warning that gives the reason."""
    with pytest.warns(RuntimeWarning, match="ops run in plain PyTorch on the CPU") as caught:
        assert reason in (native.missing() or "")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = ops.select("feed_forward", torch.device("cpu"), torch.float32, False)
        assert selection.backend == "reference"
        assert reason in selection.reasons["cpu"]
        model = af.AstroCo.from_preset("tiny").eval()
        assert model(*torch.randn(3, 2, 20)).embedding.isfinite().all()


def test_no_compiler(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert_reference("apt install g++" if sys.platform != "darwin" else "xcode-select --install")


def test_sources_that_do_not_compile(sources: Path) -> None:
    (sources / "main.cpp").write_text("int main() { return nothing; }\n")
    assert_reference("error:")


def test_undefined_symbol_is_a_link_error(sources: Path) -> None:
    (sources / "main.cpp").write_text("void absent();\nvoid here() { absent(); }\n")
    assert_reference("absent")


@pytest.mark.parametrize("wish", ["false", "no-such-compiler", "'"])
def test_a_compiler_that_does_not_work_gives_way_to_another(
    wish: str, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", wish)
    assert build.library(sources).path is not None


def posing(tmp_path: Path, words: str) -> tuple[str, ...]:
    """A compiler whose version is the output of these words, a shell's `printf`; it compiles as the first one does."""
    (compiler, *_) = build.compilers()
    script = tmp_path / "posing"
    script.write_text(f'#!/bin/sh\n[ "$*" = --version ] && {words} && exit\nexec {" ".join(compiler)} "$@"\n')
    script.chmod(0o755)
    return (str(script),)


@pytest.mark.skipif(sys.platform == "darwin", reason="torch brings LLVM's OpenMP")
@pytest.mark.parametrize("another", [False, True])
def test_clang_where_torch_brings_gccs_openmp(
    another: bool, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clang's code would call functions that GCC's OpenMP does not have."""
    clang, found = posing(tmp_path, "printf 'Debian clang version 19.1\n'"), build.compilers()
    monkeypatch.setattr(build, "compilers", lambda: [clang, *found] if another else [clang])
    monkeypatch.setattr(build, "openmp", lambda: tmp_path / "libgomp-0123.so.1")
    if another:
        monkeypatch.setattr(build, "_open", lambda plan: plan)
        assert build.library(sources).compiler == found[0]  # type: ignore[attr-defined]
    else:
        assert_reference("PyTorch brings GCC's (libgomp-0123.so.1): apt install g++")


def test_a_compilers_version_is_read_in_english(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same library then serves every locale. The version may contain any bytes."""
    version = "printf 'g++ \\351 12.2 %s\n' \"$LC_ALL\""
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    assert build.plan(sources, build.wanted()[0], posing(tmp_path, version)).version == "g++ \ufffd 12.2 C"


@pytest.mark.skipif("avx512_bf16" not in build.isas(), reason="a CPU without AVX512-BF16")
def test_a_compiler_without_amx(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An older compiler makes a library for the next instruction set, in every process without a word about AMX."""
    (compiler, *_) = build.compilers()
    old = tmp_path / "old"
    refusal = 'case "$*" in *-mamx*) echo "error: unrecognized -mamx-tile" >&2; exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{refusal}\nexec {" ".join(compiler)} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setattr(build, "compilers", lambda: [(str(old),)])
    monkeypatch.setattr(build, "isas", lambda: ["amx_bf16", "avx512_bf16", "avx512"])
    monkeypatch.setattr(build, "wish", None)
    for told in (1, 0):  # the second finds the library in the cache
        assert build.library(sources).isa.name == "avx512_bf16"
        assert capfd.readouterr().err.count("compiling") == told
    monkeypatch.setattr(build, "wish", "amx_bf16")
    with pytest.raises(build.BuildFailed, match="unrecognized -mamx-tile"):
        build.library(sources)


def test_cxx_comes_first_with_its_arguments(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (compiler, *_) = build.compilers()
    (sources / "main.cpp").write_text(f"#ifndef HERE\n#error HERE is absent\n#endif\n{small_library.SOURCE}")
    with pytest.raises(build.BuildFailed, match="HERE is absent"):
        build.library(sources)
    monkeypatch.setenv("CXX", f"{compiler[0]} -DHERE=1")
    assert build.library(sources).path is not None


@pytest.mark.parametrize(
    ("wish", "told"), [("none", "switched off"), ("avx10", "ASTROCO_CPU_ISA=avx10: this CPU has ")]
)
def test_an_instruction_set_that_is_not_there(
    wish: str, told: str, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "wish", wish)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert told in (native.missing() or "")


@pytest.mark.parametrize(
    ("machine", "capability", "products", "found"),
    [
        ("x86_64", "AVX512", "amx", ["amx_bf16", "avx512_bf16", "avx512", "avx2", "default"]),
        ("x86_64", "AVX512", "bf16", ["avx512_bf16", "avx512", "avx2", "default"]),
        ("x86_64", "AVX512", "", ["avx512", "avx2", "default"]),
        ("x86_64", "AVX2", "amx", ["avx2", "default"]),  # ATEN_CPU_CAPABILITY=avx2 counts
        ("AMD64", "DEFAULT", "", ["default"]),
        ("aarch64", "SVE256", "", ["neon", "default"]),
        ("arm64", "DEFAULT", "", ["neon", "default"]),
        ("ppc64le", "VSX", "", ["default"]),
    ],
)
def test_instruction_sets_of_a_cpu(
    machine: str, capability: str, products: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products in ("bf16", "amx"), raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: products == "amx", raising=False)
    monkeypatch.setattr(build, "wish", None)
    assert build.isas() == found
    if found == ["default"]:
        with pytest.raises(build.NoLibrary, match="needs a CPU with"):
            build.wanted()
    else:
        assert build.wanted()[0].name == found[0]


# --- The kernels themselves ---------------------------------------------------------------------------------------


def test_versions_tell_what_made_the_kernels(cpu: str) -> None:
    compiler, isa, library = backend.Cpu().versions()
    assert re.search(r"\d", compiler)
    assert isa in build.ISAS
    assert native.library().key in library


@pytest.mark.slow
@pytest.mark.parametrize("isa", build.isas()[1:])
def test_the_kernels_compile_for_lesser_cpus(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources are only checked. The test of the structs' sizes, in test_cpu_arguments.py, checks them for AVX2."""
    monkeypatch.setattr(build, "wish", isa)
    (compiler, *_) = build.compilers()
    plan = build.plan(build.SOURCES, build.wanted()[0], compiler)
    build._run(*plan.compiler, *plan.compile, "-fsyntax-only", str(plan.source))


@pytest.mark.parametrize(("module", "name"), [(kernels, "shared.py"), (backend, "csrc/part.h")])
def test_a_verdict_of_the_self_check_holds_for_these_sources_only(
    module: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sources of the kernels, and of the part that backends share, count."""
    before = verdicts._sources(backend.Cpu())
    copy = shutil.copytree(Path(module.__file__ or "").parent, tmp_path / "copy")
    monkeypatch.setattr(module, "__file__", str(copy / "__init__.py"))
    assert verdicts._sources(backend.Cpu()) == before
    (copy / name).write_text("more")
    assert verdicts._sources(backend.Cpu()) != before
