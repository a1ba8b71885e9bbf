"""The audit: every kernel keeps within its limits, and the audit finds kernels that do not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from astroco_fast import ops
from bench.audit.__main__ import main

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
# They load a few numbers a point and no tiles of rows, so no bar applies to the width of their loads.
POINTWISE = {"loss._forward_kernel", "loss._backward_kernel"}
EVERY_ARCH = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a process that compiles kernels, whereas this process may interpret them."""
    clean = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TRITON_CACHE_DIR")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=3600)


def audit(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The audit's results; fails where a bar is broken."""
    path = folder / "audit.json"
    done = python("-m", "bench.audit", "--json", path, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The findings on the kernels of examined.py, all by one process, since it takes seconds to start."""
    folder = tmp_path_factory.mktemp("audit")
    done = python("-m", "tests.bench.examined", folder / "audit.json", TRITON_CACHE_DIR=str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_keep_to_the_bars(examined: dict[str, Any]) -> None:
    """The op that compiles most quickly, to whose kernels no bar on loads or matrix instructions applies.

    The slow test has the other ops, presets and architectures.
    """
    results = examined["command"]["results"]
    assert examined["command"]["status"] == 0, results
    assert {result["op"] for result in results} == {"masked_loss"}
    unasked = {result["kernel"] for result in results if not {"wide-loads", "matrix"} & {*result["bars"]}}
    assert unasked == POINTWISE


def test_a_kernel_for_each_bar(examined: dict[str, Any]) -> None:
    """The slow test has the other kernels and architectures."""
    ours = examined["ours"]
    for name, most in (("depthwise._silu_kernel", 0.75), ("depthwise_taps._kernel", 0.75)):
        loop = ours[name]
        assert {"taps", "matrix"} <= set(loop["bars"])
        assert 0.3 < loop["taps"] <= most
        assert (loop["matrix"], loop["local"], loop["broken"]) == ("mma.sync", 0, {})
    product, rows = ours["linear_onto._kernel"], ours["mix._forward_kernel"]
    assert "matrix" in product["bars"]
    assert (product["matrix"], product["broken"]) == ("wgmma", {})
    assert "wide-loads" in rows["bars"]
    assert rows["broken"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("arch", EVERY_ARCH)
@pytest.mark.parametrize("preset", ["S", "L", "tiny"])
def test_kernels_keep_to_the_bars_everywhere(arch: str, preset: str, tmp_path: Path) -> None:
    audit(tmp_path, "--arch", arch, "--preset", preset)


def test_bad_kernels_are_found(examined: dict[str, Any]) -> None:
    found = examined["bad"]
    assert {name: list(result["broken"]) for name, result in found.items()} == {
        "unrolled, sm_80": ["no-local"],
        "unrolled, sm_100": ["no-local"],
        "large tile, sm_86": ["shared"],
        "large tile, sm_90": [],
        "small tile, gfx942": ["matrix"],
        "pitch 276, sm_80": ["wide-loads"],
        "pitch 288, sm_80": [],
        "no power of two, sm_90": ["compiles"],
        "nothing is as quick, sm_80": ["compile"],
    }
    assert found["pitch 276, sm_80"]["loads"] == {"8": 8}
    assert found["pitch 288, sm_80"]["loads"] == {"16": 4}
    assert found["large tile, sm_90"]["dot"] == ["bf16"]
    matrix = {name: result["matrix"] for name, result in found.items()}
    assert (matrix["large tile, sm_86"], matrix["large tile, sm_90"]) == ("mma.sync", "wgmma")


def test_counts_of_a_compiled_kernel(examined: dict[str, Any]) -> None:
    """24 turns of 8 multiply-adds a thread, however they are unrolled, and two accesses of 16 bytes."""
    for arch, found in examined["counts"].items():
        assert found == {"multiply_adds": 24 * 8, "loads": 2, "stores": 2, "guessed": 0}, arch


def test_interpreted_kernels_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "TRITON_INTERPRET" in error


def test_an_op_that_cannot_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Both ops fail before a kernel would be compiled, so that this process, which may interpret, runs the command."""

    def broken(*args: object) -> None:
        raise RuntimeError("no such tile")

    backend = ops.BACKENDS["triton"]
    backend.function("mix_pool")  # imports the ops
    monkeypatch.setitem(backend._functions, "masked_loss", broken)
    monkeypatch.setitem(backend._functions, "mix_pool", lambda module, states, layout: tuple(states))
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["--arch", "sm_80", "--preset", "tiny", "--dtype", "fp32", "--op", "masked_loss", "mix_pool"]) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: no such tile" in error
    assert "launches no kernel" in error
    assert "2 break a bar" in error
