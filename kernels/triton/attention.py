"""The attention sublayer: LayerNorm(x + Dropout(W_out attention(W_qkv x))).

Forward in training: the projection to q, k and v with its cast and bias in one kernel, PyTorch's fused attention,
then W_out's product, bias, dropout, residual and LayerNorm, in one kernel or two (`sublayer_end`). Backward keeps x
(the output of the sublayer before, so it is in memory anyway), on sm_90 x in half precision, too (linear.py; 7 % of
what a block of preset L keeps, for 28 us of an H100, modelled), q, k and v, the attended values, the logarithms of
softmax's sums, and the normalised sum and its scale (residual_norm.py).

Backward adds to x's gradient what comes through the layer mix, if the sublayer is asked to (mix_term.py).

Each head is padded with zeros to a size that the fused kernels take, in the columns of q, k and v and in those that
W_out reads. Zeros add nothing to the scores, so the result is the same.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.prepared import cast, prepared
from astroco_fast.kernels.tensors import compute_dtype, no_autocast, pitch, rows_of, wants_gradient
from astroco_fast.kernels.triton.column_sums import summed
from astroco_fast.kernels.triton.fused_attention import Runs, attend, attend_backward, head_pitch
from astroco_fast.kernels.triton.linear import linear, rows_with_ones
from astroco_fast.kernels.triton.linear_onto import linear_onto
from astroco_fast.kernels.triton.linear_residual_norm import linear_residual_norm
from astroco_fast.kernels.triton.mix_term import Term, offered, placeholder
from astroco_fast.kernels.triton.residual_norm_product import end_gradients, sublayer_end
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.kernels.triton.tensors import weight_gradient
from astroco_fast.kernels.triton.whole_rows import holds
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import Attention


class Weights(NamedTuple):
    """Both projections with padded heads, H d = F columns; matrices in the compute dtype."""

    qkv: Tensor  # (3 F, P)
    b_qkv: Tensor  # (3 F,) float32
    out: Tensor  # (P, F)


def weights(module: Attention, dtype: torch.dtype) -> Weights:
    """The module's projections, prepared."""
    qkv, b_qkv, out, heads = module.qkv.weight, module.qkv.bias, module.out.weight, module.heads
    width = out.shape[0]
    size = width // heads
    padded, depth = head_pitch(size), pitch(width)

    def make() -> Weights:
        w_qkv, w_out = cast(
            dtype,
            [
                (qkv.view(3, heads, size, width), (3, heads, padded, depth)),
                (out.view(width, heads, size), (depth, heads, padded)),
            ],
        )
        bias = b_qkv.detach()
        if padded != size:
            (bias,) = cast(torch.float32, [(b_qkv.view(3, heads, size), (3, heads, padded))])
        return Weights(w_qkv.view(-1, depth), bias.view(-1), w_out.view(depth, -1))

    return prepared(module, ("attention", dtype), (qkv, b_qkv, out), make, (heads,))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
        w: Weights, end: Tensor, offsets: Tensor, longest: int, heads: int, seed: Tensor | None, salt: int, p: float,
        eps: float, term: Term | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ctx.set_materialize_grads(False)
        x = rows_of(x)
        scale = (x.shape[1] // heads) ** -0.5
        with no_autocast(x):
            qkv, ones = linear(x, w.qkv, w.b_qkv, end, True)
            attended, *kept = attend(qkv, Runs(offsets, longest), heads, scale)
            y, normal, spread = sublayer_end(attended, w.out, b_out, x, gain, shift, end, seed, salt, p, eps)
        ctx.save_for_backward(x, ones, qkv, attended, *kept, normal, spread, gain, w.qkv, w.out, end, offsets, seed)
        ctx.longest, ctx.heads, ctx.scale, ctx.salt, ctx.p = longest, heads, scale, salt, p
        if term is None:
            return y, None
        # Not saved as the others, because a recomputation, which finds no term, has to save the same tensors.
        ctx.weights, ctx.index = term.weights, term.index
        return y, placeholder(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dterm: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, ones, qkv, attended, *kept, normal, spread, gain, w_qkv, w_out, end, offsets, seed = ctx.saved_tensors
        width, heads = x.shape[1], ctx.heads
        size = width // heads
        dy = torch.zeros_like(x) if dy is None else rows_of(dy)
        of_mix = () if dterm is None else (rows_of(dterm), ctx.weights, ctx.index)
        with no_autocast(x):
            dz, do, d_attended, of_norm = end_gradients(dy, normal, spread, gain, end, seed, ctx.salt, ctx.p, w_out)
            d_out = weight_gradient(do, attended)[:width].view(width, heads, -1)[..., :size]
            gradients = attend_backward(d_attended, qkv, attended, kept, Runs(offsets, ctx.longest), heads, ctx.scale)
            dx = linear_onto(dz, list(gradients), w_qkv, end, *of_mix)
            ((d_gain, d_shift, d_b_out),) = summed(of_norm)
            if not holds(w_qkv, width):
                ones = rows_with_ones(x, end, w_qkv.dtype)
            # At rows that are not real both factors are zero: q, k, v and the attended values' gradient are zero there.
            products = [weight_gradient(d, ones).view(heads, -1, ones.shape[1])[:, :size] for d in gradients]
            d_qkv = torch.stack([product[..., :width] for product in products])
            d_b_qkv = torch.stack([product[..., width] for product in products])
        return (
            dx, d_qkv.reshape(-1, width), d_b_qkv.reshape(-1), d_out.reshape(width, width), d_b_out, d_gain, d_shift,
            *[None] * 10,
        )  # fmt: skip


def attention(module: Attention, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Attention`."""
    w, found, norm = weights(module, compute_dtype(x)), segments(layout), module.norm
    p = module.dropout.p if module.dropout.training else 0.0
    if p == 0 and not wants_gradient(module, x):
        x = rows_of(x)
        with no_autocast(x):
            qkv, _ = linear(x, w.qkv, w.b_qkv, found.end, False)
            scale = (x.shape[1] // module.heads) ** -0.5
            attended = attend(qkv, Runs(found.offsets, found.longest), module.heads, scale, keep=False)[0]
            return linear_residual_norm(
                attended, w.out, module.out.bias, x, norm.weight, norm.bias, found.end, norm.eps
            )
    term = offered(layout, x)
    y, output = _Attention.apply(
        x, module.qkv.weight, module.qkv.bias, module.out.weight, module.out.bias, norm.weight, norm.bias, w, found.end,
        found.offsets, found.longest, module.heads, layout.seed() if p > 0 else None,
        module.dropout.salt, p, norm.eps, term,
    )  # fmt: skip
    if term is not None:
        term.output = output
    return y
