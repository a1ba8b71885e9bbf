"""The layer mix, sum_l softmax(logits)_l x(l), and its mean over each window's real points.

Without gradients a state is added to one sum as it comes, and kept by nothing. With them the states, which the blocks'
own backward keeps anyway, are held until the last has come, and each is read once.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.windows import windows
from astroco_fast.kernels.layer_mix import logits_gradient
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new, rows_of
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import LastLayer, LayerMix


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    """What C takes for an array of pointers. The tensors must outlive the call."""
    return torch.tensor([x.data_ptr() for x in tensors], dtype=torch.int64)


def _mix(
    mixed: Tensor, pooled: Tensor | None, states: Sequence[Tensor], add: bool, logits: Tensor, index: int, spans: Tensor
) -> None:
    native.call(
        "mix", mixed, pooled, _addresses(states), len(states), add, logits, index, logits.shape[0], spans,
        spans.shape[1], *mixed.shape,
    )  # fmt: skip


def _new_outputs(states: Sequence[Tensor], windows: Tensor, pool: bool):  # type: ignore[no-untyped-def]
    x = states[0]
    return new(x, *x.shape), new(x, windows.shape[1] if pool else 0, x.shape[1])


@kernel_op(_new_outputs)
def cpu_mix(states: Sequence[Tensor], logits: Tensor, index: int, windows: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
    """sum_j softmax(logits)_{index + j} states_j, (N, D), and where `pool` its means (B, D), else (0, D)."""
    mixed, pooled = made = _new_outputs(states, windows, pool)
    _mix(mixed, pooled if pool else None, states, False, logits, index, windows)
    return made


def _new_means(mixed: Tensor, windows: Tensor, pool: bool) -> Tensor:
    return new(mixed, windows.shape[1] if pool else 0, mixed.shape[1])


@kernel_op(_new_means, mutates=("mixed",))
def cpu_mix_add(
    mixed: Tensor, states: Sequence[Tensor], logits: Tensor, index: int, windows: Tensor, pool: bool
) -> Tensor:
    """The same added to `mixed`, in place: new memory each time would cost as much as the sum. Gives the means."""
    pooled = _new_means(mixed, windows, pool)
    _mix(mixed, pooled if pool else None, states, True, logits, index, windows)
    return pooled


def _new_gradients(states: Sequence[Tensor], windows: Tensor) -> tuple[list[Tensor], Tensor]:
    x = states[0]
    return [new(x, *x.shape) for x in states], new(x, windows.shape[1], len(states), dtype=torch.float64)


@kernel_op(_new_gradients)
def cpu_mix_backward(
    states: Sequence[Tensor], d_mixed: Tensor | None, d_pooled: Tensor | None, logits: Tensor, index: int,
    windows: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """The states' gradients, and (B, states) float64 the sums of their products with the gradient of the mix."""
    d_states, dots = made = _new_gradients(states, windows)
    native.call(
        "mix_backward", _addresses(d_states), dots, d_mixed, d_pooled, _addresses(states), len(states), logits, index,
        logits.shape[0], windows, windows.shape[1], *states[0].shape,
    )  # fmt: skip
    return made


class _Mix(torch.autograd.Function):
    """`total` is the sum of the states before `states`, for which no gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, total: Tensor | None, spans: Tensor, *states: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, spans, *states)
        before = logits.shape[0] - len(states)
        if total is None:
            return cpu_mix(states, logits, before, spans, True)
        total = total.clone()  # what comes in may not be what goes out
        return total, cpu_mix_add(total, states, logits, before, spans, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor | None, d_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, spans, *states = ctx.saved_tensors
        if d_mixed is None and d_pooled is None:
            return (None,) * (3 + len(states))
        d_mixed = None if d_mixed is None else rows_of(d_mixed)
        d_pooled = None if d_pooled is None else rows_of(d_pooled)
        before = logits.shape[0] - len(states)
        gradients, dots = cpu_mix_backward(states, d_mixed, d_pooled, logits, before, spans)
        d_logits = None
        if ctx.needs_input_grad[0]:  # then no state is missing: see mix_pool
            d_logits = logits_gradient(logits, dots)
        return d_logits, None, None, *gradients


def mix_pool(module: LayerMix | LastLayer, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """States x(0) .. x(L), rows (N, D), to the mix (N, D) and its means (B, D); see `reference.sublayers.LayerMix`.

    Whatever else gives a sequence and an embedding, as `LastLayer` does, and other dtypes than float32 are the
    reference's to run.
    """
    if not isinstance(module, LayerMix):
        return module(states, layout)
    logits, spans = module.logits, windows(layout)
    total: Tensor | None = None
    pooled: Tensor | None = None
    kept: list[Tensor] = []
    added, layers = 0, logits.shape[0]
    states = iter(states)
    for x in states:
        if x.dtype != torch.float32:  # so are all others, then
            return module(itertools.chain((x,), states), layout)
        # Once a gradient is wanted for one state, it may be for all that follow.
        if kept or (torch.is_grad_enabled() and (logits.requires_grad or x.requires_grad)):
            kept.append(rows_of(x))
            continue
        last = added + 1 == layers
        if total is None:
            total, pooled = cpu_mix([rows_of(x)], logits, added, spans, last)
        else:
            pooled = cpu_mix_add(total, [rows_of(x)], logits, added, spans, last)
        added += 1
    if kept:
        total, pooled = _Mix.apply(logits, total, spans, *kept)
    assert total is not None
    assert pooled is not None
    return total, pooled
