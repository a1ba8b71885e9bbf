"""The CPU kernels' library: compiled once, cached whole, and replaced by the reference where there is no compiler."""

import ctypes
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest
import torch
from torch import nn

import astroco_fast as af
from astroco_fast import kernels, ops, verdicts
from astroco_fast.files import sha256
from astroco_fast.kernels import cpu as backend
from astroco_fast.kernels.cpu import build, native
from astroco_fast.kernels.cpu.arguments import Kernel, structs
from tests.conftest import CPU_ISA

HERE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")

SOURCE = """
#include <omp.h>
#include <unistd.h>
#include <cstdint>

#include "arguments.h"

static void sum_all(const SumArguments& a) {
  double* out = a.out;
  out[0] = double(a.threads), out[1] = a.x ? a.x[a.n] : -1, out[2] = a.y ? a.y[a.n] : -1, out[3] = double(a.n);
  out[4] = a.factor, out[5] = a.none == nullptr;
}
static void whole(const WholeArguments& a) { a.out[0] = a.one, a.out[1] = a.other; }
static void team(const TeamArguments& a) {
  int64_t all = 0;
#pragma omp parallel num_threads(a.threads) reduction(+ : all)
  all += 1;
  a.out[0] = a.threads, a.out[1] = omp_get_max_threads(), a.out[2] = all;
}
static void wait_for(const TeamArguments& a) {
  volatile int64_t* flag = a.out;
  for (int i = 0; i < 3000 && !*flag; ++i) usleep(1000);
  flag[1] = *flag;
}
#define EXPORT(name, function) \\
  extern "C" __attribute__((visibility("default"))) constexpr auto* const name = &function;
EXPORT(exported_sum, sum_all)
EXPORT(exported_whole, whole)
EXPORT(exported_team, team)
EXPORT(exported_wait, wait_for)
"""

ARGUMENTS = """
struct SumArguments {
  int64_t threads;
  double* out;
  const float* x;  // not all; of it
  const float* y;
  int64_t n;
  int64_t truth;
  double factor;
  const int64_t* none;
};

struct WholeArguments {
  int64_t threads;
  int64_t* out;
  int64_t one;
  int64_t other;
};

struct TeamArguments {
  int64_t threads;
  int64_t* out;
};
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources that compile quickly, unknown to this process and to the cache."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "main.cpp").write_text(SOURCE)
    (folder / "arguments.h").write_text(ARGUMENTS)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "wish", CPU_ISA)
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setenv("ASTROCO_CACHE", str(tmp_path / "cache"))
    return folder


def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(plan: build.Plan, scratch: Path) -> Path:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", compile)


def call(name: str, **values: object) -> None:
    """Call `exported_<name>` with these arguments."""
    struct = "TeamArguments" if name == "wait" else f"{name.capitalize()}Arguments"
    Kernel(f"exported_{name}", struct, list(values))((*values.values(), torch.get_num_threads()))


def numbers(one: object, other: object) -> list[int]:
    """The two whole numbers as C++ reads them."""
    out = torch.zeros(2, dtype=torch.int64)
    call("whole", out=out, one=one, other=other)
    return out.tolist()


# --- The cache on disk --------------------------------------------------------------------------------------------


def test_compiled_once_and_kept(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = build.library(sources)
    assert capfd.readouterr().err == "astroco_fast: compiling CPU kernels (once, a few seconds) ...\n"
    with monkeypatch.context() as patch:
        no_compiling(patch)
        again = build.library(sources)
    assert again.path == first.path
    assert first.path is not None
    assert capfd.readouterr().err == ""
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_library_is_compiled_anew_when_an_input_changes(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [build.library(sources).path]
    (sources / "part.h").write_text("// a header")
    made.append(build.library(sources).path)
    monkeypatch.setattr(torch, "__version__", "0.0")
    made.append(build.library(sources).path)
    monkeypatch.setattr(build, "wish", "default")
    made.append(build.library(sources).path)
    assert len(set(made)) == 4


@pytest.mark.parametrize("share", [0.5, 0.0, None], ids=["cut", "empty", "gone"])
def test_a_harmed_file_is_replaced(share: float | None, sources: Path) -> None:
    path = build.library(sources).path
    assert path is not None
    whole = path.read_bytes()
    path.unlink()  # not overwritten, because this process has the old file in memory
    if share is not None:
        path.write_bytes(whole[: int(share * len(whole))])
    assert build.library(sources).path == path
    assert path.read_bytes() == whole


def test_a_file_of_another_content_than_its_name_says_is_not_loaded(sources: Path) -> None:
    """The file could be loaded: it is a library followed by other bytes."""
    first = build.library(sources)
    assert first.path is not None
    other = first.path.with_name(f"{first.plan.key}-0000.so")
    other.write_bytes(first.path.read_bytes() + b"more")
    other.chmod(0o700)
    ctypes.CDLL(str(other))
    assert build.library(sources).path == first.path


def test_a_file_that_cannot_be_loaded_does_not_hide_another(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that cannot be loaded has a right name, which comes first."""
    first = build.library(sources)
    assert first.path is not None
    no_compiling(monkeypatch)
    for number in range(10000):
        other = first.path.with_name("other")
        other.write_text(f"not a library {number}")
        if (name := build._name(sha256(other), first.plan)) < first.path.name:
            other.chmod(0o700)
            other.rename(first.path.with_name(name))
            break
    assert build.library(sources).path == first.path


def given_away(path: Path) -> None:
    """Give a file or folder to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("whose", ["group", "others", "another user"])
def test_a_library_that_somebody_else_may_have_written_is_not_loaded(
    whose: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file could be forged, because its name holds the hash of its content, whatever that is."""
    log = counting(tmp_path, monkeypatch)
    path = build.library(sources).path
    assert path is not None
    if whose == "another user":
        given_away(path)
    else:
        path.chmod(0o720 if whose == "group" else 0o702)
    build.library(sources)
    assert log.read_text().split() == ["one", "one"]
    build.library(sources)  # it was replaced
    assert log.read_text().split() == ["one", "one"]


def test_the_cache_folder_is_the_users_own(sources: Path, tmp_path: Path) -> None:
    """Only the user can write to the folder, even if the umask or the folder's old permissions let others write."""
    before = os.umask(0)
    try:
        path = build.library(sources).path
    finally:
        os.umask(before)
    assert path is not None
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.stat().st_mode & 0o022
    path.parent.chmod(0o777)
    assert build.library(sources).path == path
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_another_users_cache_folder_is_not_used(sources: Path) -> None:
    path = build.library(sources).path
    assert path is not None
    given_away(path.parent)
    found = build.library(sources)
    assert found.path is None
    assert "belongs to another user" in found.unkept
    assert [kept.name for kept in path.parent.iterdir()] == [path.name]


def test_a_folder_below_one_that_others_can_write_to_is_not_used(sources: Path, tmp_path: Path) -> None:
    """Another user could put another folder in its place, unless the folder above is sticky, as /tmp is."""
    path = build.library(sources).path
    assert path is not None
    above = tmp_path / "cache"
    above.chmod(0o777)
    found = build.library(sources)
    assert found.path is None
    assert f"other users can write to {above}" in found.unkept
    above.chmod(0o1777)
    assert build.library(sources).path == path
    given_away(above)
    assert build.library(sources).path is None


def test_a_folder_that_is_swapped_after_the_check_is_not_loaded_from(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is the file that was opened and hashed, not the one that has its name by then."""
    library = build.library(sources)
    path = library.path
    assert path is not None
    content, digest = path.read_bytes(), build.sha256_of
    loaded: list[bytes] = []

    def swapped(file: IO[bytes]) -> str:
        told = digest(file)
        path.parent.rename(tmp_path / "aside")
        path.parent.mkdir(mode=0o700)
        path.write_bytes(b"another library")
        return told

    def noting(name: str) -> object:
        loaded.append(Path(name).read_bytes())
        return object()

    monkeypatch.setattr(build, "sha256_of", swapped)
    monkeypatch.setattr(ctypes, "CDLL", noting)
    build._load(path, library.plan)
    assert loaded == [content]


def test_a_link_is_not_loaded(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library(sources).path
    assert path is not None
    path.rename(tmp_path / "library")
    path.symlink_to(tmp_path / "library")
    no_compiling(monkeypatch)
    with pytest.raises(AssertionError, match="compiled again"):
        build.library(sources)


def test_a_folder_that_nothing_can_be_loaded_from(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a disk mounted noexec is an example."""
    load, kept = ctypes.CDLL, ("/proc/self/fd/", os.environ["ASTROCO_CACHE"])

    def refusing(name: str | None) -> ctypes.CDLL:
        if name is not None and name.startswith(kept):
            raise OSError(f"{name}: failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", refusing)
    found = build.library(sources)
    assert found.path is None
    assert found.unkept.endswith("failed to map segment from shared object")


@pytest.mark.parametrize("where", ["a file", "nowhere"])
def test_without_a_folder_to_write_to(where: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "a file":
        monkeypatch.setenv("ASTROCO_CACHE", str(sources / "main.cpp" / "cache"))
    else:
        monkeypatch.setattr(build, "cache_folder", lambda: None)
    assert native.missing() is None
    assert native.library().path is None
    assert {"a file": "Not a directory", "nowhere": "no cache folder"}[where] in native.library().unkept
    assert numbers(3, 4) == [3, 4]


# --- Many processes -----------------------------------------------------------------------------------------------


def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str = "") -> Path:
    """Choose a compiler that writes a word to a log for each unit that it compiles; return the log's path."""
    log, script = tmp_path / "compiled", tmp_path / "counting-c++"
    monkeypatch.delenv("CXX", raising=False)
    (compiler, *_) = build.compilers()
    note = f'case "$*" in *" -c "*) echo one >> {log}; {before} ;; esac'
    script.write_text(f'#!/bin/sh\n{note}\nexec {" ".join(compiler)} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return log


def load_and_tell(folder: Path, told: "multiprocessing.Queue[list[int] | str]") -> None:
    reason = native.missing()
    told.put(reason if reason is not None else numbers(1, 2))


def test_concurrent_processes_compile_once(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = counting(tmp_path, monkeypatch)
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    processes = [context.Process(target=load_and_tell, args=(sources, told)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [told.get(timeout=120) for _ in processes] == 4 * [[1, 2]]
    for process in processes:
        process.join()
    assert log.read_text().split() == ["one"]
    assert capfd.readouterr().err.count("compiling") == 1


def test_killed_compilation_releases_its_lock(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = counting(tmp_path, monkeypatch, before=f"echo $$ > {tmp_path / 'pid'}; exec sleep 600")
    context = multiprocessing.get_context("fork")
    stuck = context.Process(target=load_and_tell, args=(sources, context.Queue()))
    stuck.start()
    deadline = time.monotonic() + 60
    while not log.exists() or not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stuck.pid is not None
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.join()
    counting(tmp_path, monkeypatch)
    log.unlink()
    assert native.missing() is None
    assert log.read_text().split() == ["one"]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # its compiler


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
    assert build.library(sources).plan.compiler[0] != wish


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
    assert build._plan(sources, build._isas()[0], posing(tmp_path, version)).version == "g++ \ufffd 12.2 C"


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
        assert build.library(sources).plan.isa.name == "avx512_bf16"
        assert capfd.readouterr().err.count("compiling") == told
    monkeypatch.setattr(build, "wish", "amx_bf16")
    with pytest.raises(build.BuildFailed, match="unrecognized -mamx-tile"):
        build.library(sources)


def test_cxx_comes_first_with_its_arguments(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (compiler, *_) = build.compilers()
    monkeypatch.setenv("CXX", f"{compiler[0]} -DHERE=1")
    assert build.library(sources).plan.compiler == (compiler[0], "-DHERE=1")


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
            build._isas()
    else:
        assert build._isas()[0].name == found[0]


# --- Calls --------------------------------------------------------------------------------------------------------


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


# --- The kernels themselves ---------------------------------------------------------------------------------------


def test_versions_tell_what_made_the_kernels(cpu: str) -> None:
    compiler, isa, library = backend.Cpu().versions()
    assert re.search(r"\d", compiler)
    assert isa in build.ISAS
    assert native.library().plan.key in library


@pytest.mark.parametrize("isa", build.isas()[1:])
def test_the_kernels_compile_for_lesser_cpus(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources are only checked: all other tests use the library of the best instruction set."""
    monkeypatch.setattr(build, "wish", isa)
    (compiler, *_) = build.compilers()
    plan = build._plan(build.SOURCES, build._isas()[0], compiler)
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
