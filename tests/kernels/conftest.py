"""Fixtures: the backends under test, with outputs that are NaN until a kernel writes them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo  # on import it lists torch's functions, some of which `poisoned` replaces later

import astroco_fast as af
from astroco_fast import selfcheck
from astroco_fast.kernels import checksum
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.kernels.cpu import arguments, build, native
from tests.conftest import CPU_ISA
from tests.kernels import small_library

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the backend under test. Triton's is a GPU, or the CPU with Triton's interpreter."""
    if "fused" in request.fixturenames and request.getfixturevalue("fused") == "cpu":
        return torch.device("cpu")
    return DEVICE


@pytest.fixture(params=["triton", "cpu"])
def fused(request: pytest.FixtureRequest) -> str:
    """The name of a backend to compare with the reference; all memory that it allocates is NaN at first.

    The self-check is off, because an op that failed it would run on the reference and pass.
    """
    return request.getfixturevalue(request.param)


@pytest.fixture
def triton(poisoned: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Triton backend's name, for tests of its own kernels."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_backend, "interpreting", DEVICE.type == "cpu")
    return "triton"


@pytest.fixture
def cpu(poisoned: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU backend's name, for tests of its own kernels. Its library is compiled once and cached on disk."""
    monkeypatch.setattr(build, "wish", CPU_ISA)
    monkeypatch.setenv("ASTROCO_CPU_ISA", CPU_ISA or "")  # for processes that the test starts
    if not build.compilers() or build.isas() == ["default"]:
        pytest.skip("no C++ compiler, or a CPU without kernels")
    assert native.missing() is None
    return "cpu"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources that compile quickly, unknown to this process and to the cache."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "main.cpp").write_text(small_library.SOURCE)
    (folder / "arguments.h").write_text(small_library.ARGUMENTS)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "wish", CPU_ISA)
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(checksum, "_library", None)  # the small library, which is loaded in its place, has none
    monkeypatch.setenv("ASTROCO_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(params=[name for name in build.isas() if name.endswith("bf16")])
def isa(request: pytest.FixtureRequest, cpu: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set with BFloat16 products, which the CPU backend uses during the test."""
    choose_isa(request.param, monkeypatch)
    return request.param


def choose_isa(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU backend use the library of an instruction set for the rest of the test."""
    monkeypatch.setattr(build, "wish", name)
    monkeypatch.setattr(native, "_library", None)
    if name != build.isas()[0]:  # the best one's library is compiled as a user's is; this takes half the time
        monkeypatch.setattr(build, "_FLAGS", tuple("-O1" if flag == "-O3" else flag for flag in build._FLAGS))
    for kernel in arguments.kernels.values():
        monkeypatch.setattr(kernel, "_calls", {})
    assert native.library().isa.name == name


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill all allocated memory with NaN, and switch the self-check off."""
    monkeypatch.setattr(selfcheck, "enabled", False)

    def poisoning(empty):  # type: ignore[no-untyped-def]
        def filled(*args, **kwargs):  # type: ignore[no-untyped-def]
            made = empty(*args, **kwargs)
            if made.is_floating_point() and made.device.type != "meta":
                with torch.no_grad():  # it may be a leaf that wants gradients
                    made.fill_(float("nan"))
            return made

        return filled

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
    yield
    af.set_backend(None)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore PyTorch's number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def interpreter() -> None:
    """Make Triton's interpreter quicker, and compute bfloat16 as GPUs do."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.importorskip("triton")
        from tests.kernels.interpreter import patch

        patch()
