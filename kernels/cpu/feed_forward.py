"""The feed-forward sublayer: LayerNorm(x + Dropout(W_out(GELU(W_val x) * sigmoid(W_gate x)))).

Both directions are one pass over tiles of rows, whose hidden units stay in a core's cache (csrc/feed_forward.h). For
backward W_val x, W_gate x and W_out's product are kept in the compute dtype; the rest is computed again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.cpu.weights import pack, padded
from astroco_fast.kernels.cpu.windows import windows_of
from astroco_fast.kernels.int8 import product_dtype
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import FeedForward


class Weights(NamedTuple):
    """Packed matrices, and the biases of the F hidden units, padded to pitch(F)."""

    w_val: Tensor
    w_gate: Tensor
    w_out: Tensor
    b_val: Tensor
    b_gate: Tensor


def weights(module: FeedForward, dtype: torch.dtype) -> Weights:
    """The module's parameters, prepared."""
    val, gate, out = module.w_val, module.w_gate, module.w_out

    def make() -> Weights:
        w_val, w_gate, w_out = (pack(part.weight, dtype) for part in (val, gate, out))
        return Weights(w_val, w_gate, w_out, padded(val.bias.detach()), padded(gate.bias.detach()))

    sources = (val.weight, gate.weight, out.weight, val.bias, gate.bias)
    return prepared(module, ("cpu feed_forward", dtype), sources, make)


@native_op("y kept product")
def cpu_feed_forward(
    x: Tensor, windows: Tensor, w_val: Tensor, w_gate: Tensor, w_out: Tensor, b_val: Tensor, b_gate: Tensor,
    b_out: Tensor, gain: Tensor, shift: Tensor, hidden: int, eps: float, seed: Tensor | None, salt: int, p: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The sublayer's output; then what backward needs, without rows unless `keep`. Shapes: csrc/feed_forward.h."""
    (rows, width), dtype = x.shape, w_val.dtype
    kept = rows if keep else 0
    return (
        torch.empty_like(x),
        new(x, 2, b_val.shape[0], kept, dtype=dtype),
        new(x, kept, pitch(width), dtype=dtype),
    )


@native_op("dx d_weights d_bias d_vectors")
def cpu_feed_forward_backward(
    dy: Tensor, x: Tensor, kept: Tensor, product: Tensor, windows: Tensor, w_out: Tensor, w_in: Tensor, b_out: Tensor,
    gain: Tensor, hidden: int, eps: float, seed: Tensor | None, salt: int, p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of the matrices, of b_val and b_gate, and of b_out, gain and shift.

    Shapes: csrc/feed_forward_backward.h.
    """
    columns, width = kept.shape[1], x.shape[1]
    return torch.empty_like(x), new(x, 3, columns, pitch(width)), new(x, 2, columns), new(x, 3, width)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_val: Tensor, b_val: Tensor, w_gate: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
        gain: Tensor, shift: Tensor, w: Weights, windows: Tensor, eps: float, seed: Tensor | None, salt: int, p: float,
    ) -> Tensor:  # fmt: skip
        x, hidden = rows_of(x), w_val.shape[0]
        y, *kept = cpu_feed_forward(x, windows, *w, b_out, gain, shift, hidden, eps, seed, salt, p, keep=True)
        ctx.save_for_backward(x, *kept, windows, w_val, w_gate, w_out, b_out, gain, seed)
        ctx.eps, ctx.salt, ctx.p = eps, salt, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept, windows, w_val, w_gate, w_out, b_out, gain, seed = ctx.saved_tensors
        (hidden, width), (_, columns, _), dtype = w_val.shape, kept[0].shape, kept[0].dtype
        w_in = x.new_zeros(2, columns, width)
        w_in[0, :hidden], w_in[1, :hidden] = w_val, w_gate
        packed = [pack(part, dtype, transposed=True) for part in (w_out, w_in.view(-1, width))]
        dx, d_weights, d_bias, d_vectors = cpu_feed_forward_backward(
            rows_of(dy), x, *kept, windows, *packed, b_out, gain, hidden, ctx.eps, seed, ctx.salt, ctx.p
        )
        d_w_out, d_w_val, d_w_gate = d_weights[:, :hidden, :width]
        d_b_val, d_b_gate = d_bias[:, :hidden]
        return dx, d_w_val, d_b_val, d_w_gate, d_b_gate, d_w_out.t(), *d_vectors, *[None] * 6


def feed_forward(module: FeedForward, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.FeedForward`."""
    w, windows = weights(module, product_dtype(x)), windows_of(layout)
    val, gate, out, norm, dropout = module.w_val, module.w_gate, module.w_out, module.norm, module.dropout
    p = dropout.p if dropout.training else 0.0
    if p == 0 and not wants_gradient(module, x):
        ends = (out.bias, norm.weight, norm.bias, val.weight.shape[0], norm.eps)
        return cpu_feed_forward(rows_of(x), windows, *w, *ends, None, 0, 0.0, keep=False)[0]
    inner = (val.weight, val.bias, gate.weight, gate.bias)
    outer = (out.weight, out.bias, norm.weight, norm.bias)
    seed = layout.seed() if p > 0 else None
    return _FeedForward.apply(x, *inner, *outer, w, windows, norm.eps, seed, dropout.salt, p)
