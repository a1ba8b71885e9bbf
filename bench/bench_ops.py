"""Each op of the encoder alone, in inference and in training (forward and backward), beside plain PyTorch.

    pytest bench/bench_ops.py --benchmark-only

The batch is 32 windows of 200 points; preset L, ragged windows and our own float32 are left to --full. Rounds alternate
with rounds of the eager op in bf16.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from astroco_fast import ops, presets
from bench.cases import ENCODE, KINDS, PRESETS, TRAIN, Case, make_batch
from bench.measuring import device, environment, gemm_peak, interleave
from bench.one_op import BASELINE, OpProvider, check_op, fallback, make_op
from bench.providers import DTYPES
from bench.work import op_work

BATCH = 32
BUDGET = 0.2  # share of the seconds that a whole model gets


def _parameters() -> list:  # type: ignore[type-arg]
    found = []
    for op in ops.OPS:
        for case in (Case(p, task, BATCH, kind) for p in PRESETS for task in (ENCODE, TRAIN) for kind in KINDS):
            for who in (OpProvider(name, precision) for name in ops.BACKENDS for precision in ("bf16", "fp32")):
                if who != BASELINE and who.unavailable(op) is None:
                    task = "training" if case.training else "inference"
                    label = f"{op}-{case.preset}-{task}-{case.kind}-{who.name}"
                    dear = case.kind == "ragged" or case.preset != "S" or (who.role, who.precision) == ("ours", "fp32")
                    marks = [pytest.mark.full] if dear else []
                    found.append(pytest.param(op, case, who, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("op", "case", "provider"), _parameters())
def test_op(benchmark: BenchmarkFixture, budget: float, op: str, case: Case, provider: OpProvider) -> None:
    """Measure one op by one provider beside the baseline."""
    on = device()
    batch = make_batch(case, on)
    task = "training" if case.training else "inference"
    benchmark.group = f"{case.preset} {op}, {task}, batch {BATCH}, {case.kind} windows"
    error = check_op(op, provider, case, batch)
    run, baseline = (make_op(op, who, case, batch) for who in (provider, BASELINE))
    timing = interleave(benchmark, run, baseline, on, budget * BUDGET)
    work = op_work(op, presets.preset(case.preset).config, batch.lengths, case.training)
    benchmark.extra_info.update(
        **case._replace(task=task)._asdict(), subject=op, provider=provider.name, role=provider.role,
        dtype=provider.precision, median_ms=timing.median * 1e3, baseline=BASELINE.name,
        baseline_ms=timing.baseline_median * 1e3, ratio=timing.ratio, rounds=len(timing.own),
        windows_per_s=BATCH / timing.median, gflops=work.flops / timing.median / 1e9,
        gb_per_s=work.bytes / timing.median / 1e9, baseline_gflops=work.flops / timing.baseline_median / 1e9,
        gemm_share=work.flops / timing.median / gemm_peak(DTYPES[provider.precision], on), error=error,
        fallbacks=fallback(op, provider, case), **environment(on),
    )  # fmt: skip
