"""Encoding and training steps of presets S and L, by every provider that runs here.

    pytest bench/bench_model.py --benchmark-only
    pytest bench/bench_model.py --benchmark-only --full -k "L-encode-256"

They run on a GPU if there is one. Each provider's rounds alternate with rounds of eager PyTorch in bf16, and `ratio` is
the ratio of the medians; rounds of compiled models, ONNX Runtime, Astromer and ours in int8 alternate with rounds of
ours in bf16, too. A provider whose result is wrong fails and is not timed. A training step is forward (with the
preset's dropout), the loss at probed points and backward, without the optimiser.
"""

from __future__ import annotations

import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from astroco_fast import presets
from bench.cases import Case, cases, in_default, make_batch
from bench.checking import check_embeddings, check_step
from bench.measuring import device, environment, gemm_peak, interleave, step_memory
from bench.providers import BASELINE, Compiled, Eager, Ours, Provider, providers
from bench.work import model_work


def _parameters() -> list:  # type: ignore[type-arg]
    """Every case with every provider that runs here; those that take long are marked `full`."""
    here = [provider for provider in providers() if provider.unavailable(device()) is None]
    pairs = [(case, provider) for case in cases() for provider in here if provider.runs(case)]
    return [
        pytest.param(
            case,
            provider,
            id=f"{case.preset}-{'train' if case.training else 'encode'}-{case.batch}-{case.kind}-{provider.name}",
            marks=[] if in_default(case, provider.kind, provider.other or "AstroCo") else [pytest.mark.full],
        )
        for case, provider in pairs
    ]


def ours() -> Ours | None:
    """Ours in bf16, whose rounds those of the strongest rivals (compiled, ONNX) and of other models alternate with."""
    here = (p for p in providers() if isinstance(p, Ours) and p.precision == "bf16" and not p.unavailable(device()))
    return next(here, None)


@pytest.mark.parametrize(("case", "provider"), _parameters())
def test_model(benchmark: BenchmarkFixture, budget: float, case: Case, provider: Provider) -> None:
    """Measure one provider beside the baseline on one case."""
    measure(benchmark, budget, case, provider)


def measure(benchmark: BenchmarkFixture, budget: float, case: Case, provider: Provider) -> None:
    """Check the provider, time it, and note in `extra_info` what the report needs."""
    on = device()
    batch = make_batch(case, on)
    benchmark.group = case.group
    error = check_step(provider, case, on) if case.training else 0.0
    run = provider.make(case, batch)
    first = run.call()
    if not case.training:
        error = check_embeddings(provider, case, batch, first)
    del first
    rival = provider.role == "rival" and not isinstance(provider, Eager)
    challenger = ours() if provider.other or rival or provider.precision == "int8" else None
    beside = None if challenger is None else challenger.make(case, batch).call
    timing = interleave(benchmark, run.call, BASELINE.make(case, batch).call, on, budget, beside)
    work = model_work(presets.preset(provider.other or case.preset).config, batch.lengths, case.training)
    benchmark.extra_info.update(
        **case._asdict(), subject="model", provider=provider.name, role="other" if provider.other else provider.role,
        dtype=provider.precision, median_ms=timing.median * 1e3, baseline=BASELINE.name,
        baseline_ms=timing.baseline_median * 1e3, ratio=timing.ratio, rounds=len(timing.own),
        beside=challenger and challenger.name, beside_ratio=timing.beside_ratio,
        windows_per_s=case.batch / timing.median, gflops=work.flops / timing.median / 1e9,
        gb_per_s=work.bytes / timing.median / 1e9, error=error, fallbacks=run.fallbacks,
        baseline_gflops=work.flops / timing.baseline_median / 1e9 if provider.other is None else None,
        gemm_share=work.flops / timing.median / gemm_peak(provider.dtype, on), **environment(on),
    )  # fmt: skip
    eager_or_ours = provider.other is None and not isinstance(provider, Compiled)  # compiling again takes minutes
    if case.training and case.kind == "full" and eager_or_ours and (on.type == "cuda" or sys.platform == "linux"):
        benchmark.extra_info.update(
            peak_bytes=step_memory(provider.name, case), baseline_peak_bytes=step_memory(BASELINE.name, case)
        )
