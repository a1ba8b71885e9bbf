"""One op of the encoder by one backend, ready to be timed, and compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import ops, selfcheck
from astroco_fast.comparison import Comparison, Results, results, zero_filler
from astroco_fast.reference.layout import Layout
from astroco_fast.selfcheck import DRAWS
from bench.cases import LENGTH, Batch, Case
from bench.checking import WrongResultError, relative_error
from bench.measuring import device
from bench.providers import DTYPES, build


class OpProvider(NamedTuple):
    """A backend in a precision, which provides single ops."""

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


class _Bound(NamedTuple):
    """An op of a model with a batch's inputs.

    Attributes:
        module: the op's; an empty one for the loss.
        inputs: float32; they require gradients in training.
        call: takes the module and the inputs, by the backend that is chosen.
        layout: of the rows that are inputs and outputs.
    """

    module: nn.Module
    inputs: Sequence[Tensor]
    call: Callable[..., Any]
    layout: Layout


def make_op(op: str, provider: OpProvider, case: Case, batch: Batch) -> Callable[[], Any]:
    """An op of the preset's first block made ready on the rows of the packed layout: forward, in training backward."""
    on, draw = batch.time.device, torch.Generator().manual_seed(1)
    bound = _bound(op, case, batch, None, draw)
    upstream: list[Tensor] = []

    def forward() -> list[Tensor]:
        with (
            torch.set_grad_enabled(case.training),
            af.backend(provider.backend),
            torch.autocast(on.type, torch.bfloat16, enabled=provider.precision == "bf16"),
        ):
            return _tensors(bound.call(bound.module, *bound.inputs))

    def call() -> list[Tensor]:
        outputs = forward()
        if not case.training:
            return outputs
        if not upstream:
            upstream.extend(_upstream(outputs, bound.layout, draw))
        for tensor in (*bound.inputs, *bound.module.parameters()):
            tensor.grad = None
        torch.autograd.backward(outputs, upstream)
        return outputs

    return call


def _model(op: str, case: Case, on: torch.device, dropout: float | None) -> Any:
    """With one block, unless the op mixes them all."""
    layers = None if op == "mix_pool" else 1
    return build(case.preset, on, case.training, dropout, reference=False, layers=layers)


def _bound(op: str, case: Case, batch: Batch, dropout: float | None, draw: torch.Generator) -> _Bound:
    on = batch.time.device
    model, layout = _model(op, case, on, dropout), Layout.packed(batch.lengths, LENGTH, on)

    def rows() -> Tensor:
        return torch.randn(layout.rows, model.config.width, generator=draw).to(on).requires_grad_(case.training)

    if op == "input_embed":
        points = [layout.enter(values) for values in (batch.time, batch.mag, batch.err)]
        hidden = None if batch.hidden is None else layout.enter(batch.hidden)
        return _Bound(model.input_embed, points, lambda m, *points: ops.input_embed(m, *points, hidden, layout), layout)
    if op == "mix_pool":
        states = [rows() for _ in range(model.config.layers + 1)]
        return _Bound(model.mix_pool, states, lambda m, *states: ops.mix_pool(m, iter(states), layout), layout)
    if op == "masked_loss":
        guess = (batch.mag * 0.5).requires_grad_(case.training)
        return _Bound(nn.Module(), [guess], lambda m, x: ops.masked_loss(x, batch.mag, batch.role)[0], layout)
    return _Bound(getattr(model.blocks[0], op), [rows()], lambda m, x: getattr(ops, op)(m, x, layout), layout)


def _upstream(outputs: Sequence[Tensor], layout: Layout, draw: torch.Generator) -> list[Tensor]:
    """Gradients of the outputs, zero in rows that are not real points."""
    drawn = (torch.randn(x.shape, generator=draw).to(x.device) for x in outputs)
    return [x if layout.valid is None or x.shape[0] != layout.rows else x * layout.valid[:, None] for x in drawn]


def _tensors(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def check_op(op: str, provider: OpProvider, case: Case, batch: Batch) -> float:
    """Compare the op, without dropout, with float64 by the rule in `astroco_fast.comparison`.

    Returns:
        The largest relative error (in norm) of an output.

    Raises:
        WrongResultError: an output or, in training, a gradient is off.
    """
    draw, dtype = torch.Generator().manual_seed(1), DTYPES[provider.precision]
    bound, comparison = _bound(op, case, batch, 0.0, draw), Comparison()
    real = bound.layout.valid

    def run(backend: str, upstream: Sequence[Tensor] | None, to: torch.dtype) -> Results:
        with af.backend(backend):
            found = results(bound.call, bound.module, bound.inputs, upstream, to)
        return zero_filler(found, real) if backend == "reference" and real is not None else found

    outputs = [x for name, x in run("reference", None, torch.float64).items() if name.startswith("output")]
    for _ in range(DRAWS):
        upstream = _upstream(outputs, bound.layout, draw) if case.training else None
        exact, fused = run("reference", upstream, torch.float64), run(provider.backend, upstream, dtype)
        comparison.add(exact, run("reference", upstream, dtype), fused)
        if not comparison.off():
            return max(relative_error(fused[f"output {i}"], exact[f"output {i}"]) for i in range(len(outputs)))
    name, wrong = next(iter(comparison.off().items()))
    raise WrongResultError(f"{provider.name}: {op}: {name} {wrong}")


def fallback(op: str, provider: OpProvider, case: Case) -> dict[str, str]:
    """By op, why it would run on another backend than the provider's; empty: it would not."""
    model = _model(op, case, device(), None)
    module = None if op == "masked_loss" else getattr(model, op, None) or getattr(model.blocks[0], op)
    configuration = selfcheck.configuration(op, module, model.config.width)
    with af.backend(provider.backend):
        chosen = ops.select(op, device(), DTYPES[provider.precision], case.training, module, configuration)
    return {op: "; ".join(chosen.reasons.values())} if chosen.reasons else {}
