"""Measurements: interleaved rounds, the machine's GEMM peak, the memory of a training step."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from astroco_fast import machine, ops
from bench.cases import Case

ROOT = Path(__file__).resolve().parents[1]
MIN_ROUNDS, MAX_ROUNDS = 3, 30
READING = 0.02  # seconds; a shorter call is repeated between two readings of the clock
WARM = 0.5  # seconds; in a longer call the cost of being the first is lost
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


class Timing(NamedTuple):
    """Seconds a call in interleaved rounds of a provider, of its baseline and, if there is one, of a third."""

    own: list[float]
    baseline: list[float]
    beside: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.own)

    @property
    def baseline_median(self) -> float:
        return statistics.median(self.baseline)

    @property
    def ratio(self) -> float:
        """How many times as fast as the baseline the provider is."""
        return self.baseline_median / self.median

    @property
    def beside_ratio(self) -> float | None:
        """How many times as fast as the provider the third is; None without a third."""
        return self.median / statistics.median(self.beside) if self.beside else None


def device() -> torch.device:
    """The device that is measured: a GPU if there is one."""
    return machine.pick_device("auto")


def seconds(run: Callable[[], Any], on: torch.device, times: int = 1) -> float:
    """Seconds a call, over `times` calls in a row, by the clock or, on a GPU, by two of its events."""
    if on.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(on)
        start.record()
        for _ in range(times):
            run()
        end.record()
        torch.cuda.synchronize(on)
        return start.elapsed_time(end) / 1e3 / times
    before = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - before) / times


def interleave(
    benchmark: BenchmarkFixture,
    run: Callable[[], Any],
    baseline: Callable[[], Any],
    on: torch.device,
    budget: float,
    beside: Callable[[], Any] | None = None,
) -> Timing:
    """Time a provider and its baseline in rounds that alternate, so that both see the same machine.

    pytest-benchmark's own figures are those of the provider; on a GPU they include the wait for its results.

    Args:
        benchmark: pytest-benchmark's fixture.
        run: the provider's call.
        baseline: the baseline's call, which has a round before each of the provider's.
        on: the device.
        budget: seconds that the rounds may take; there are at least `MIN_ROUNDS`, and at most `MAX_ROUNDS`.
        beside: a third call, which has a round before each of the baseline's.
    """
    own = _estimate(run, on)
    other = _estimate(baseline, on) if own < WARM else own  # so long a call needs no warming up
    times, other_times = (max(1, int(READING / estimate)) for estimate in (own, other))
    rounds = int(budget / (times * own + other_times * other))
    timing = Timing([], [], [])

    def before() -> None:
        if beside is not None:
            timing.beside.append(seconds(beside, on, times))
        timing.baseline.append(seconds(baseline, on, other_times))

    if beside is not None:
        _estimate(beside, on)
    benchmark.pedantic(
        lambda: timing.own.append(seconds(run, on, times)),
        setup=before,
        rounds=min(max(rounds, MIN_ROUNDS), MAX_ROUNDS),
    )
    return timing


def _estimate(run: Callable[[], Any], on: torch.device) -> float:
    """Seconds of a call; measuring them also warms it up."""
    first = seconds(run, on)
    return first if first > WARM else min(seconds(run, on) for _ in range(2))


@lru_cache
def gemm_peak(dtype: torch.dtype, on: torch.device) -> float:
    """The best rate, in floating-point operations a second, of a large matrix product in the machine's library.

    That of int8 is bfloat16's, which int8 is to surpass.
    """
    dtype = torch.bfloat16 if dtype is torch.int8 else dtype
    size = GEMM_SIZE[on.type]
    a, b = (torch.randn(size, size, device=on).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = min(seconds(lambda: torch.mm(a, b, out=out), on) for _ in range(12))
    return 2 * size**3 / best


@lru_cache
def step_memory(provider: str, case: Case) -> int:
    """The peak memory of a training step in bytes, above the memory before it, by `bench.memory` in its own process."""
    words = [sys.executable, "-m", "bench.memory", provider, *map(str, case)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"bench.memory {provider}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


@lru_cache
def environment(on: torch.device) -> dict[str, Any]:
    """What figures depend on besides the code: the device, the number of threads, and versions."""
    packages = ("astroco_fast", "torch", "numpy", "onnxruntime", "triton")
    found = {name: machine.package_version(name) for name in packages}
    versions = {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}
    for name, backend in ops.BACKENDS.items():
        if made_by := backend.versions():
            versions[f"backend {name}"] = ", ".join(made_by)
    cpu = f"{machine.cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"
    return {"device": machine.gpu_name(on) or cpu, "threads": torch.get_num_threads(), "versions": versions}
