"""The input embedding: LayerNorm(GELU(fuse(photometry, sines and cosines of the time))).

Both directions are one pass over tiles of points (csrc/input_embed.h). Kept for backward: what `fuse` multiplies and
its product, half rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu.arguments import native_op
from astroco_fast.kernels.cpu.weights import cpu_weight_gradient, pack
from astroco_fast.kernels.cpu.windows import windows_of
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import compute_dtype, new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import InputEmbed

_BITS = {"time": 1, "magnitude": 2, "uncertainty": 4}  # of the argument `hide`


@native_op("y features product")
def cpu_input_embed(
    time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, hide: int, windows: Tensor, base: float,
    w_points: Tensor, b_points: Tensor, w_fuse: Tensor, b_fuse: Tensor, gain: Tensor, shift: Tensor, eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x(0); then what backward needs, without rows unless `keep`. Shapes: csrc/input_embed.h."""
    rows, width, dtype = time.shape[0], b_fuse.shape[0], w_fuse.dtype
    kept = rows if keep else 0
    return (
        new(time, rows, width),
        new(time, kept, pitch(width), dtype=dtype),
        new(time, kept, pitch(width), dtype=dtype),
    )


@native_op("d_o d_vectors")
def cpu_input_embed_backward(
    dy: Tensor, product: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, hide: int, windows: Tensor,
    b_fuse: Tensor, gain: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of the product, at real rows only, and the sums that the vectors' gradients are made of."""
    return torch.empty_like(product), new(dy, 5, dy.shape[1])


class _InputEmbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, w_points: Tensor, b_points: Tensor,
        w_fuse: Tensor, b_fuse: Tensor, gain: Tensor, shift: Tensor, packed: Tensor, hide: int, windows: Tensor,
        base: float, eps: float,
    ) -> Tensor:  # fmt: skip
        y, *kept = cpu_input_embed(
            time, mag, err, hidden, hide, windows, base, w_points, b_points, packed, b_fuse, gain, shift, eps, keep=True
        )
        ctx.save_for_backward(*kept, mag, err, hidden, w_fuse, b_fuse, gain, windows)
        ctx.hide, ctx.eps = hide, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        features, product, mag, err, hidden, w_fuse, b_fuse, gain, windows = ctx.saved_tensors
        width = gain.shape[0]
        d_o, d_vectors = cpu_input_embed_backward(
            rows_of(dy), product, mag, err, hidden, ctx.hide, windows, b_fuse, gain, ctx.eps
        )
        d_gain, d_shift, d_b_fuse, by_mag, by_err = d_vectors
        d_w_fuse = cpu_weight_gradient(d_o, features, width, width, windows)
        photometry = torch.stack([by_mag, by_err, d_b_fuse])[:, :, None]
        # Not a product by `mm`, which autocast would round to bfloat16.
        d_mag, d_err, d_b_points = (photometry * w_fuse[:, : width // 2]).sum(1)
        d_w_points = torch.stack([d_mag, d_err], dim=1)
        return *[None] * 4, d_w_points, d_b_points, d_w_fuse, d_b_fuse, d_gain, d_shift, *[None] * 5


def input_embed(
    module: InputEmbed, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    """Points (N,) to x(0), rows (N, D); see `reference.sublayers.InputEmbed`.

    The reference runs where a gradient with respect to the points themselves is wanted, as for a saliency map.
    """
    points = [time, mag, err]
    if torch.is_grad_enabled() and any(x.requires_grad for x in points):
        return module(time, mag, err, hidden, layout)
    linear, fuse, norm, dtype = module.photometry, module.fuse, module.norm, compute_dtype(time)
    packed = prepared(module, ("cpu input_embed", dtype), (fuse.weight,), lambda: pack(fuse.weight, dtype))
    points = [rows_of(x) for x in points]
    hidden = None if hidden is None else rows_of(hidden)
    hide = sum(_BITS[name] for name in set(module.hide))
    windows, base = windows_of(layout), float(module.time_base)
    if not wants_gradient(module):
        ends = (linear.weight, linear.bias, packed, fuse.bias, norm.weight, norm.bias, norm.eps)
        return cpu_input_embed(*points, hidden, hide, windows, base, *ends, keep=False)[0]
    return _InputEmbed.apply(
        *points, hidden, linear.weight, linear.bias, fuse.weight, fuse.bias, norm.weight, norm.bias, packed, hide,
        windows, base, norm.eps,
    )  # fmt: skip
