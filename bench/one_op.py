"""One op of the encoder, by a backend, ready to be timed and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import ops, selfcheck
from astroco_fast.reference.layout import Layout
from bench.cases import LENGTH, Batch, Case
from bench.checking import TOLERANCE, check_gradients, check_tensors
from bench.measuring import device
from bench.providers import DTYPES, build


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
    model = _model(op, case, on, dropout)
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


def _model(op: str, case: Case, on: torch.device, dropout: float | None) -> Any:
    """With one block, unless the op mixes them all."""
    layers = None if op == "mix_pool" else 1
    return build(case.preset, on, case.training, dropout, reference=False, layers=layers)


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
    model = _model(op, case, device(), None)
    module = None if op == "masked_loss" else getattr(model, op, None) or getattr(model.blocks[0], op)
    configuration = selfcheck.configuration(op, module, model.config.width)
    with af.backend(provider.backend):
        chosen = ops.select(op, device(), DTYPES[provider.precision], case.training, module, configuration)
    return {op: "; ".join(chosen.reasons.values())} if chosen.reasons else {}
