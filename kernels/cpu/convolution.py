"""The convolution sublayer: LayerNorm(x + Dropout(W_out SiLU(BatchNorm(conv(GLU(W_in LayerNorm(x)))))))).

Inference is one pass over the windows, with BatchNorm folded into the taps (csrc/convolution.h). Training takes two
passes forward, since the whole convolution has to be in memory before BatchNorm's statistics are known, and two
backward, since the gradient of a single row depends on two sums over all rows. Kept for backward: x, which the sublayer
before has kept anyway; W_in's product, the convolved rows c and W_out's product, in the compute dtype; vectors.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.batch_statistics import Norm, merged, norm_of, running_statistics
from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.cpu.weights import cpu_weight_gradient, pack, padded
from astroco_fast.kernels.cpu.windows import windows_of
from astroco_fast.kernels.int8 import product_dtype
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import PITCH, new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import Convolution

SPAN = 8  # taps come in multiples of this, as csrc/convolution.h has it


class Weights(NamedTuple):
    """Packed matrices, and the biases of values and gates, padded to P."""

    w_val: Tensor
    w_gate: Tensor
    b_val: Tensor
    b_gate: Tensor
    w_out: Tensor


def weights(module: Convolution, dtype: torch.dtype) -> Weights:
    """The module's matrices, prepared."""
    inner, outer = module.pointwise_in, module.pointwise_out

    def make() -> Weights:
        w_val, w_gate = (pack(half, dtype) for half in inner.weight.chunk(2))
        b_val, b_gate = (padded(half) for half in inner.bias.detach().chunk(2))
        return Weights(w_val, w_gate, b_val, b_gate, pack(outer.weight, dtype))

    return prepared(module, ("cpu convolution", dtype), (inner.weight, inner.bias, outer.weight), make)


def grouped(taps: Tensor) -> Tensor:
    """Taps (D, K) as the kernels read them: (P / PITCH, K rounded up to SPAN, PITCH), padded with zeros."""
    width, kernel = taps.shape
    whole = F.pad(taps, (0, -kernel % SPAN, 0, pitch(width) - width))
    return whole.view(-1, PITCH, whole.shape[1]).transpose(1, 2).contiguous()


def folded(module: Convolution) -> tuple[Tensor, Tensor]:
    """Taps, `grouped`, with BatchNorm's scale in them, and the offset (P,) that is left of BatchNorm."""
    norm = module.batch_norm
    mean, variance = running_statistics(norm)

    def make() -> tuple[Tensor, Tensor]:
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return grouped(module.depthwise * scale[:, None]), padded(norm.bias - mean * scale)

    sources = (module.depthwise, norm.weight, norm.bias, mean, variance)
    return prepared(module, "cpu folded", sources, make, (norm.eps,))


# Shapes of arguments and results: csrc/convolution.h, csrc/convolution_backward.h and csrc/batch_norm.h.
@native_op("y")
def cpu_convolution(
    x: Tensor, windows: Tensor, w_val: Tensor, w_gate: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor,
    taps: Tensor, offset: Tensor, kernel: int, gain_in: Tensor, shift_in: Tensor, eps_in: float, b_out: Tensor,
    gain_out: Tensor, shift_out: Tensor, eps_out: float,
) -> Tensor:  # fmt: skip
    """Inference: the sublayer's output. Taps and offset are `folded`."""
    return torch.empty_like(x)


@native_op("kept c stats_in partial")
def cpu_convolution_depthwise(
    x: Tensor, windows: Tensor, w_val: Tensor, w_gate: Tensor, b_val: Tensor, b_gate: Tensor, taps: Tensor, kernel: int,
    gain_in: Tensor, shift_in: Tensor, eps_in: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Values and gates, convolved rows, the first LayerNorm's statistics, and BatchNorm's of each window."""
    rows, columns, dtype = x.shape[0], pitch(x.shape[1]), w_val.dtype
    return (
        new(x, rows, 2, columns, dtype=dtype),
        new(x, rows, columns, dtype=dtype),
        new(x, rows, 2),
        new(x, windows.shape[1], 3, columns),
    )


@native_op("total statistics", mutates=("running_mean", "running_var", "batches"))
def cpu_batch_norm_merge(
    count: Tensor, partial: Tensor, running_mean: Tensor | None, running_var: Tensor | None, batches: Tensor | None,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A merge as `batch_statistics` describes it."""
    return new(count, 1), new(partial, 4, partial.shape[2])


@native_op("y product")
def cpu_convolution_out(
    c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, x: Tensor, windows: Tensor, w_out: Tensor,
    b_out: Tensor, gain_out: Tensor, shift_out: Tensor, eps_out: float, seed: Tensor | None, salt: int, p: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """From convolved rows to the sublayer's output and W_out's product."""
    return torch.empty_like(x), torch.empty_like(c)


@native_op("dz d_o s dn d_vectors d_batch_norm")
def cpu_convolution_backward_out(
    dy: Tensor, x: Tensor, product: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor,
    windows: Tensor, w_out: Tensor, b_out: Tensor, gain_out: Tensor, eps_out: float, seed: Tensor | None, salt: int,
    p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The residual's share of dx; W_out's two factors; the gradient of BatchNorm's result; the vectors' gradients."""
    d_o, s, dn = (torch.empty_like(product) for _ in range(3))
    return torch.empty_like(x), d_o, s, dn, new(x, 3, x.shape[1]), new(x, 3, x.shape[1])


@native_op("dx d_kept normed d_taps d_bias d_vectors")
def cpu_convolution_backward_in(
    dn: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, count: Tensor, d_batch_norm: Tensor | None, kept: Tensor,
    x: Tensor, stats_in: Tensor, dz: Tensor, windows: Tensor, w_in: Tensor, reversed: Tensor, kernel: int,
    gain_in: Tensor, shift_in: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx; W_in's two factors; the taps' gradient, `grouped`; those of b_val and b_gate, and of gain_in and shift_in."""
    dx, d_kept, normed, d_taps = (torch.empty_like(like) for like in (x, kept, c, reversed))
    return dx, d_kept, normed, d_taps, new(x, 2, c.shape[1]), new(x, 2, x.shape[1])


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain_in: Tensor, shift_in: Tensor, w_in: Tensor, b_in: Tensor, taps: Tensor, scale: Tensor,
        offset: Tensor, w_out: Tensor, b_out: Tensor, gain_out: Tensor, shift_out: Tensor, w: Weights, norm: Norm,
        windows: Tensor, eps_in: float, eps_out: float, seed: Tensor | None, salt: int, p: float,
    ) -> Tensor:  # fmt: skip
        x, kernel = rows_of(x), taps.shape[1]
        kept, c, stats_in, partial = cpu_convolution_depthwise(
            x, windows, *w[:4], grouped(taps), kernel, gain_in, shift_in, eps_in
        )
        count, statistics = windows.new_zeros(1, dtype=torch.float32), norm.fixed
        if statistics is None:
            count, statistics = merged(cpu_batch_norm_merge, windows[1].float(), partial, norm)
        y, product = cpu_convolution_out(
            c, statistics, scale, offset, x, windows, w.w_out, b_out, gain_out, shift_out, eps_out, seed, salt, p
        )
        ctx.save_for_backward(
            x, kept, c, product, stats_in, count, statistics, gain_in, shift_in, w_in, taps, scale, offset,
            w_out, b_out, gain_out, windows, seed,
        )  # fmt: skip
        ctx.group, ctx.fixed, ctx.eps_out, ctx.salt, ctx.p = norm.group, norm.fixed is not None, eps_out, salt, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (
            x, kept, c, product, stats_in, count, statistics, gain_in, shift_in, w_in, taps, scale, offset,
            w_out, b_out, gain_out, windows, seed,
        ) = ctx.saved_tensors  # fmt: skip
        (width, kernel), columns, dtype = taps.shape, c.shape[1], c.dtype
        dz, d_o, s, dn, d_end, d_batch_norm = cpu_convolution_backward_out(
            rows_of(dy), x, product, c, statistics, scale, offset, windows,
            pack(w_out, dtype, transposed=True), b_out, gain_out, ctx.eps_out, seed, ctx.salt, ctx.p,
        )  # fmt: skip
        d_w_out = cpu_weight_gradient(d_o, s, width, width, windows)
        del d_o, s
        over_ranks = None if ctx.fixed else d_batch_norm
        if over_ranks is not None and ctx.group is not None:
            over_ranks = over_ranks.clone()
            dist.all_reduce(over_ranks, group=ctx.group)
        halves = x.new_zeros(2, columns, width)
        halves[:, :width] = w_in.view(2, width, width)
        dx, d_kept, normed, d_taps, d_bias, d_start = cpu_convolution_backward_in(
            dn, c, statistics, scale, count, over_ranks, kept, x, stats_in, dz, windows,
            pack(halves.view(-1, width), dtype, transposed=True), grouped(taps.flip(1)), kernel, gain_in, shift_in,
        )  # fmt: skip
        d_w_in = cpu_weight_gradient(d_kept.view(-1, 2 * columns), normed, 2 * columns, width, windows)
        d_w_in, d_b_in = d_w_in.view(2, columns, width)[:, :width], d_bias[:, :width]
        d_taps = d_taps.transpose(1, 2).reshape(columns, -1)[:width, :kernel]
        return (
            dx, *d_start, d_w_in.reshape(-1, width), d_b_in.reshape(-1), d_taps, *d_batch_norm[:2], d_w_out, *d_end,
            *[None] * 8,
        )  # fmt: skip


def convolution(module: Convolution, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Convolution`."""
    w, windows = weights(module, product_dtype(x)), windows_of(layout)
    norm_in, inner, taps, norm = module.norm_in, module.pointwise_in, module.depthwise, module.batch_norm
    outer, norm_out, dropout = module.pointwise_out, module.norm_out, module.dropout
    p = dropout.p if dropout.training else 0.0
    start, end = (norm_in.weight, norm_in.bias), (outer.bias, norm_out.weight, norm_out.bias)
    if p == 0 and not norm.training and not wants_gradient(module, x):
        kernel = taps.shape[1]
        return cpu_convolution(
            rows_of(x), windows, *w, *folded(module), kernel, *start, norm_in.eps, *end, norm_out.eps
        )
    seed = layout.seed() if p > 0 else None
    return _Convolution.apply(
        x, *start, inner.weight, inner.bias, taps, norm.weight, norm.bias, outer.weight, *end, w, norm_of(norm),
        windows, norm_in.eps, norm_out.eps, seed, dropout.salt, p,
    )  # fmt: skip
