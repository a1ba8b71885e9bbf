"""The loop over hidden units that all one-kernel forms of the feed-forward share."""

import triton
import triton.language as tl

from astroco_fast.kernels.triton.gate import apart, biased, gate


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
def hidden_units(
    left, left_second, left_tail, z, z_second, z_tail, w_up, b_val, b_gate, w_out, column, second, last, begin, stop,
    WIDTH: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The accumulators z plus W_out's product with the hidden units from begin to stop, and a zero.

    Rows `left` and accumulators are in the parts that the kernels have; where there is one part less, an argument is
    ignored. The compiler does not know the zero: what depends on it, it cannot compute before the loop.
    """
    MASKED: tl.constexpr = P != MAIN + TAIL
    HALVED: tl.constexpr = MAIN >= 256
    PART: tl.constexpr = MAIN // 2 if HALVED else MAIN
    compute = w_up.dtype.element_ty
    # One product computes v and g, and `apart` leaves the gated units as the next product takes them.
    pair = tl.arange(0, 2 * BLOCK_F)
    unit = pair // 16 * 8 + pair % 8 + pair // 8 % 2 * F
    past = 0
    for start in range(begin, stop, BLOCK_F):
        past = start + BLOCK_F - stop
        feature = start + tl.arange(0, BLOCK_F)
        at = w_up + (start + unit) * P
        both = tl.dot(left, _up(at, column, P, False), input_precision=PRECISION)
        if HALVED:
            both = tl.dot(left_second, _up(at, second, P, False), both, input_precision=PRECISION)
        if TAIL:
            both = tl.dot(left_tail, _up(at, last, P, MASKED), both, input_precision=PRECISION)
        v, g = apart(both, BLOCK_R, BLOCK_F)
        v, g = biased(v, g, b_val, b_gate, feature, WIDTH)
        gated = gate(v, g, True, compute != tl.float32).to(compute)
        z = tl.dot(gated, _down(w_out, column, feature, P, F, False), z, input_precision=PRECISION)
        if HALVED:
            right = _down(w_out, column, feature, P, F, False, PART)
            z_second = tl.dot(gated, right, z_second, input_precision=PRECISION)
        if TAIL:
            z_tail = tl.dot(gated, _down(w_out, last, feature, P, F, MASKED), z_tail, input_precision=PRECISION)
    return z, z_second, z_tail, past
