"""Backends to test dispatch and self-check with: the reference's numbers, with a fault where one is wanted."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from astroco_fast import ops
from astroco_fast.reference import backend as reference
from astroco_fast.reference.layout import Layout

Call = Callable[..., Any]


def fake(unsupported: Call | None = None, **functions: Call) -> ModuleType:
    """A backend that runs the ops given, by name; `unsupported` may say where not."""

    def default(op: str, device: torch.device, dtype: torch.dtype, training: bool, module: Any = None) -> str | None:
        return None if op in functions else "not written"

    return cast(ModuleType, SimpleNamespace(unsupported=unsupported or default, **functions))


def sound(op: str) -> Call:
    """An op as a backend must have it: rows that are not real count for nothing, and leave as zero."""

    def over_rows(module: Any, *arguments: Any) -> Tensor:
        *values, layout = arguments
        clean = [_zeroed(value, layout) if isinstance(value, Tensor) else value for value in values]
        return _zeroed(getattr(reference, op)(module, *clean, layout), layout)

    def mix_pool(module: Any, states: Any, layout: Layout) -> tuple[Tensor, Tensor]:
        mixed, embedding = reference.mix_pool(module, (_zeroed(x, layout) for x in states), layout)
        return _zeroed(mixed, layout), embedding

    return {"mix_pool": mix_pool, "masked_loss": reference.masked_loss}.get(op, over_rows)


def _zeroed(x: Tensor, layout: Layout) -> Tensor:
    if layout.valid is None:
        return x
    return x.masked_fill(~layout.valid.view(-1, *[1] * (x.dim() - 1)), 0)


def every_op() -> dict[str, Call]:
    """All ops, sound."""
    return {op: sound(op) for op in ops.OPS}


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.01 * grad


def raising(op: str) -> Call:
    """Fails as a kernel that does not compile."""

    def run(*arguments: Any) -> Any:
        raise RuntimeError("no such instruction\non this GPU")

    return run


def wrong_numbers(op: str) -> Call:
    """Off by 1 %."""
    right = sound(op)
    return lambda *arguments: _first(right(*arguments), lambda out: 1.01 * out)


def wrong_backward(op: str) -> Call:
    """Right forward; gradients off by 1 %."""
    right = sound(op)
    return lambda *arguments: _first(right(*arguments), _WrongBackward.apply)


def leaking(op: str) -> Call:
    """Lets what stands in rows that are not real through."""
    return getattr(reference, op)


FAULTS = {"raising": raising, "wrong numbers": wrong_numbers, "wrong backward": wrong_backward, "leaking": leaking}


def _first(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return (change(outputs[0]), *outputs[1:]) if isinstance(outputs, tuple) else change(outputs)
