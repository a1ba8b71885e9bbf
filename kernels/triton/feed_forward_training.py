"""The feed-forward sublayer's forward pass in training, in one kernel: feed_forward_fused.py with dropout.

The kernel reads x (N, D), and writes y (N, D) and, for backward, the normalised sum (N, P): 8 D + 2 P bytes a row.
Backward computes the hidden units h again anyway, so they are never in memory.

Tiling: that of feed_forward_fused.py, blocks of 128 rows that walk over the hidden units. o = W_out h leaves the
accumulators for where the normalised sum will be; then the block reads it again, which the caches have, and takes it
through bias, dropout, residual and LayerNorm 8 rows at a time, as residual_norm_product.py does.

W_out's product does not follow two steps later, as in inference: the compiler would put the gate before it.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.feed_forward_fused import tilings
from astroco_fast.kernels.triton.feed_forward_shares import launch_shares
from astroco_fast.kernels.triton.hidden_units import held_rows, hidden_units
from astroco_fast.kernels.triton.launch import launch, named
from astroco_fast.kernels.triton.residual_norm import kept_sum
from astroco_fast.kernels.triton.residual_norm_product import norm_of_rows
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import holds


@triton.jit(
    repr=named("feed_forward_training", DROPOUT=("", "dropout")),
    do_not_specialize=["salt", "rows", "before", "hidden"],
)
def _kernel(
    x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end, seed, salt, p, eps, y, normal, spread, rows, before, hidden,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    HALVED: tl.constexpr = MAIN >= 256
    PART: tl.constexpr = MAIN // 2 if HALVED else MAIN
    compute: tl.constexpr = w_up.dtype.element_ty
    first = before + tl.program_id(0).to(tl.int64) * BLOCK_R
    row = first + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, PART)
    left, total = held_rows(x, row, real, column, D, compute)
    if HALVED:
        second = PART + tl.arange(0, PART)
        left_second, total_second = held_rows(x, row, real, second, D, compute)
    else:
        second, left_second, total_second = column, left, total
    total, total_second, _, _ = hidden_units(
        left, left_second, left, total, total_second, total, w_up, b_val, b_gate, w_out, column, second, column,
        0, hidden, WIDTH, P, F, PRECISION, MAIN, TAIL, BLOCK_R, BLOCK_F, False,
    )  # fmt: skip
    o = normal.to(tl.pointer_type(compute), bitcast=True)
    at = o + row[:, None] * P
    tl.store(at + column[None, :], total.to(compute), mask=inside[:, None])
    if HALVED:
        tl.store(at + second[None, :], total_second.to(compute), mask=inside[:, None])
    tl.debug_barrier()
    norm_of_rows(
        o, b_out, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, first, rows, D, P, DROPOUT, BLOCK_R, 8
    )


def fits(w_up: Tensor, width: int) -> bool:
    """Whether the kernel fits the GPU. For preset L on an H100 the model says 194 us, and 237 for three launches."""
    return holds(w_up, width) and not split(width)[1]


def _outputs(
    x: Tensor, w_up: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
    end: Tensor, seed: Tensor | None, salt: int, p: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows = x.shape[0]
    return new(x, *x.shape), kept_sum(w_out, rows, w_out.shape[0]), new(x, rows, 2)


@kernel_op(_outputs)
def feed_forward_training(
    x: Tensor, w_up: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
    end: Tensor, seed: Tensor | None, salt: int, p: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """LayerNorm(x + Dropout(W_out(GELU(W_val x) * sigmoid(W_gate x)))), zero at rows that are not real.

    Args:
        x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end, eps: as for `feed_forward_fused`.
        seed, salt, p: dropout's, as for `residual_norm`.

    Returns:
        As `residual_norm`.
    """
    y, normal, spread = outputs = _outputs(x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end, seed, salt, p, eps)
    (rows, width), (depth, hidden) = x.shape, w_out.shape
    for some in tilings(rows, w_up, w_out, width):
        given = (x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end)
        if some.shares > 1:
            launch_shares(some, *given, eps, y, normal, spread, seed, salt, p)
            continue
        launch(
            _kernel, (cdiv(some.stop - some.start, some.config.blocks["BLOCK_R"]),),
            *given, seed, salt, p, eps, y, normal, spread, some.stop, some.start, hidden,
            WIDTH=b_val.shape[0], D=width, P=depth, F=hidden, DROPOUT=seed is not None, PRECISION=dot_precision(x),
            config=some.config,
        )  # fmt: skip
    return outputs
