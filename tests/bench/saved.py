"""A saved run of the benchmark suite, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = {
    "device": "A processor",
    "threads": 2,
    "versions": {"python": "3.11", "torch": "2.13"},
    "gemm_gflops": {"fp32": 100.0, "bf16": 200.0},
    "full": False,
}
EAGER_MS = 1000.0


def entry(provider: str, ratio: float, role: str = "rival", **told: Any) -> dict[str, Any]:
    """The saved benchmark of a provider `ratio` times as fast as the baseline, which takes 1 s for 64 GFLOP."""
    info: dict[str, Any] = {
        "preset": "L", "task": "encode", "batch": 32, "kind": "full", "subject": "model", "provider": provider,
        "role": role, "dtype": provider.split()[-1], "median_ms": EAGER_MS / ratio, "baseline": "eager bf16",
        "baseline_ms": EAGER_MS, "ratio": ratio, "rounds": 5, "gflops": 64 * ratio,
        "windows_per_s": told.get("batch", 32) * ratio,
        "baseline_gflops": 64.0, "gb_per_s": 2 * ratio, "gemm_share": 0.32 * ratio, "error": 0.001, "fallbacks": {},
    }  # fmt: skip
    info |= told
    group = f"{info['preset']} {info['task']}, batch {info['batch']}, {info['kind']} windows"
    return {"group": group, "fullname": f"{group} {provider}", "stats": {"median": 1.0}, "extra_info": info}


def other(name: str, median: float, **told: Any) -> dict[str, Any]:
    """A benchmark without a baseline; `median` in seconds."""
    return {"group": None, "fullname": name, "stats": {"median": median}, "extra_info": told}


def usual() -> list[dict[str, Any]]:
    """Benchmarks of ours, rivals and another model on two cases, and one of the pipeline."""
    training = {"preset": "S", "task": "training step", "baseline_peak_bytes": 10**9}
    return [
        entry("astroco_fast cpu bf16", 2.0, "ours", fallbacks={"convolution": "no compiler"}),
        entry("eager fp32", 0.5),
        entry("ONNX Runtime fp32", 1.25),
        entry("astroco_fast cpu bf16", 1.5, "ours", **training, peak_bytes=4 * 10**8),
        entry("eager fp32", 0.4, **training, peak_bytes=2 * 10**9),
        entry("Astromer v2, eager bf16", 1.0, "other", **training),
        other("bench/bench_batches.py::test_assemble", 0.25, windows_per_s=100_000),
    ]


def save(path: Path, benchmarks: list[dict[str, Any]]) -> Path:
    """Write a run to a file."""
    path.write_text(json.dumps({"machine_info": {"astroco": MACHINE}, "benchmarks": benchmarks}))
    return path
