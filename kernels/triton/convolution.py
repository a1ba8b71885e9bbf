"""The convolution sublayer: LayerNorm(x + Dropout(W_out SiLU(BatchNorm(conv(GLU(W_in LayerNorm(x)))))))).

Inference takes 3 launches: LayerNorm, both projections and the gate; the convolution, BatchNorm and SiLU; W_out,
residual and LayerNorm. Training takes 5 or 7, the preparation of weights included, because the convolved rows must be
in memory before BatchNorm's statistics are known; `sublayer_end` is the rest. Backward keeps x (the output of the
sublayer before, so it is in memory anyway), the gated rows u, the convolved rows c, the normalised sum, and vectors;
it computes SiLU(BatchNorm(c)) again.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.batch_statistics import Norm, fixed_statistics, merged, norm_of, running_statistics
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import compute_dtype, no_autocast, rows_of, wants_gradient
from astroco_fast.kernels.triton.batch_norm import (
    batch_norm_merge,
    batch_norm_silu_gradient,
    batch_norm_silu_sums,
)
from astroco_fast.kernels.triton.column_sums import summed
from astroco_fast.kernels.triton.convolution_weights import convolution_weights
from astroco_fast.kernels.triton.depthwise import (
    depthwise_input_gradient,
    depthwise_silu,
    depthwise_statistics,
)
from astroco_fast.kernels.triton.depthwise_taps import depthwise_tap_gradient
from astroco_fast.kernels.triton.gated_linear import gated_linear
from astroco_fast.kernels.triton.gated_onto import input_gradient
from astroco_fast.kernels.triton.linear_residual_norm import linear_residual_norm
from astroco_fast.kernels.triton.residual_norm_product import end_gradients, sublayer_end
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.kernels.triton.tensors import weight_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import Convolution


class Weights(NamedTuple):
    """The matrices and the depthwise convolution's bands in the compute dtype, channels padded to P."""

    matrices: Tensor  # (3 P, P): W_in's values, its gates, W_out
    bands: Tensor  # (2, P, M, 256), as in `convolution_weights`

    @property
    def both(self) -> Tensor:
        return self.matrices[: 2 * self.bands.shape[1]]

    @property
    def val(self) -> Tensor:
        return self.matrices[: self.bands.shape[1]]

    @property
    def gate(self) -> Tensor:
        return self.matrices[self.bands.shape[1] : 2 * self.bands.shape[1]]

    @property
    def out(self) -> Tensor:
        return self.matrices[2 * self.bands.shape[1] :]


def weights(module: Convolution, dtype: torch.dtype) -> Weights:
    """The module's matrices and taps, prepared."""
    sources = (module.pointwise_in.weight, module.pointwise_out.weight, module.depthwise)
    return prepared(module, ("convolution", dtype), sources, lambda: Weights(*convolution_weights(*sources, dtype)))


def batch_norm(module: Convolution) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation mode, as a scale and an offset (P,)."""
    norm = module.batch_norm

    def make() -> tuple[Tensor, Tensor]:
        mean, _, _, rstd = fixed_statistics(norm)
        scale, offset = torch.zeros_like(mean), torch.zeros_like(mean)
        width = norm.weight.shape[0]
        scale[:width] = norm.weight * rstd[:width]
        offset[:width] = norm.bias - mean[:width] * scale[:width]
        return scale, offset

    sources = (norm.weight, norm.bias, *running_statistics(norm))
    return prepared(module, "batch_norm", sources, make, (norm.eps,))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain_in: Tensor, shift_in: Tensor, w_in: Tensor, b_in: Tensor, depthwise: Tensor,
        scale: Tensor, offset: Tensor, w_out: Tensor, b_out: Tensor, gain_out: Tensor, shift_out: Tensor, w: Weights,
        norm: Norm, tiles: Tensor, first: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float, eps_in: float,
        eps_out: float,
    ) -> Tensor:  # fmt: skip
        x = rows_of(x)
        b_val, b_gate = b_in.chunk(2)
        with no_autocast(x):
            u, mean_in, rstd_in, _ = gated_linear(
                x, gain_in, shift_in, eps_in, w.val, w.gate, b_val, b_gate, end, "glu"
            )
            c, count, partial = depthwise_statistics(u, w.bands[0], tiles, first, end, depthwise.shape[1])
            if norm.fixed is None:
                count, statistics = merged(batch_norm_merge, count, partial, norm)
            else:
                statistics = norm.fixed
            y, normal, spread = sublayer_end(
                c, w.out, b_out, x, gain_out, shift_out, end, seed, salt, p, eps_out, (statistics, scale, offset)
            )
        ctx.save_for_backward(
            x, u, c, normal, mean_in, rstd_in, spread, count, statistics, gain_in, shift_in, b_in, scale, offset,
            gain_out, w.matrices, w.bands, tiles, first, end, seed,
        )  # fmt: skip
        ctx.group, ctx.fixed, ctx.salt, ctx.p = norm.group, norm.fixed is not None, salt, p
        ctx.taps = depthwise.shape[1]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (
            x, u, c, normal, mean_in, rstd_in, spread, count, statistics, gain_in, shift_in, b_in, scale, offset,
            gain_out, matrices, bands, tiles, first, end, seed,
        ) = ctx.saved_tensors  # fmt: skip
        w, width = Weights(matrices, bands), x.shape[1]
        with no_autocast(x):
            dz, do, ds, of_norm_out = end_gradients(
                rows_of(dy), normal, spread, gain_out, end, seed, ctx.salt, ctx.p, w.out
            )
            s, sums = batch_norm_silu_sums(ds, c, statistics, scale, offset, end)
            d_w_out = weight_gradient(do, s)[:width, :width]
            d_scale, d_offset = local = sums.sum(0)
            everywhere = local
            if ctx.group is not None and not ctx.fixed:
                everywhere = local.clone()
                dist.all_reduce(everywhere, group=ctx.group)
            dc = batch_norm_silu_gradient(ds, c, statistics, scale, offset, end, count, everywhere, ctx.fixed)
            of_taps = depthwise_tap_gradient(dc, u, tiles, first, end, width, ctx.taps)
            du = depthwise_input_gradient(dc, bands[1], tiles, first, end, ctx.taps)
            b_val, b_gate = b_in.chunk(2)
            d, _, a, dx, of_gate, of_norm_in = input_gradient(
                x, gain_in, shift_in, mean_in, rstd_in, w.both, b_val, b_gate, end, du, dz, "glu"
            )
            d_w_in = weight_gradient(d, a).view(2, -1, a.shape[1])[:, :width, :width].reshape(-1, width)
            (d_gain_out, d_shift_out, d_b_out), d_depthwise, d_b_in, (d_gain_in, d_shift_in) = summed(
                of_norm_out, of_taps, of_gate, of_norm_in
            )
            d_b_in = d_b_in[:, :width].reshape(-1)
        return (
            dx, d_gain_in, d_shift_in, d_w_in, d_b_in, d_depthwise, d_scale, d_offset, d_w_out, d_b_out, d_gain_out,
            d_shift_out, *[None] * 10,
        )  # fmt: skip


def convolution(module: Convolution, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Convolution`."""
    spans, w, norm = segments(layout), weights(module, compute_dtype(x)), module.batch_norm
    gain_in, shift_in, eps_in = module.norm_in.weight, module.norm_in.bias, module.norm_in.eps
    gain_out, shift_out, eps_out = module.norm_out.weight, module.norm_out.bias, module.norm_out.eps
    b_in, b_out = module.pointwise_in.bias, module.pointwise_out.bias
    p = module.dropout.p if module.dropout.training else 0.0
    if p == 0 and not norm.training and not wants_gradient(module, x):
        scale, offset = batch_norm(module)
        x = rows_of(x)
        u, *_ = gated_linear(x, gain_in, shift_in, eps_in, w.val, w.gate, *b_in.chunk(2), spans.end, "glu")
        s = depthwise_silu(u, w.bands[0], scale, offset, spans.tiles, spans.first, spans.end, module.depthwise.shape[1])
        return linear_residual_norm(s, w.out, b_out, x, gain_out, shift_out, spans.end, eps_out)
    return _Convolution.apply(
        x, gain_in, shift_in, module.pointwise_in.weight, b_in, module.depthwise, norm.weight, norm.bias,
        module.pointwise_out.weight, b_out, gain_out, shift_out, w, norm_of(norm), spans.tiles, spans.first, spans.end,
        layout.seed() if p > 0 else None, module.dropout.salt, p, eps_in, eps_out,
    )  # fmt: skip
