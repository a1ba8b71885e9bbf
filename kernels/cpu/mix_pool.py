"""The layer mix, sum_l softmax(logits)_l x(l), and its mean over each window's real points.

Without gradients, a state is added to one sum when it comes, and nothing holds it afterwards. With gradients, the
states, which the blocks keep for their own backward anyway, are held until the last has come, and each is read once.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.cpu.windows import windows_of
from astroco_fast.kernels.layer_mix import logits_gradient
from astroco_fast.kernels.tensors import new, rows_of
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import LastLayer, LayerMix


@native_op("mixed pooled")
def cpu_mix(states: Sequence[Tensor], logits: Tensor, index: int, windows: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
    """sum_j softmax(logits)_{index + j} states_j, (N, D), and its means (B, D), or (0, D) unless `pool`."""
    x = states[0]
    return torch.empty_like(x), new(x, windows.shape[1] if pool else 0, x.shape[1])


@native_op("pooled", struct="MixArguments", mutates=("mixed",))
def cpu_mix_add(
    mixed: Tensor, states: Sequence[Tensor], logits: Tensor, index: int, windows: Tensor, pool: bool
) -> Tensor:
    """Add the same sum to `mixed` in place, since new memory would cost as much time as the sum; return the means."""
    return new(mixed, windows.shape[1] if pool else 0, mixed.shape[1])


@native_op("d_states dots")
def cpu_mix_backward(
    states: Sequence[Tensor], d_mixed: Tensor | None, d_pooled: Tensor | None, logits: Tensor, index: int,
    windows: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """The states' gradients, and (B, states) float64 the sums of their products with the gradient of the mix."""
    x = states[0]
    return [torch.empty_like(x) for x in states], new(x, windows.shape[1], len(states), dtype=torch.float64)


class _Mix(torch.autograd.Function):
    """`total` is the sum of the states before `states`, for which no gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, total: Tensor | None, windows: Tensor, *states: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, windows, *states)
        before = logits.shape[0] - len(states)
        if total is None:
            return cpu_mix(states, logits, before, windows, True)
        total = total.clone()  # what comes in may not be what goes out
        return total, cpu_mix_add(total, states, logits, before, windows, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor | None, d_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, windows, *states = ctx.saved_tensors
        if d_mixed is None and d_pooled is None:
            return (None,) * (3 + len(states))
        d_mixed = None if d_mixed is None else rows_of(d_mixed)
        d_pooled = None if d_pooled is None else rows_of(d_pooled)
        before = logits.shape[0] - len(states)
        gradients, dots = cpu_mix_backward(states, d_mixed, d_pooled, logits, before, windows)
        d_logits = None
        if ctx.needs_input_grad[0]:  # then no state is missing: see mix_pool
            d_logits = logits_gradient(logits, dots)
        return d_logits, None, None, *gradients


def mix_pool(module: LayerMix | LastLayer, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """States x(0) .. x(L), rows (N, D), to the mix (N, D) and its means (B, D); see `reference.sublayers.LayerMix`.

    The reference runs any other module, as `LastLayer`, and dtypes other than float32.
    """
    if not isinstance(module, LayerMix):
        return module(states, layout)
    logits, windows = module.logits, windows_of(layout)
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
            total, pooled = cpu_mix([rows_of(x)], logits, added, windows, last)
        else:
            pooled = cpu_mix_add(total, [rows_of(x)], logits, added, windows, last)
        added += 1
    if kept:
        total, pooled = _Mix.apply(logits, total, windows, *kept)
    return cast(Tensor, total), cast(Tensor, pooled)
