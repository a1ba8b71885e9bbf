"""The input embedding: LayerNorm(GELU(fuse(photometry, sines and cosines of the time))).

Both directions are one pass over tiles of points. Training keeps what `fuse` multiplies and its product, half rows, and
the norm's statistics.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.weights import cpu_pack, cpu_weight_gradient, symbol
from astroco_fast.kernels.cpu.windows import windows
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import compute_dtype, new, pitch, rows_of, wants_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import InputEmbed

_BITS = {"time": 1, "magnitude": 2, "uncertainty": 4}


def _new_outputs(time: Tensor, fuse: Tensor, b_fuse: Tensor, keep: bool):  # type: ignore[no-untyped-def]
    rows, width = time.shape[0], b_fuse.shape[0]
    kept = rows if keep else 0
    half_row = (kept, pitch(width))
    return (
        new(time, rows, width),
        new(time, *half_row, dtype=fuse.dtype),
        new(time, *half_row, dtype=fuse.dtype),
        new(time, kept, 2),
    )


@kernel_op(_new_outputs)
def cpu_input_embed(
    time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, hide: int, windows: Tensor, base: float,
    w_points: Tensor, b_points: Tensor, fuse: Tensor, b_fuse: Tensor, gain: Tensor, shift: Tensor, eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x(0), and where `keep` what backward wants: what `fuse` multiplies, its product, the norm's statistics.

    Args:
        time, mag, err, hidden: (N,); `hide` says by `_BITS` which fields of hidden points are zero.
        base: of the sinusoids' frequencies.
        fuse: packed, in the compute dtype.
    """
    y, *kept = made = _new_outputs(time, fuse, b_fuse, keep)
    native.call(
        symbol("input_embed", fuse.dtype), y, *(kept if keep else (None, None, None)), time, mag, err, hidden, hide,
        windows, windows.shape[1], *y.shape, base, w_points, b_points, fuse, b_fuse, gain, shift, eps,
    )  # fmt: skip
    return made


def _new_gradients(dy: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(product), new(dy, 5, dy.shape[1])


@kernel_op(_new_gradients)
def cpu_input_embed_backward(
    dy: Tensor, product: Tensor, stats: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, hide: int,
    windows: Tensor, b_fuse: Tensor, gain: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of the product, half rows, real ones only; sums (5, D) for the vectors', see csrc/input_embed.h."""
    made = _new_gradients(dy, product)
    native.call(
        symbol("input_embed_backward", product.dtype), *made, dy, product, stats, mag, err, hidden, hide, windows,
        windows.shape[1], *dy.shape, b_fuse, gain,
    )  # fmt: skip
    return made


class _InputEmbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, w_points: Tensor, b_points: Tensor,
        w_fuse: Tensor, b_fuse: Tensor, gain: Tensor, shift: Tensor, fuse: Tensor, hide: int, spans: Tensor,
        base: float, eps: float,
    ) -> Tensor:  # fmt: skip
        y, features, product, stats = cpu_input_embed(
            time, mag, err, hidden, hide, spans, base, w_points, b_points, fuse, b_fuse, gain, shift, eps, keep=True
        )
        ctx.save_for_backward(features, product, stats, mag, err, hidden, w_fuse, b_fuse, gain, spans)
        ctx.hide = hide
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        features, product, stats, mag, err, hidden, w_fuse, b_fuse, gain, spans = ctx.saved_tensors
        width = gain.shape[0]
        d_o, sums = cpu_input_embed_backward(
            rows_of(dy), product, stats, mag, err, hidden, ctx.hide, spans, b_fuse, gain
        )
        d_gain, d_shift, d_b_fuse, by_mag, by_err = sums
        d_w_fuse = cpu_weight_gradient(d_o, features, width, width, spans)
        photometry = torch.stack([by_mag, by_err, d_b_fuse])[:, :, None]
        # Not a product by `mm`, which autocast would round to bfloat16.
        d_mag, d_err, d_b_points = (photometry * w_fuse[:, : width // 2]).sum(1)
        return (
            *[None] * 4, torch.stack([d_mag, d_err], dim=1), d_b_points, d_w_fuse, d_b_fuse, d_gain, d_shift,
            *[None] * 5,
        )  # fmt: skip


def input_embed(
    module: InputEmbed, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    """Points (N,) to x(0), rows (N, D); see `reference.sublayers.InputEmbed`.

    Where a gradient with respect to the points themselves is wanted, as for a saliency map, the reference runs.
    """
    points = [time, mag, err]
    if torch.is_grad_enabled() and any(x.requires_grad for x in points):
        return module(time, mag, err, hidden, layout)
    weight, dtype, norm = module.fuse.weight, compute_dtype(time), module.norm
    fuse = prepared(module, ("cpu input_embed", dtype), (weight,), lambda: cpu_pack(weight.detach(), False, dtype))
    points = [rows_of(x) for x in points]
    shown = None if hidden is None else rows_of(hidden)
    hide = sum(_BITS[name] for name in set(module.hide))
    linear, base, spans = module.photometry, float(module.time_base), windows(layout)
    if not wants_gradient(module):
        ends = (linear.weight, linear.bias, fuse, module.fuse.bias, norm.weight, norm.bias, norm.eps)
        return cpu_input_embed(*points, shown, hide, spans, base, *ends, keep=False)[0]
    return _InputEmbed.apply(
        *points, shown, linear.weight, linear.bias, weight, module.fuse.bias, norm.weight, norm.bias, fuse, hide, spans,
        base, norm.eps,
    )  # fmt: skip
