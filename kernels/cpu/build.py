"""The kernels' library, compiled from their C++ sources by the system's compiler, and cached on disk.

The cached file is keyed by everything that could change the library: sources, compiler, flags, torch and instruction
set. Its name also ends in a hash of its content, because loading a file that a full disk or a killed copy cut short
would crash the process. A user who can write to the folder, or replace it, can make every process that loads from it
run any code, so nobody else may be able to (`astroco_fast.private`). Where many processes need the library at the same
time, one compiles and the others wait.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from astroco_fast.errors import UserError
from astroco_fast.files import cache_folder, locked, sha256, sha256_of, whole_file
from astroco_fast.private import open_private, private_folder

SOURCES = Path(__file__).parent / "csrc"

# The instruction set to build for: a name from `ISAS`, or "none" for no kernels. None: the best that the CPU has.
wish: str | None = os.environ.get("ASTROCO_CPU_ISA") or None


class NoLibrary(Exception):
    """There is no library for this CPU or system, or none is wanted. The message says why in one line."""


class BuildFailed(NoLibrary):
    """The library could not be compiled, for lack of something that the user can install. The message says what."""


class Isa(NamedTuple):
    """An instruction set.

    Attributes:
        name: in `ISAS` and `ASTROCO_CPU_ISA`.
        defines: macros that select it in `ATen/cpu/vec`.
        flags: the compiler's, for it.
    """

    name: str
    defines: tuple[str, ...]
    flags: tuple[str, ...] = ()


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw")
_VEC512 = ("CPU_CAPABILITY=AVX512", "CPU_CAPABILITY_AVX512")
# As torch's Inductor defines them (torch/_inductor/cpu_vec_isa.py).
ISAS = {
    isa.name: isa
    for isa in (
        Isa("amx_bf16", _VEC512, (*_AVX512, "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8")),
        Isa("avx512_bf16", _VEC512, (*_AVX512, "-mavx512bf16", "-mavx512vnni")),
        Isa("avx512", _VEC512, _AVX512),
        Isa("avx2", ("CPU_CAPABILITY=AVX2", "CPU_CAPABILITY_AVX2"), _AVX2),
        Isa("neon", ("CPU_CAPABILITY=NEON", "CPU_CAPABILITY_NEON", "AT_BUILD_ARM_VEC256_WITH_SLEEF")),
        Isa("default", ("CPU_CAPABILITY=DEFAULT", "CPU_CAPABILITY_DEFAULT")),
    )
}

# Without -ffast-math, which would let the compiler assume that there is no NaN, infinity or -0.
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
)
_MAC = sys.platform == "darwin"
_WAY_OUT = "xcode-select --install" if _MAC else "apt install g++ (dnf install gcc-c++)"
_LONGEST = 900  # seconds that a compiler may take


class Plan(NamedTuple):
    """The commands that build a library.

    Attributes:
        compiler: the compiler's command, as `("g++",)`.
        version: the first line of the output of `--version`.
        isa: the instruction set.
        source: the file to compile.
        compile: arguments before `-c` and the source, for an object file.
        link: arguments after that object file, for the library.
        key: a short hash of everything that the library depends on.
    """

    compiler: tuple[str, ...]
    version: str
    isa: Isa
    source: Path
    compile: tuple[str, ...]
    link: tuple[str, ...]
    key: str


class Library(NamedTuple):
    """A loaded library.

    Attributes:
        handle: the object to look up its functions in.
        isa: the instruction set that it is for.
        compiler: the first line of what its compiler says of its version.
        key: a short hash of everything that the library depends on.
        path: its file; None: it was compiled, and could not be cached.
        unkept: the reason why it could not be cached.
        unused: the reason why it was compiled here, and the package's own was not taken (`prebuilt`); empty: it was.
    """

    handle: ctypes.CDLL
    isa: Isa
    compiler: str
    key: str
    path: Path | None
    unkept: str = ""
    unused: str = ""


def library(sources: Path) -> Library:
    """Load the cached library, or compile it by the first compiler that can.

    Args:
        sources: a folder with a `main.cpp`.

    Raises:
        BuildFailed: there is no compiler, or none that can compile it.
        NoLibrary: there are no kernels for this CPU or system, or none are wanted.
    """
    failures = []
    for isa in wanted():
        for compiler in compilers():
            try:
                return _open(plan(sources, isa, compiler))
            except (OSError, subprocess.SubprocessError, BuildFailed) as error:
                failures.append(f"{shlex.join(compiler)}: {' '.join(str(error).split())[:300]}")
    raise BuildFailed(failures[0] if failures else f"no C++ compiler (c++, g++ or clang++); {_WAY_OUT}")


def wanted() -> list[Isa]:
    """The instruction sets to build for: the chosen or best one, and another where compilers may lack the best one.

    Raises:
        NoLibrary: no kernels are wanted, or plain PyTorch is as fast on this CPU.
        BuildFailed: the CPU lacks the instruction set that is wanted.
    """
    if wish == "none":
        raise NoLibrary("switched off by ASTROCO_CPU_ISA=none")
    if sys.platform == "win32":
        raise NoLibrary("no CPU kernels on Windows")
    found = isas()
    if wish is not None and wish not in found:
        raise BuildFailed(f"ASTROCO_CPU_ISA={wish}: this CPU has {', '.join(found)}")
    if wish is None and found == ["default"]:
        raise NoLibrary("needs a CPU with AVX2, AVX-512 or NEON")
    if wish is None and found[0] == "amx_bf16":  # GCC before version 11 lacks it
        return [ISAS[name] for name in found[:2]]
    return [ISAS[wish or found[0]]]


def isas() -> list[str]:
    """The names from `ISAS` of what this CPU can run, best first."""
    machine, capability = platform.machine().lower(), torch.backends.cpu.get_cpu_capability()
    if machine in ("aarch64", "arm64"):
        return ["neon", "default"]
    if machine not in ("x86_64", "amd64"):
        return ["default"]
    if capability.startswith("AVX512"):
        found = ["avx512", "avx2", "default"]
        if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
            found.insert(0, "avx512_bf16")
            if getattr(torch.cpu, "_init_amx", lambda: False)():  # which asks Linux for the permission that AMX needs
                found.insert(0, "amx_bf16")
        return found
    return ["avx2", "default"] if capability.startswith("AVX2") else ["default"]


def compilers() -> list[tuple[str, ...]]:
    """The commands of the installed C++ compilers, `CXX` first, and each compiler once."""
    found: dict[str, tuple[str, ...]] = {}
    for command in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        with suppress(ValueError):  # CXX with a quote that never ends
            words = shlex.split(command)
            if words and (path := shutil.which(words[0])):
                found.setdefault(" ".join([str(Path(path).resolve()), *words[1:]]), tuple(words))
    return list(found.values())


def openmp() -> Path | None:
    """The file of the OpenMP runtime that torch has loaded; None: unknown.

    The kernels have to use the same one: a second runtime in the process would bring threads of its own, and some abort
    when they see another. Its file is libgomp.so.1, libgomp-<hash>.so.1, libomp or libiomp5, depending on where torch
    comes from. So the dynamic linker is asked which file holds the function that torch calls.
    """

    class Info(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("symbol", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    info = Info()
    try:
        function = ctypes.CDLL(str(_torch("lib", f"libtorch_cpu{_SUFFIX}"))).omp_get_max_threads
        told = ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    except (OSError, AttributeError):
        return None
    path = Path(os.fsdecode(info.file)).resolve() if told and info.file else None
    return path if path is not None and path.is_file() else None


_SUFFIX = ".dylib" if _MAC else ".so"


def _torch(folder: str, name: str) -> Path:
    """A file of torch: in its package, or where conda puts libraries and headers."""
    own = Path(torch.__file__).parent / folder / name
    shared = Path(sys.prefix) / folder / name
    return shared if shared.exists() and not own.exists() else own


def plan(sources: Path, isa: Isa, compiler: tuple[str, ...], prebuilt: bool = False) -> Plan:
    """The commands that build a library, for this machine or (`prebuilt`) for others with the instruction set.

    Raises:
        BuildFailed: the compiler calls another OpenMP runtime than PyTorch's.
    """
    told, runtime = _run(*compiler, "--version"), openmp()
    version = told.partition("\n")[0].strip()
    if "clang" in version and runtime is not None and "gomp" in runtime.name:
        raise BuildFailed(f"it calls LLVM's OpenMP, and PyTorch brings GCC's ({runtime.name}): {_WAY_OUT}")
    include = _torch("include", "ATen").parent
    folders = [include, include / "torch" / "csrc" / "api" / "include"]
    if _MAC:  # Apple's compiler comes without omp.h
        folders += [Path(prefix) / "include" for prefix in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp")]
    compile = (
        *_FLAGS,
        *(("-Xclang", "-fopenmp") if _MAC else ("-fopenmp",)),
        *isa.flags,
        *(f"-D{define}" for define in (*isa.defines, *(("ASTROCO_PREBUILT",) if prebuilt else ()))),
        *(f"-I{folder}" for folder in folders),
    )
    libraries = [_torch("lib", f"lib{name}{_SUFFIX}") for name in ("torch_cpu", "c10")]
    link = ["-shared", *map(str, libraries)]
    if prebuilt:
        # OpenMP's file has another name elsewhere: `astroco_fast.kernels.cpu.prebuilt` says how it is found.
        link += ["-lm", "-s"]
    else:
        link += [str(runtime) if runtime is not None else "-fopenmp"]
        link += [f"-Wl,-rpath,{libraries[0].parent}"] if _MAC else ["-Wl,--no-undefined", "-lm"]
    digest = hashlib.sha256(sources_key(sources).encode())
    for part in (torch.__version__, platform.machine(), shutil.which(compiler[0]), *compiler, told, *compile, *link):
        digest.update(f"{part}\n".encode())
    return Plan(compiler, version, isa, sources / "main.cpp", compile, tuple(link), digest.hexdigest()[:24])


def sources_key(sources: Path) -> str:
    """A hash of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in sources.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(sources)} {sha256(path)}\n".encode())
    return digest.hexdigest()[:24]


def _open(plan: Plan) -> Library:
    folder, unkept = None, "no cache folder"
    try:
        folder = _folder()
    except OSError as error:
        unkept = str(error)
    if (found := _kept(folder, plan)) is not None:
        return found
    # One process compiles, the others wait; without a folder, each compiles for itself.
    with nullcontext() if folder is None else locked(folder, None):
        if (found := _kept(folder, plan)) is not None:  # another process made it while this one waited
            return found
        _run(*plan.compiler, *plan.isa.flags, "-E", "-x", "c++", os.devnull)  # fails if it is too old for these flags
        print("astroco_fast: compiling CPU kernels (once, a few seconds) ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="astroco_fast-") as scratch:
            made = compile(plan, Path(scratch))
            if folder is not None:
                try:
                    return _load(_keep(made, folder, plan), plan)
                except (UserError, OSError) as error:  # nothing can be written there, or nothing loaded from there
                    unkept = str(error)
            # Once loaded, it needs no file.
            return Library(ctypes.CDLL(str(made)), plan.isa, plan.version, plan.key, None, unkept)


def _folder() -> Path | None:
    """The folder of cached libraries, created if it is missing; None: there is no cache folder.

    Raises:
        OSError: it cannot be created, or somebody else could put a library there.
    """
    cache = cache_folder()
    return None if cache is None else private_folder(cache / "native")


def _kept(folder: Path | None, plan: Plan) -> Library | None:
    """The library from the cache folder, where it is there, whole, the user's own, and can be loaded."""
    for path in sorted(folder.glob(f"{plan.key}-*.so")) if folder is not None else ():
        with suppress(OSError):
            return _load(path, plan)
    return None


def _load(path: Path, plan: Plan) -> Library:
    """Load a library of the cache folder, from the same open file whose owner and hash were checked.

    Raises:
        OSError: it cannot be loaded, or should not be.
    """
    handle = open_private(path)
    try:
        with os.fdopen(os.dup(handle), "rb") as file:
            digest = sha256_of(file)
        if path.name != _name(digest, plan.key):
            raise OSError(f"{path}: not what its name says")
        # The descriptor stays open: the dynamic linker takes another file of the same name for this one.
        opened = Path(f"/proc/self/fd/{handle}")
        loaded = ctypes.CDLL(str(opened if opened.exists() else path))
    except OSError:
        os.close(handle)
        raise
    return Library(loaded, plan.isa, plan.version, plan.key, path)


def _keep(made: Path, folder: Path, plan: Plan) -> Path:
    """Copy the library to the cache folder, whole or not at all.

    Raises:
        UserError: it cannot be written there, so the next process compiles again.
    """
    path = folder / _name(sha256(made), plan.key)
    with whole_file(path) as partial:
        shutil.copyfile(made, partial)
        partial.chmod(0o700)
    return path


def _name(digest: str, key: str) -> str:
    return f"{key}-{digest[:24]}.so"


def compile(plan: Plan, scratch: Path) -> Path:
    """Run a plan's commands in a folder; returns the library.

    Raises:
        BuildFailed: the compiler or the linker failed.
    """
    unit, made = scratch / "main.o", scratch / "main.so"
    _run(*plan.compiler, *plan.compile, "-c", str(plan.source), "-o", str(unit))
    _run(*plan.compiler, str(unit), *plan.link, "-o", str(made))
    return made


def _run(*command: str) -> str:
    """The standard output of a command, in English.

    Raises:
        BuildFailed: the command failed. The message is its first error.
    """
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LONGEST, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise BuildFailed(next((line for line in lines if "error" in line or "undefined" in line), lines[-1]))
    return done.stdout
