"""The feed-forward sublayer: LayerNorm(x + Dropout(W_out(GELU(W_val x) * sigmoid(W_gate x)))).

Both directions are one pass over tiles of rows, whose hidden units stay in a core's cache (csrc/feed_forward.h).
Training keeps W_val x, W_gate x and W_out's product in the compute dtype; the rest is made again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.weights import cpu_pack, padded, symbol
from astroco_fast.kernels.cpu.windows import windows
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import compute_dtype, new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import FeedForward


class Weights(NamedTuple):
    """Packed matrices, and the biases of the hidden units, padded to pitch(F)."""

    val: Tensor
    gate: Tensor
    out: Tensor
    b_val: Tensor
    b_gate: Tensor


def weights(module: FeedForward, dtype: torch.dtype) -> Weights:
    """The module's parameters, prepared."""
    val, gate, out = module.w_val, module.w_gate, module.w_out

    def make() -> Weights:
        w_val, w_gate, w_out = (cpu_pack(part.weight.detach(), False, dtype) for part in (val, gate, out))
        return Weights(w_val, w_gate, w_out, padded(val.bias.detach()), padded(gate.bias.detach()))

    sources = (val.weight, gate.weight, out.weight, val.bias, gate.bias)
    return prepared(module, ("cpu feed_forward", dtype), sources, make)


def _new_outputs(x: Tensor, w_val: Tensor, b_val: Tensor, keep: bool):  # type: ignore[no-untyped-def]
    rows, width = x.shape
    kept = rows if keep else 0
    return (
        new(x, rows, width),
        new(x, 2, b_val.shape[0], kept, dtype=w_val.dtype),
        new(x, kept, pitch(width), dtype=w_val.dtype),
        new(x, kept, 2),
    )


@kernel_op(_new_outputs)
def cpu_feed_forward(
    x: Tensor, windows: Tensor, w_val: Tensor, w_gate: Tensor, w_out: Tensor, b_val: Tensor, b_gate: Tensor,
    b_out: Tensor, gain: Tensor, shift: Tensor, hidden: int, eps: float, seed: Tensor | None, salt: int, p: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sublayer's output, and where `keep` what backward wants: v and g, W_out's product, the norm's statistics."""
    y, kept, product, stats = made = _new_outputs(x, w_val, b_val, keep)
    native.call(
        symbol("feed_forward", w_val.dtype), y, *((kept, product, stats) if keep else (None, None, None)), x, windows,
        windows.shape[1], *x.shape, hidden, w_val, w_gate, w_out, b_val, b_gate, b_out, gain, shift, eps, seed, salt, p,
    )  # fmt: skip
    return made


def _new_gradients(x: Tensor, kept: Tensor):  # type: ignore[no-untyped-def]
    columns, width = kept.shape[1], x.shape[1]
    return torch.empty_like(x), new(x, 3, columns, pitch(width)), new(x, 2, columns), new(x, 3, width)


@kernel_op(_new_gradients)
def cpu_feed_forward_backward(
    dy: Tensor, x: Tensor, kept: Tensor, product: Tensor, stats: Tensor, windows: Tensor, w_out: Tensor, w_in: Tensor,
    b_out: Tensor, gain: Tensor, hidden: int, seed: Tensor | None, salt: int, p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients: of x; of W_out's transpose, W_val and W_gate; of their biases; of b_out, gain and shift."""
    made = _new_gradients(x, kept)
    native.call(
        symbol("feed_forward_backward", kept.dtype), *made, dy, x, kept, product, stats, windows, windows.shape[1],
        *x.shape, hidden, w_out, w_in, b_out, gain, seed, salt, p,
    )  # fmt: skip
    return made


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_val: Tensor, b_val: Tensor, w_gate: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
        gain: Tensor, shift: Tensor, w: Weights, spans: Tensor, seed: Tensor | None, salt: int, p: float, eps: float,
    ) -> Tensor:  # fmt: skip
        x = rows_of(x)
        y, kept, product, stats = cpu_feed_forward(
            x, spans, *w, b_out, gain, shift, w_val.shape[0], eps, seed, salt, p, keep=True
        )
        ctx.save_for_backward(x, kept, product, stats, w_val, w_gate, w_out, b_out, gain, spans, seed)
        ctx.salt, ctx.p = salt, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, product, stats, w_val, w_gate, w_out, b_out, gain, spans, seed = ctx.saved_tensors
        hidden, width = w_val.shape
        columns = kept.shape[1]
        up = x.new_zeros(2, columns, width)
        up[0, :hidden], up[1, :hidden] = w_val, w_gate
        w_back, w_in = cpu_pack(w_out, True, kept.dtype), cpu_pack(up.view(-1, width), True, kept.dtype)
        dx, matrices, d_bias, d_end = cpu_feed_forward_backward(
            rows_of(dy), x, kept, product, stats, spans, w_back, w_in, b_out, gain, hidden, seed, ctx.salt, ctx.p
        )
        d_w_out, d_w_val, d_w_gate = matrices[:, :hidden, :width]
        d_b_val, d_b_gate = d_bias[:, :hidden]
        d_b_out, d_gain, d_shift = d_end
        return dx, d_w_val, d_b_val, d_w_gate, d_b_gate, d_w_out.t(), d_b_out, d_gain, d_shift, *[None] * 6


def feed_forward(module: FeedForward, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.FeedForward`."""
    w, spans, norm, out = weights(module, compute_dtype(x)), windows(layout), module.norm, module.w_out
    hidden = module.w_val.weight.shape[0]
    p = module.dropout.p if module.dropout.training else 0.0
    if p == 0 and not wants_gradient(module, x):
        ends = (out.bias, norm.weight, norm.bias, hidden, norm.eps)
        return cpu_feed_forward(rows_of(x), spans, *w, *ends, None, 0, 0.0, keep=False)[0]
    return _FeedForward.apply(
        x, module.w_val.weight, module.w_val.bias, module.w_gate.weight, module.w_gate.bias, out.weight, out.bias,
        norm.weight, norm.bias, w, spans, layout.seed() if p > 0 else None, module.dropout.salt, p,
        norm.eps,
    )  # fmt: skip
