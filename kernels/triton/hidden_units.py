"""The loop over hidden units that all one-kernel forms of the feed-forward share."""

import triton
import triton.language as tl

from astroco_fast.kernels.triton.gate import apart, biased, gate
from astroco_fast.kernels.triton.whole_rows import part_of_rows


@triton.jit
def held_rows(x, row, real, column, D: tl.constexpr, compute: tl.constexpr):
    """Columns of a block's rows in the compute dtype, and accumulators of zeros.

    If the compiler knew that these are zeros, it would wait after every instruction of a product.
    """
    left = part_of_rows(x, row, real, column, D).to(compute)
    return left, left.to(tl.float32) * 0.0


@triton.jit
def _up(at, column, P: tl.constexpr, MASKED: tl.constexpr):
    """[column, row] of W_up^T; `at` are the addresses of its rows."""
    at = at[None, :] + column[:, None]
    return tl.load(at, mask=(column < P)[:, None], other=0.0) if MASKED else tl.load(at)


@triton.jit
def _down(w, column, feature, P: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr, BEYOND: tl.constexpr = 0):
    """[feature, column + BEYOND] of W_out^T. A constant BEYOND needs no registers for more addresses."""
    at = w + column[None, :] * F + feature[:, None] + BEYOND * F
    return tl.load(at, mask=(column + BEYOND < P)[None, :], other=0.0) if MASKED else tl.load(at)


@triton.jit
def _projections(
    left, left_second, left_tail, at, column, second, last,
    P: tl.constexpr, PRECISION: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """v and g by one product, as `apart` takes them; `at` are the addresses of the rows of W_up."""
    both = tl.dot(left, _up(at, column, P, False), input_precision=PRECISION)
    if MAIN >= 256:
        both = tl.dot(left_second, _up(at, second, P, False), both, input_precision=PRECISION)
    if TAIL:
        both = tl.dot(left_tail, _up(at, last, P, P != MAIN + TAIL), both, input_precision=PRECISION)
    return both


@triton.jit
def _gated(
    both, b_val, b_gate, start,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, compute: tl.constexpr,
):  # fmt: skip
    """The hidden units start .. start + BLOCK_F - 1 from their projections."""
    v, g = apart(both, BLOCK_R, BLOCK_F)
    v, g = biased(v, g, b_val, b_gate, start + tl.arange(0, BLOCK_F), WIDTH)
    return gate(v, g, True, compute != tl.float32).to(compute)


@triton.jit
def _onto(
    gated, z, z_second, z_tail, w_out, column, last, start,
    P: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The accumulators plus W_out's product with the hidden units from start on."""
    feature = start + tl.arange(0, BLOCK_F)
    z = tl.dot(gated, _down(w_out, column, feature, P, F, False), z, input_precision=PRECISION)
    if MAIN >= 256:
        right = _down(w_out, column, feature, P, F, False, MAIN // 2)
        z_second = tl.dot(gated, right, z_second, input_precision=PRECISION)
    if TAIL:
        right = _down(w_out, last, feature, P, F, P != MAIN + TAIL)
        z_tail = tl.dot(gated, right, z_tail, input_precision=PRECISION)
    return z, z_second, z_tail


@triton.jit
def hidden_units(
    left, left_second, left_tail, z, z_second, z_tail, w_up, b_val, b_gate, w_out, column, second, last, begin, stop,
    WIDTH: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The accumulators z plus W_out's product with the hidden units from begin to stop, and a zero.

    Rows `left` and accumulators are in the parts that the kernels have; where there is one part less, an argument is
    ignored. The compiler does not know the zero: what depends on it, it cannot compute before the loop.

    AHEAD: a step begins with W_out's product of the units of two steps before. No register of it is needed before the
    next step, so that the gate of the step before runs meanwhile; the step's own projections follow. The first two
    steps have no units of others, and multiply zeros.
    """
    compute: tl.constexpr = w_up.dtype.element_ty
    pair = tl.arange(0, 2 * BLOCK_F)
    unit = pair // 16 * 8 + pair % 8 + pair // 8 % 2 * F
    past = 0
    if AHEAD:
        # Units pass from step to step as whole numbers: the compiler would take others through shared memory.
        BITS: tl.constexpr = tl.int32 if compute == tl.float32 else tl.int16
        ready = tl.zeros([BLOCK_R, BLOCK_F], BITS)
        both = tl.full([BLOCK_R, 2 * BLOCK_F], -1e30, tl.float32)  # whose gate is zero
        for start in range(begin, stop, BLOCK_F):
            past = start + BLOCK_F - stop
            gated, before = ready.to(compute, bitcast=True), max(start - 2 * BLOCK_F, 0)
            z, z_second, z_tail = _onto(
                gated, z, z_second, z_tail, w_out, column, last, before, P, F, PRECISION, MAIN, TAIL, BLOCK_F
            )
            before = max(start - BLOCK_F, 0)
            ready = _gated(both, b_val, b_gate, before, WIDTH, BLOCK_R, BLOCK_F, compute).to(BITS, bitcast=True)
            at = w_up + (start + unit) * P
            both = _projections(left, left_second, left_tail, at, column, second, last, P, PRECISION, MAIN, TAIL)
        for start in range(stop, stop + 2 * BLOCK_F, BLOCK_F):
            gated, before = ready.to(compute, bitcast=True), max(start - 2 * BLOCK_F, 0)
            z, z_second, z_tail = _onto(
                gated, z, z_second, z_tail, w_out, column, last, before, P, F, PRECISION, MAIN, TAIL, BLOCK_F
            )
            before = max(stop - BLOCK_F, 0)
            ready = _gated(both, b_val, b_gate, before, WIDTH, BLOCK_R, BLOCK_F, compute).to(BITS, bitcast=True)
    else:
        for start in range(begin, stop, BLOCK_F):
            past = start + BLOCK_F - stop
            at = w_up + (start + unit) * P
            both = _projections(left, left_second, left_tail, at, column, second, last, P, PRECISION, MAIN, TAIL)
            gated = _gated(both, b_val, b_gate, start, WIDTH, BLOCK_R, BLOCK_F, compute)
            z, z_second, z_tail = _onto(
                gated, z, z_second, z_tail, w_out, column, last, start, P, F, PRECISION, MAIN, TAIL, BLOCK_F
            )
    return z, z_second, z_tail, past
