"""Each op of the encoder alone, in inference and in training (forward and backward), against plain PyTorch.

    pytest bench/bench_ops.py --benchmark-only

32 windows of 200 points, ragged ones with --full. Rounds alternate with rounds of the eager op in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import ops, selfcheck
from astroco_fast.layout import Layout
from bench.cases import ENCODE, KINDS, LENGTH, PRESETS, TRAIN, Batch, Case, make_batch
from bench.checking import TOLERANCE, check_gradients, check_tensors
from bench.measuring import device, environment, gemm_peak, interleave
from bench.providers import DTYPES, build
from bench.work import op_work

BATCH = 32
BUDGET = 0.2  # of the time that a whole model is given


class OpProvider(NamedTuple):
    """An op's: a backend in a precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        return ("eager" if self.backend == "reference" else f"astroco_fast {self.backend}") + f" {self.precision}"

    @property
    def role(self) -> str:
        return "rival" if self.backend == "reference" else "ours"

    def unavailable(self, op: str) -> str | None:
        return ops.BACKENDS[self.backend].unsupported(op, device(), DTYPES[self.precision], True)


BASELINE = OpProvider("reference", "bf16")


class OpRun(NamedTuple):
    """An op made ready: `call` gives its outputs; with `gradients` (after a call in training) of all that has one."""

    call: Callable[[], list[Tensor]]
    gradients: Callable[[], dict[str, Tensor]]


def make_op(op: str, provider: OpProvider, case: Case, batch: Batch, dropout: float | None = None) -> OpRun:
    """An op of the preset's first block, on rows of the packed layout."""
    on, draw = batch.time.device, torch.Generator().manual_seed(1)
    model: Any = build(case.preset, on, case.training, dropout, reference=False)
    layout = Layout.packed(batch.lengths, LENGTH, on)

    def rows() -> Tensor:
        return torch.randn(layout.rows, model.config.width, generator=draw).to(on).requires_grad_(case.training)

    module, given, run = _bound(op, model, batch, layout, rows)
    upstream: list[Tensor] = []

    def forward() -> list[Tensor]:
        with (
            torch.set_grad_enabled(case.training),
            af.backend(provider.backend),
            torch.autocast(on.type, torch.bfloat16, enabled=provider.precision == "bf16"),
        ):
            return run(layout)

    def call() -> list[Tensor]:
        outputs = forward()
        if not case.training:
            return outputs
        if not upstream:
            upstream.extend(torch.randn(x.shape, generator=draw).to(on) * _real(x, layout) for x in outputs)
        for tensor in (*given, *(module.parameters() if module is not None else ())):
            tensor.grad = None
        torch.autograd.backward(outputs, upstream)
        return outputs

    def gradients() -> dict[str, Tensor]:
        named = dict(module.named_parameters()) if module is not None else {}
        tensors = {**named, **{f"input {i}": tensor for i, tensor in enumerate(given)}}
        return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}

    return OpRun(call, gradients)


def _bound(
    op: str, model: Any, batch: Batch, layout: Layout, rows: Callable[[], Tensor]
) -> tuple[nn.Module | None, Sequence[Tensor], Callable[[Layout], list[Tensor]]]:
    """The op's module, what of its input has a gradient, and the op as a function of the layout."""
    if op == "input_embed":
        points = [layout.enter(values) for values in (batch.time, batch.mag, batch.err)]
        hidden = None if batch.hidden is None else layout.enter(batch.hidden)
        module = model.input_embed
        return module, [], lambda layout: [ops.input_embed(module, *points, hidden, layout)]
    if op == "mix_pool":
        states = [rows() for _ in range(model.config.layers + 1)]
        return model.mix_pool, states, lambda layout: list(ops.mix_pool(model.mix_pool, iter(states), layout))
    if op == "masked_loss":
        guess = (batch.mag * 0.5).requires_grad_(rows().requires_grad)
        return None, [guess], lambda layout: [ops.masked_loss(guess, batch.mag, batch.role)[0]]
    x, module = rows(), getattr(model.blocks[0], op)
    return module, [x], lambda layout: [getattr(ops, op)(module, x, layout)]


def _real(x: Tensor, layout: Layout) -> Tensor | float:
    """1 at rows that are real points: what stands in the others is nobody's."""
    return 1.0 if layout.valid is None or x.shape[0] != layout.rows else layout.valid[:, None].to(x.dtype)


def check_op(op: str, provider: OpProvider, case: Case, batch: Batch) -> float:
    """The relative error of its outputs, without dropout; in training its gradients are checked, too."""
    layout = Layout.packed(batch.lengths, LENGTH, batch.time.device)
    runs = [make_op(op, who, case, batch, dropout=0.0) for who in (provider, OpProvider("reference", "fp32"))]
    found, expected = ([x.detach() * _real(x, layout) for x in run.call()] for run in runs)
    error = check_tensors(provider.name, found, expected, TOLERANCE[DTYPES[provider.precision]])
    if case.training:
        check_gradients(provider.name, *(_of_real_rows(run.gradients(), layout) for run in runs))
    return error


def _of_real_rows(gradients: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    return {name: g * _real(g, layout) if name.startswith("input") else g for name, g in gradients.items()}


def fallback(op: str, provider: OpProvider, case: Case) -> dict[str, str]:
    """Why the op would not run on the provider's backend."""
    model: Any = build(case.preset, device(), case.training, None, reference=False)
    module = None if op == "masked_loss" else getattr(model, op, None) or getattr(model.blocks[0], op)
    configuration = selfcheck.configuration(op, module, model.config.width)
    with af.backend(provider.backend):
        chosen = ops.select(op, device(), DTYPES[provider.precision], case.training, module, configuration)
    return {op: "; ".join(chosen.reasons.values())} if chosen.reasons else {}


def _parameters() -> list:  # type: ignore[type-arg]
    found = []
    for op in ops.OPS:
        for case in (Case(p, task, BATCH, kind) for p in PRESETS for task in (ENCODE, TRAIN) for kind in KINDS):
            for who in (OpProvider(name, precision) for name in ops.BACKENDS for precision in ("bf16", "fp32")):
                if who != BASELINE and who.unavailable(op) is None:
                    task = "training" if case.training else "inference"
                    label = f"{op}-{case.preset}-{task}-{case.kind}-{who.name}"
                    marks = [pytest.mark.full] if case.kind == "ragged" else []
                    found.append(pytest.param(op, case, who, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("op", "case", "provider"), _parameters())
def test_op(benchmark: BenchmarkFixture, budget: float, op: str, case: Case, provider: OpProvider) -> None:
    """One op by one provider, beside the baseline."""
    on = device()
    batch = make_batch(case, on)
    task = "training" if case.training else "inference"
    benchmark.group = f"{case.preset} {op}, {task}, batch {BATCH}, {case.kind} windows"
    error = check_op(op, provider, case, batch)
    run, baseline = (make_op(op, who, case, batch) for who in (provider, BASELINE))
    timing = interleave(benchmark, run.call, baseline.call, on, budget * BUDGET)
    config = build(case.preset, on, False, None, reference=False).config
    work = op_work(op, config, batch.lengths, case.training)
    benchmark.extra_info.update(
        **case._replace(task=task)._asdict(), subject=op, provider=provider.name, role=provider.role,
        dtype=provider.precision, median_ms=timing.median * 1e3, baseline=BASELINE.name,
        baseline_ms=timing.baseline_median * 1e3, ratio=timing.ratio, rounds=len(timing.own),
        windows_per_s=BATCH / timing.median, gflops=work.flops / timing.median / 1e9,
        gb_per_s=work.bytes / timing.median / 1e9, baseline_gflops=work.flops / timing.baseline_median / 1e9,
        gemm_share=work.flops / timing.median / gemm_peak(DTYPES[provider.precision], on), error=error,
        fallbacks=fallback(op, provider, case), **environment(on),
    )  # fmt: skip
