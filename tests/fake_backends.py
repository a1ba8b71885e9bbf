"""Backends for tests of dispatch and the self-check: they return the reference's results, right or with a fault."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from astroco_fast.kernels.backend import OPS, Backend, Reference
from astroco_fast.reference.layout import Layout

Call = Callable[..., Any]


class Fake(Backend):
    """A backend whose ops are the given functions.

    Args:
        refusal, dropout_mask: functions that replace the methods of the same name.
    """

    def __init__(
        self, name: str, refusal: Call | None = None, dropout_mask: Call | None = None, **functions: Call
    ) -> None:
        self.name, self.ops, self._functions = name, tuple(functions), functions
        if refusal is not None:
            self.refusal = refusal  # type: ignore[method-assign]
        if dropout_mask is not None:
            self.dropout_mask = dropout_mask  # type: ignore[method-assign]

    def function(self, op: str) -> Call:
        return self._functions[op]

    def folder(self) -> None:
        return None


def backends(*others: Backend) -> dict[str, Backend]:
    """A table like `ops.BACKENDS`: the others, best first, and the reference."""
    return {backend.name: backend for backend in (*others, Reference())}


def sound(op: str) -> Call:
    """A right op of a backend: rows that are not real have no effect and are zero in the results."""

    def over_rows(module: Any, *arguments: Any) -> Tensor:
        *values, layout = arguments
        clean = [_zeroed(value, layout) if isinstance(value, Tensor) else value for value in values]
        return _zeroed(Reference().function(op)(module, *clean, layout), layout)

    def mix_pool(module: Any, states: Any, layout: Layout) -> tuple[Tensor, Tensor]:
        mixed, embedding = Reference().function("mix_pool")(module, (_zeroed(x, layout) for x in states), layout)
        return _zeroed(mixed, layout), embedding

    return {"mix_pool": mix_pool, "masked_loss": Reference().function("masked_loss")}.get(op, over_rows)


def _zeroed(x: Tensor, layout: Layout) -> Tensor:
    if layout.valid is None:
        return x
    return x.masked_fill(~layout.valid.view(-1, *[1] * (x.dim() - 1)), 0)


def every_op() -> dict[str, Call]:
    """A right function for every op."""
    return {op: sound(op) for op in OPS}


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.01 * grad


def raising(op: str) -> Call:
    """An op that raises, as one whose kernel does not compile."""

    def run(*arguments: Any) -> Any:
        raise RuntimeError("no such instruction\non this GPU")

    return run


def wrong_numbers(op: str) -> Call:
    """An op whose results are off by 1 %."""
    right = sound(op)
    return lambda *arguments: _first(right(*arguments), lambda out: 1.01 * out)


def wrong_backward(op: str) -> Call:
    """An op with right results, whose gradients are off by 1 %."""
    right = sound(op)
    return lambda *arguments: _first(right(*arguments), _WrongBackward.apply)


def leaking(op: str) -> Call:
    """An op in which rows that are not real have an effect."""
    return Reference().function(op)


FAULTS = {"raising": raising, "wrong numbers": wrong_numbers, "wrong backward": wrong_backward, "leaking": leaking}


def _first(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return (change(outputs[0]), *outputs[1:]) if isinstance(outputs, tuple) else change(outputs)
