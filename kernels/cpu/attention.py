"""The attention sublayer: LayerNorm(x + Dropout(W_out attention(W_qkv x))).

Forward is one pass over the windows, each of which stays in a core's cache (csrc/attention.h). For backward it keeps
q, k and v, what was attended, the logarithms of softmax's sums, and W_out's product; the scores are computed again.
Inside, every head is padded with zeros to an even number of columns where products are of bfloat16 numbers, which the
CPU multiplies in pairs.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.cpu.weights import pack, padded
from astroco_fast.kernels.cpu.windows import windows_of
from astroco_fast.kernels.int8 import product_dtype
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import Attention


def head_size(width: int, heads: int, dtype: torch.dtype) -> int:
    """The columns d that a head takes up inside; F = H d."""
    size = width // heads
    return size + size % 2 if dtype is not torch.float32 else size


def spread(matrix: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(..., H * size) to (..., H * d), with zeros at the end of each head."""
    size = matrix.shape[-1] // heads
    missing = head_size(matrix.shape[-1], heads, dtype) - size
    return F.pad(matrix.unflatten(-1, (heads, size)), (0, missing)).flatten(-2) if missing else matrix


def spread_qkv(w_qkv: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """W_qkv (3 D, D) to (3 F, D), row by row: by way of its transpose it would take four times as long."""
    size = w_qkv.shape[0] // (3 * heads)
    missing = head_size(w_qkv.shape[0], 3 * heads, dtype) - size
    return F.pad(w_qkv.unflatten(0, (-1, size)), (0, 0, 0, missing)).flatten(0, 1) if missing else w_qkv


class Weights(NamedTuple):
    """Packed projections with padded heads."""

    w_qkv: Tensor  # (D, 3 F)
    b_qkv: Tensor  # (pitch(3 F),) float32
    w_out: Tensor  # (F, D)


def weights(module: Attention, dtype: torch.dtype) -> Weights:
    """The module's projections, prepared."""
    w_qkv, b_qkv, w_out, heads = module.qkv.weight, module.qkv.bias, module.out.weight, module.heads

    def make() -> Weights:
        return Weights(
            pack(spread_qkv(w_qkv, heads, dtype), dtype),
            padded(spread(b_qkv.detach(), 3 * heads, dtype)),
            pack(spread(w_out, heads, dtype), dtype),
        )

    return prepared(module, ("cpu attention", dtype), (w_qkv, b_qkv, w_out), make, (heads,))


@native_op("y qkv attended logsumexp product")
def cpu_attention(
    x: Tensor, windows: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
    heads: int, eps: float, seed: Tensor | None, salt: int, p: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sublayer's output; then what backward needs, without rows unless `keep`. Shapes: csrc/attention.h."""
    (rows, width), dtype = x.shape, w_qkv.dtype
    kept = rows if keep else 0
    return (
        torch.empty_like(x),
        new(x, kept, b_qkv.shape[0], dtype=dtype),
        new(x, kept, heads * head_size(width, heads, dtype), dtype=dtype),
        new(x, kept, heads),
        new(x, kept, pitch(width), dtype=dtype),
    )


@native_op("dx d_weights d_b_qkv d_vectors")
def cpu_attention_backward(
    dy: Tensor, x: Tensor, qkv: Tensor, attended: Tensor, logsumexp: Tensor, product: Tensor, windows: Tensor,
    w_out: Tensor, w_qkv: Tensor, b_out: Tensor, gain: Tensor, heads: int, eps: float, seed: Tensor | None, salt: int,
    p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of the matrices, of b_qkv, and of b_out, gain and shift. Shapes: csrc/attention_backward.h."""
    width = x.shape[1]
    matrices = new(x, 4 * attended.shape[1], pitch(width))
    return torch.empty_like(x), matrices, new(x, qkv.shape[1]), new(x, 3, width)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
        w: Weights, windows: Tensor, heads: int, eps: float, seed: Tensor | None, salt: int, p: float,
    ) -> Tensor:  # fmt: skip
        x = rows_of(x)
        y, *kept = cpu_attention(x, windows, *w, b_out, gain, shift, heads, eps, seed, salt, p, keep=True)
        ctx.save_for_backward(x, *kept, windows, w_qkv, w_out, b_out, gain, seed)
        ctx.heads, ctx.eps, ctx.salt, ctx.p = heads, eps, salt, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept, windows, w_qkv, w_out, b_out, gain, seed = ctx.saved_tensors
        heads, width, dtype, features = ctx.heads, x.shape[1], kept[0].dtype, kept[1].shape[1]
        packed = [
            pack(spread(w_out, heads, dtype), dtype, transposed=True),
            pack(spread_qkv(w_qkv, heads, dtype), dtype, transposed=True),
        ]
        dx, d_weights, d_b_qkv, d_vectors = cpu_attention_backward(
            rows_of(dy), x, *kept, windows, *packed, b_out, gain, heads, ctx.eps, seed, ctx.salt, ctx.p
        )
        # Without the columns that pad the heads.
        size = width // heads
        d_in, d_out = d_weights[:, :width].split([3 * features, features])
        d_w_qkv = d_in.unflatten(0, (3 * heads, -1))[:, :size].reshape(-1, width)
        d_w_out = d_out.unflatten(0, (heads, -1))[:, :size].flatten(0, 1).t()
        d_b_qkv = d_b_qkv[: 3 * features].view(3 * heads, -1)[:, :size].reshape(-1)
        return dx, d_w_qkv, d_b_qkv, d_w_out, *d_vectors, *[None] * 7


def attention(module: Attention, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Attention`."""
    w, windows = weights(module, product_dtype(x)), windows_of(layout)
    qkv, out, norm, dropout = module.qkv, module.out, module.norm, module.dropout
    p = dropout.p if dropout.training else 0.0
    if p == 0 and not wants_gradient(module, x):
        ends = (out.bias, norm.weight, norm.bias, module.heads, norm.eps)
        return cpu_attention(rows_of(x), windows, *w, *ends, None, 0, 0.0, keep=False)[0]
    parameters = (qkv.weight, qkv.bias, out.weight, out.bias, norm.weight, norm.bias)
    seed = layout.seed() if p > 0 else None
    return _Attention.apply(x, *parameters, w, windows, module.heads, norm.eps, seed, dropout.salt, p)
