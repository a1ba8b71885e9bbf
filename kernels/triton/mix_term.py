"""The gradients of states through the layer mix, added where the states' other gradients are written.

A state x(l) goes to the mix and to the next block's attention. Left to autograd, the mix would write w_l dM (dM is the
gradient of the mixed rows), and a sum with attention's gradient would follow: 16 D bytes a row and state, and the
w_l dM of all states in memory at once. But attention writes a gradient of x(l) anyway, and adds w_l dM to it for 4 D
bytes, those of dM. On an H100 that should save 58 microseconds a block of preset L and 51,200 rows (`bench.roofline`,
modelled): 54 of the sum and 18 of the mix, for 14.

For this attention has a second output, the state's term w_l x(l) of the mix. It has a shape, but no memory, because the
mix computes the terms from the states, several in a launch. The gradient of every term is dM, one tensor for all. For
autograd these are functions like any others: it calls their backward passes in the right order, whichever gradients
are asked for.

`mix_pool` offers a state's term before the block that reads the state runs. The offer holds for that very tensor, and
is left where a hook has replaced it, a compiler traces the block, the block runs without gradients, or another backend
runs attention. The mix then writes the state's gradient itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from astroco_fast.reference.layout import Layout

_PLACE = "mix term"


@dataclass(eq=False)
class Term:
    """A state's term in the mix.

    Attributes:
        state: x(l), rows (N, D).
        weights: (L + 1,) float32, w.
        index: l.
        output: (N, D), the term as an output of the function that adds its gradient to the state's; None: of none.
    """

    state: Tensor
    weights: Tensor
    index: int
    output: Tensor | None = None


def offer(layout: Layout, x: Tensor, weights: Tensor, index: int) -> Term | None:
    """Offer the term of the state x(index) instead of the last one; None: there is nobody to take it."""
    withdraw(layout)
    if torch.compiler.is_compiling() or not x.requires_grad:
        return None
    layout.scratch[_PLACE] = term = Term(x, weights, index)
    return term


def withdraw(layout: Layout) -> None:
    """End the last offer."""
    layout.scratch.pop(_PLACE, None)


def offered(layout: Layout, x: Tensor) -> Term | None:
    """The term of the state x, if it is on offer to an attention that will have a backward pass."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    term = layout.scratch.get(_PLACE)
    return term if term is not None and term.state is x and term.output is None else None


def placeholder(x: Tensor) -> Tensor:
    """A tensor of x's shape, of one element of memory with no particular value."""
    return torch.empty_strided(x.shape, (0, 0), dtype=x.dtype, device=x.device)
