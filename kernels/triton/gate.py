"""GELU, and the gate of two projections: act(v) * sigmoid(g), exact in float32 and quick in half precision."""

import triton
import triton.language as tl


@triton.jit
def gelu(v):
    """v Phi(v), and its derivative."""
    below = 0.5 + 0.5 * tl.erf(v * 0.7071067811865476)
    return v * below, below + v * tl.exp(-0.5 * v * v) * 0.3989422804014327


@triton.jit
def _reciprocal(x):
    """1 / x for x >= 1, to float32's rounding, in two instructions; a division takes eight."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def _exceeds_one(g):
    """1 / sigmoid(g)."""
    return 1.0 + tl.exp2(g * -1.4426950408889634)


@triton.jit
def _inverse_phi(v):
    """1 / Phi(v) for results in half precision: v divided by it is GELU within 3e-5, where erf takes 28 instructions.

    Phi is the sigmoid of v times a polynomial of v^2, which is fitted to it up to |v| = 5 and constant beyond.
    """
    square = tl.minimum(v * v, 25.0)
    return 1.0 + tl.exp2(v * (-2.3012593 + square * (-0.10666291 + square * 0.000997865)))


@triton.jit
def apart(both, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr):
    """v and g of one product with eight columns of W_val, eight of W_gate, and so on.

    Tensor cores deal eight columns out to four threads, so that both numbers of a unit are in one thread already. One
    product reads its rows from shared memory half as often as two would.
    """
    v, g = tl.split(tl.trans(tl.reshape(both, [BLOCK_R, BLOCK_F // 8, 2, 8]), [0, 1, 3, 2]))
    return tl.reshape(v, [BLOCK_R, BLOCK_F]), tl.reshape(g, [BLOCK_R, BLOCK_F])


@triton.jit
def biased(v, g, b_val, b_gate, feature, WIDTH: tl.constexpr):
    """v and g with the biases of their features, of which there are WIDTH."""
    v += tl.load(b_val + feature, mask=feature < WIDTH, other=0.0)[None, :]
    g += tl.load(b_gate + feature, mask=feature < WIDTH, other=0.0)[None, :]
    return v, g


@triton.jit
def gate(v, g, GELU: tl.constexpr, HALF: tl.constexpr):
    """act(v) sigmoid(g); HALF: to be rounded to half precision."""
    if HALF:
        inverse = _exceeds_one(g)
        if GELU:
            inverse *= _inverse_phi(v)
        return v * _reciprocal(inverse)
    if GELU:
        v, _ = gelu(v)
    return v * tl.sigmoid(g)


@triton.jit
def gate_gradient(v, g, GELU: tl.constexpr, HALF: tl.constexpr):
    """act(v) sigmoid(g), and its derivatives with respect to v and g; HALF: to be rounded to half precision."""
    open_ = _reciprocal(_exceeds_one(g)) if HALF else tl.sigmoid(g)
    slope = 1.0
    if GELU:
        if HALF:  # Phi is within 5e-5, odd about 1/2 as the exact one is, so sums of gradients gain no bias
            below = _reciprocal(_inverse_phi(v))
            slope = below + v * tl.exp2(-0.7213475204444817 * v * v) * 0.3989422804014327
            v *= below
        else:
            v, slope = gelu(v)
    u = v * open_
    return u, open_ * slope, u * (1.0 - open_)
