"""The attention sublayer: LayerNorm(x + Dropout(W_out attention(W_qkv x))).

Forward is one pass over windows, each of which stays in a core's cache (csrc/attention.h). Training keeps q, k and v,
what was attended, the logarithms of softmax's sums and W_out's product; scores are made again. Inside, each head is
padded with zeros to the two columns that products of bfloat16 numbers take at a time.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.weights import cpu_pack, padded, symbol
from astroco_fast.kernels.cpu.windows import windows
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import compute_dtype, new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import Attention


def head_size(width: int, heads: int, dtype: torch.dtype) -> int:
    """The columns d that a head takes inside; F = H d."""
    size = width // heads
    return size + size % 2 if dtype is torch.bfloat16 else size


def spread(matrix: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(..., heads * size) to (..., heads * d) with zeros at each head's end."""
    size = matrix.shape[-1] // heads
    missing = head_size(matrix.shape[-1], heads, dtype) - size
    return F.pad(matrix.unflatten(-1, (heads, size)), (0, missing)).flatten(-2) if missing else matrix


def spread_out(w_out: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """W_out (D, D) to (D, F)."""
    return spread(w_out.detach(), heads, dtype)


def spread_qkv(w_qkv: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """W_qkv (3 D, D) to (3 F, D)."""
    return spread(w_qkv.detach().t(), 3 * heads, dtype).t()


class Weights(NamedTuple):
    """Packed projections with padded heads."""

    qkv: Tensor  # (D, 3 F)
    b_qkv: Tensor  # (pitch(3 F),) float32
    out: Tensor  # (F, D)


def weights(module: Attention, dtype: torch.dtype) -> Weights:
    """The module's projections, prepared."""
    qkv, b_qkv, out, heads = module.qkv.weight, module.qkv.bias, module.out.weight, module.heads

    def make() -> Weights:
        return Weights(
            cpu_pack(spread_qkv(qkv, heads, dtype), False, dtype),
            padded(spread(b_qkv.detach(), 3 * heads, dtype)),
            cpu_pack(spread_out(out, heads, dtype), False, dtype),
        )

    return prepared(module, ("cpu attention", dtype), (qkv, b_qkv, out), make)


def _new_outputs(x: Tensor, w_qkv: Tensor, b_qkv: Tensor, heads: int, keep: bool):  # type: ignore[no-untyped-def]
    (rows, width), dtype = x.shape, w_qkv.dtype
    kept = rows if keep else 0
    return (
        new(x, rows, width),
        new(x, kept, b_qkv.shape[0], dtype=dtype),
        new(x, kept, heads * head_size(width, heads, dtype), dtype=dtype),
        new(x, kept, heads),
        new(x, kept, pitch(width), dtype=dtype),
        new(x, kept, 2),
    )


@kernel_op(_new_outputs)
def cpu_attention(
    x: Tensor, windows: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
    heads: int, eps: float, seed: Tensor | None, salt: int, p: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sublayer's output, and where `keep` what backward wants.

    That is q, k and v (N, pitch(3 F)); what was attended (N, F); of each head the logarithm to base 2 of softmax's sum
    (N, H); W_out's product (N, P); the norm's mean and deviation (N, 2). Rows that are not real are not written there.
    """
    y, *kept = made = _new_outputs(x, w_qkv, b_qkv, heads, keep)
    native.call(
        symbol("attention", w_qkv.dtype), y, *(kept if keep else [None] * 5), x, windows, windows.shape[1], *x.shape,
        heads, w_qkv, w_out, b_qkv, b_out, gain, shift, eps, seed, salt, p,
    )  # fmt: skip
    return made


def _new_gradients(x: Tensor, qkv: Tensor, attended: Tensor):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    return (
        torch.empty_like(x),
        new(x, 4 * attended.shape[1], pitch(width)),
        new(x, qkv.shape[1]),
        new(x, 3, width),
    )


@kernel_op(_new_gradients)
def cpu_attention_backward(
    dy: Tensor, x: Tensor, qkv: Tensor, attended: Tensor, sums: Tensor, product: Tensor, stats: Tensor, windows: Tensor,
    w_out: Tensor, w_qkv: Tensor, b_out: Tensor, gain: Tensor, seed: Tensor | None, salt: int, p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients: of x; of W_qkv and, transposed, of W_out, (4 F, P); of b_qkv; of b_out, gain and shift."""
    made = _new_gradients(x, qkv, attended)
    native.call(
        symbol("attention_backward", qkv.dtype), *made, dy, x, qkv, attended, sums, product, stats, windows,
        windows.shape[1], *x.shape, sums.shape[1], w_out, w_qkv, b_out, gain, seed, salt, p,
    )  # fmt: skip
    return made


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, shift: Tensor,
        w: Weights, spans: Tensor, heads: int, seed: Tensor | None, salt: int, p: float, eps: float,
    ) -> Tensor:  # fmt: skip
        x = rows_of(x)
        y, *kept = cpu_attention(x, spans, *w, b_out, gain, shift, heads, eps, seed, salt, p, keep=True)
        ctx.save_for_backward(x, *kept, spans, w_qkv, w_out, b_out, gain, seed)
        ctx.salt, ctx.p = salt, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, qkv, attended, sums, product, stats, spans, w_qkv, w_out, b_out, gain, seed = ctx.saved_tensors
        width, heads, dtype, features = x.shape[1], sums.shape[1], qkv.dtype, attended.shape[1]
        w_back = cpu_pack(spread_out(w_out, heads, dtype), True, dtype)
        w_in = cpu_pack(spread_qkv(w_qkv, heads, dtype), True, dtype)
        dx, matrices, d_bias, d_end = cpu_attention_backward(
            rows_of(dy), x, qkv, attended, sums, product, stats, spans, w_back, w_in, b_out, gain, seed, ctx.salt, ctx.p
        )
        # Without the columns that pad the heads.
        size, (d_b_out, d_gain, d_shift) = width // heads, d_end
        d_in, d_out = matrices[:, :width].split([3 * features, features])
        d_w_qkv = d_in.unflatten(0, (3 * heads, -1))[:, :size].reshape(-1, width)
        d_b_qkv = d_bias[: 3 * features].view(3 * heads, -1)[:, :size].reshape(-1)
        d_w_out = d_out.unflatten(0, (heads, -1))[:, :size].flatten(0, 1).t()
        return dx, d_w_qkv, d_b_qkv, d_w_out, d_b_out, d_gain, d_shift, *[None] * 7


def attention(module: Attention, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Attention`."""
    w, spans, norm = weights(module, compute_dtype(x)), windows(layout), module.norm
    p = module.dropout.p if module.dropout.training else 0.0
    if p == 0 and not wants_gradient(module, x):
        ends = (module.out.bias, norm.weight, norm.bias, module.heads, norm.eps)
        return cpu_attention(rows_of(x), spans, *w, *ends, None, 0, 0.0, keep=False)[0]
    return _Attention.apply(
        x, module.qkv.weight, module.qkv.bias, module.out.weight, module.out.bias, norm.weight, norm.bias, w, spans,
        module.heads, layout.seed() if p > 0 else None, module.dropout.salt, p, norm.eps,
    )  # fmt: skip
