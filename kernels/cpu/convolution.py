"""The convolution sublayer: LayerNorm(x + Dropout(W_out SiLU(BatchNorm(conv(GLU(W_in LayerNorm(x)))))))).

Inference is one pass over the windows, BatchNorm folded into the taps (csrc/convolution.h). Training takes two passes
forward, since the convolution has to be in memory before BatchNorm's statistics are known, and two backward, since the
gradient of a single row waits for two sums over all. Kept for backward: x, which the sublayer before had made anyway,
W_in's product, the convolved rows c and W_out's product in the compute dtype, and vectors.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.batch_statistics import Norm, merged, norm_of
from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.weights import cpu_pack, cpu_weight_gradient, padded, symbol
from astroco_fast.kernels.cpu.windows import windows
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import PITCH, compute_dtype, new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import Convolution

SPAN = 8  # taps come in multiples of this, as csrc/convolution.h has it


class Weights(NamedTuple):
    """Packed matrices, and the biases of values and gates, padded to P."""

    val: Tensor
    gate: Tensor
    b_val: Tensor
    b_gate: Tensor
    out: Tensor


def weights(module: Convolution, dtype: torch.dtype) -> Weights:
    """The module's matrices, prepared."""
    inner, outer = module.pointwise_in, module.pointwise_out

    def make() -> Weights:
        val, gate = (cpu_pack(half, False, dtype) for half in inner.weight.detach().chunk(2))
        b_val, b_gate = (padded(half) for half in inner.bias.detach().chunk(2))
        return Weights(val, gate, b_val, b_gate, cpu_pack(outer.weight.detach(), False, dtype))

    return prepared(module, ("cpu convolution", dtype), (inner.weight, inner.bias, outer.weight), make)


def grouped(taps: Tensor) -> Tensor:
    """(D, K) as the kernels read it: (P / PITCH, K rounded up to SPAN, PITCH), zeros where there is none."""
    width, kernel = taps.shape
    whole = F.pad(taps, (0, -kernel % SPAN, 0, pitch(width) - width))
    return whole.view(-1, PITCH, whole.shape[1]).transpose(1, 2).contiguous()


def folded(module: Convolution) -> tuple[Tensor, Tensor]:
    """Taps with BatchNorm's scale in them, `grouped`, and the offset (P,) that is left of it."""
    norm = module.batch_norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean, norm.running_var

    def make() -> tuple[Tensor, Tensor]:
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return grouped(module.depthwise * scale[:, None]), padded(norm.bias - mean * scale)

    return prepared(module, "cpu folded", (module.depthwise, norm.weight, norm.bias, mean, variance), make)


def _new_rows(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@kernel_op(_new_rows)
def cpu_convolution(
    x: Tensor, windows: Tensor, w_val: Tensor, w_gate: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor,
    taps: Tensor, offset: Tensor, before: int, gain_in: Tensor, shift_in: Tensor, eps_in: float, b_out: Tensor,
    gain: Tensor, shift: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """The sublayer's output; taps and offset as from `folded`, `before` of the taps being for earlier points."""
    y = torch.empty_like(x)
    native.call(
        symbol("convolution", w_val.dtype), y, x, windows, windows.shape[1], *x.shape, w_val, w_gate, b_val, b_gate,
        w_out, taps, offset, taps.shape[1], before, gain_in, shift_in, eps_in, b_out, gain, shift, eps,
    )  # fmt: skip
    return y


def _new_depthwise(x: Tensor, windows: Tensor, w_val: Tensor):  # type: ignore[no-untyped-def]
    rows, p = x.shape[0], pitch(x.shape[1])
    return (
        new(x, rows, 2, p, dtype=w_val.dtype),
        new(x, rows, p, dtype=w_val.dtype),
        new(x, rows, 2),
        new(x, windows.shape[1], 3, p),
    )


@kernel_op(_new_depthwise)
def cpu_convolution_depthwise(
    x: Tensor, windows: Tensor, w_val: Tensor, w_gate: Tensor, b_val: Tensor, b_gate: Tensor, taps: Tensor, before: int,
    gain: Tensor, shift: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Values and gates (N, 2, P), convolved rows (N, P), LayerNorm's statistics (N, 2), those of windows (B, 3, P)."""
    made = _new_depthwise(x, windows, w_val)
    native.call(
        symbol("convolution_depthwise", w_val.dtype), *made, x, windows, windows.shape[1], *x.shape, w_val, w_gate,
        b_val, b_gate, taps, taps.shape[1], before, gain, shift, eps,
    )  # fmt: skip
    return made


def _new_statistics(count: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
    return new(count, 1), new(partial, 4, partial.shape[2])


@kernel_op(_new_statistics, mutates=("running_mean", "running_var", "batches"))
def cpu_batch_norm_merge(
    count: Tensor, partial: Tensor, running_mean: Tensor | None, running_var: Tensor | None, batches: Tensor | None,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A merge as `batch_statistics` describes it."""
    total, statistics = made = _new_statistics(count, partial)
    # Prepared weights, into which the running statistics are folded, are made anew when this version changes.
    torch.autograd.graph.increment_version([t for t in (running_mean, running_var, batches) if t is not None])
    width = 0 if running_mean is None else running_mean.shape[0]
    native.call(
        "batch_norm_merge", total, statistics, running_mean, running_var, batches, count, partial, partial.shape[0],
        width, partial.shape[2], momentum, eps,
    )  # fmt: skip
    return made


def _new_out(c: Tensor, x: Tensor):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), torch.empty_like(c), new(x, x.shape[0], 2)


@kernel_op(_new_out)
def cpu_convolution_out(
    c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, x: Tensor, windows: Tensor, w_out: Tensor,
    b_out: Tensor, gain: Tensor, shift: Tensor, eps: float, seed: Tensor | None, salt: int, p: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """From convolved rows to the sublayer's output, W_out's product (N, P), LayerNorm's mean and deviation (N, 2)."""
    made = _new_out(c, x)
    native.call(
        symbol("convolution_out", c.dtype), *made, c, statistics, scale, offset, x, windows, windows.shape[1], *x.shape,
        w_out, b_out, gain, shift, eps, seed, salt, p,
    )  # fmt: skip
    return made


def _new_backward_out(x: Tensor, product: Tensor):  # type: ignore[no-untyped-def]
    half, width = (torch.empty_like(product) for _ in range(3)), x.shape[1]
    return torch.empty_like(x), *half, new(x, 3, width), new(x, 3, width)


@kernel_op(_new_backward_out)
def cpu_convolution_backward_out(
    dy: Tensor, x: Tensor, product: Tensor, stats: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor,
    windows: Tensor, w_out: Tensor, b_out: Tensor, gain: Tensor, seed: Tensor | None, salt: int, p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The residual's share of dx; d_o and s, for W_out; the gradient of BatchNorm's result; sums for vectors."""
    made = _new_backward_out(x, product)
    native.call(
        symbol("convolution_backward_out", c.dtype), *made, dy, x, product, stats, c, statistics, scale, offset,
        windows, windows.shape[1], *x.shape, w_out, b_out, gain, seed, salt, p,
    )  # fmt: skip
    return made


def _new_backward_in(
    c: Tensor, kept: Tensor, x: Tensor, reversed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        torch.empty_like(x),
        torch.empty_like(kept),
        torch.empty_like(c),
        torch.empty_like(reversed),
        new(x, 2, c.shape[1]),
        new(x, 2, x.shape[1]),
    )


@kernel_op(_new_backward_in)
def cpu_convolution_backward_in(
    dn: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, count: Tensor, sums: Tensor | None, kept: Tensor,
    x: Tensor, stats: Tensor, dz: Tensor, windows: Tensor, w_in: Tensor, reversed: Tensor, before: int, after: int,
    gain: Tensor, shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx; d and LayerNorm's rows, for W_in; gradients of the taps, `grouped`; sums for vectors."""
    made = _new_backward_in(c, kept, x, reversed)
    native.call(
        symbol("convolution_backward_in", c.dtype), *made, dn, c, statistics, scale, count, sums, kept, x, stats, dz,
        windows, windows.shape[1], *x.shape, w_in, reversed, reversed.shape[1], before, after, gain, shift,
    )  # fmt: skip
    return made


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain_in: Tensor, shift_in: Tensor, w_in: Tensor, b_in: Tensor, taps: Tensor, scale: Tensor,
        offset: Tensor, w_out: Tensor, b_out: Tensor, gain_out: Tensor, shift_out: Tensor, w: Weights, norm: Norm,
        spans: Tensor, seed: Tensor | None, salt: int, p: float, eps_in: float, eps_out: float,
    ) -> Tensor:  # fmt: skip
        x = rows_of(x)
        kept, c, stats_in, partial = cpu_convolution_depthwise(
            x, spans, *w[:4], grouped(taps), taps.shape[1] // 2, gain_in, shift_in, eps_in
        )
        count, statistics = spans.new_zeros(1, dtype=torch.float32), norm.fixed
        if statistics is None:
            count, statistics = merged(cpu_batch_norm_merge, spans[1].float(), partial, norm)
        y, product, stats = cpu_convolution_out(
            c, statistics, scale, offset, x, spans, w.out, b_out, gain_out, shift_out, eps_out, seed, salt, p
        )
        ctx.save_for_backward(
            x, kept, c, product, stats_in, stats, count, statistics, gain_in, shift_in, w_in, taps, scale, offset,
            w_out, b_out, gain_out, spans, seed,
        )  # fmt: skip
        ctx.group, ctx.fixed, ctx.salt, ctx.p = norm.group, norm.fixed is not None, salt, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (
            x, kept, c, product, stats_in, stats, count, statistics, gain_in, shift_in, w_in, taps, scale, offset,
            w_out, b_out, gain_out, spans, seed,
        ) = ctx.saved_tensors  # fmt: skip
        (width, kernel), p, dtype = taps.shape, c.shape[1], c.dtype
        dz, d_o, s, dn, d_end, d_norm = cpu_convolution_backward_out(
            rows_of(dy), x, product, stats, c, statistics, scale, offset, spans, cpu_pack(w_out, True, dtype), b_out,
            gain_out, seed, ctx.salt, ctx.p,
        )  # fmt: skip
        d_w_out = cpu_weight_gradient(d_o, s, width, width, spans)
        del d_o, s
        sums = None
        if not ctx.fixed:
            sums = d_norm
            if ctx.group is not None:
                sums = d_norm.clone()
                dist.all_reduce(sums, group=ctx.group)
        halves = x.new_zeros(2, p, width)
        halves[:, :width] = w_in.view(2, width, width)
        dx, d, a, d_taps, d_bias, d_norm_in = cpu_convolution_backward_in(
            dn, c, statistics, scale, count, sums, kept, x, stats_in, dz, spans,
            cpu_pack(halves.view(-1, width), True, dtype), grouped(taps.flip(1)), kernel // 2, kernel - 1 - kernel // 2,
            gain_in, shift_in,
        )  # fmt: skip
        d_w_in = cpu_weight_gradient(d.view(-1, 2 * p), a, 2 * p, width, spans).view(2, p, width)[:, :width]
        d_taps = d_taps.transpose(1, 2).reshape(p, -1)[:width, :kernel]
        return (
            dx, *d_norm_in, d_w_in.reshape(-1, width), d_bias[:, :width].reshape(-1), d_taps, *d_norm[:2], d_w_out,
            *d_end, *[None] * 8,
        )  # fmt: skip


def convolution(module: Convolution, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Convolution`."""
    w, spans, norm_in, norm_out = weights(module, compute_dtype(x)), windows(layout), module.norm_in, module.norm_out
    inner, outer, norm = module.pointwise_in, module.pointwise_out, module.batch_norm
    p = module.dropout.p if module.dropout.training else 0.0
    if p == 0 and not norm.training and not wants_gradient(module, x):
        return cpu_convolution(
            rows_of(x), spans, *w, *folded(module), module.depthwise.shape[1] // 2, norm_in.weight, norm_in.bias,
            norm_in.eps, outer.bias, norm_out.weight, norm_out.bias, norm_out.eps,
        )  # fmt: skip
    return _Convolution.apply(
        x, norm_in.weight, norm_in.bias, inner.weight, inner.bias, module.depthwise, norm.weight, norm.bias,
        outer.weight, outer.bias, norm_out.weight, norm_out.bias, w, norm_of(norm), spans,
        layout.seed() if p > 0 else None, module.dropout.salt, p, norm_in.eps, norm_out.eps,
    )  # fmt: skip
