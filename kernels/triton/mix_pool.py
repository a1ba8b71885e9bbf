"""The layer mix, sum_l softmax(logits)_l x(l), and its mean over each window's real points.

Without gradients states wait until there are five (`GROUP`), are added to the mix in one launch, and released: while a
block runs, its input and up to three states before it are in memory. With gradients all states, which the blocks'
backward keeps anyway, are held until the last one is computed. Then the next block may add a state's gradient through
the mix to its own (mix_term.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.layer_mix import logits_gradient
from astroco_fast.kernels.tensors import rows_of
from astroco_fast.kernels.triton.mix import GROUP, mix, mix_backward
from astroco_fast.kernels.triton.mix_term import Term, offer, withdraw
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import LastLayer, LayerMix


def _add(
    states: Sequence[Tensor], total: Tensor | None, logits: Tensor, before: int, start: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """`total` and the states from number `before` on; the means, which are (0, D) unless the last state is there."""
    last = before + len(states) == logits.shape[0]
    for at in range(0, len(states), GROUP):
        pool = last and at + GROUP >= len(states)
        total, pooled = mix(states[at : at + GROUP], total, logits, before + at, start, lengths, pool)
    return cast(Tensor, total), pooled


class _Mix(torch.autograd.Function):
    """The mix of `states`, added to `total`, the sum of the states before them, which need no gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        total: Tensor | None,
        start: Tensor,
        lengths: Tensor,
        count: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`tensors` are the last `count` states, and each one's term, if the next block has it."""
        ctx.set_materialize_grads(False)
        states = [rows_of(cast(Tensor, x)) for x in tensors[:count]]
        ctx.save_for_backward(logits, start, lengths, *states)
        ctx.written = [term is None for term in tensors[count:]]
        return _add(states, total, logits, logits.shape[0] - len(states), start, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmixed: Tensor | None, dpooled: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, start, lengths, *states = ctx.saved_tensors
        if dmixed is None and dpooled is None:
            return (None,) * (5 + 2 * len(states))
        dmixed = None if dmixed is None else rows_of(dmixed)
        dpooled = None if dpooled is None else rows_of(dpooled)
        before = logits.shape[0] - len(states)
        gradients: list[Tensor | None] = []
        sums, upstream = [], dmixed
        for at in range(0, len(states), GROUP):
            written = ctx.written[at : at + GROUP]
            join = at == 0 and dpooled is not None and not all(ctx.written)
            dx, joined, partial = mix_backward(
                states[at : at + GROUP], dmixed, dpooled, logits, before + at, start, lengths, written, join
            )
            gradients += [d if write else None for d, write in zip(dx, written, strict=True)]
            sums.append(partial)
            upstream = joined if join else upstream
        d_logits = None
        if ctx.needs_input_grad[0]:  # then no state is missing: see mix_pool
            d_logits = logits_gradient(logits, torch.cat(sums, dim=1))
        of_terms = [None if write else upstream for write in ctx.written]
        return d_logits, None, None, None, None, *gradients, *of_terms


def mix_pool(module: LayerMix | LastLayer, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """States x(0) .. x(L), rows (N, D), to the mix (N, D) and its means (B, D); see `reference.sublayers.LayerMix`.

    The reference runs any other module, as `LastLayer`.
    """
    if not isinstance(module, LayerMix):
        return module(states, layout)
    logits, where = module.logits, segments(layout)
    total: Tensor | None = None
    pooled: Tensor | None = None
    held: list[Tensor] = []
    terms: list[Term | None] = []
    added, weights = 0, None

    def add() -> None:
        nonlocal total, pooled, added
        if held:
            total, pooled = _add([rows_of(x) for x in held], total, logits, added, where.start, where.lengths)
            added += len(held)
            held.clear()

    for x in states:
        # If one state needs a gradient, those after it may depend on it and need theirs.
        if weights is None and torch.is_grad_enabled() and (logits.requires_grad or x.requires_grad):
            add()
            weights = logits.detach().softmax(0)
        held.append(x)
        if weights is not None:
            terms.append(offer(layout, x, weights, added + len(held) - 1))
        elif len(held) == GROUP:
            add()
    if weights is not None:
        withdraw(layout)
        taken = [None if term is None else term.output for term in terms]
        total, pooled = _Mix.apply(logits, total, where.start, where.lengths, len(held), *held, *taken)
    else:
        add()
    if layout.filler is not None:  # then `where` has more windows than the batch
        pooled = cast(Tensor, pooled)[: layout.batch]
    return cast(Tensor, total), cast(Tensor, pooled)
