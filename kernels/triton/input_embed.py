"""The input embedding: LayerNorm(GELU(fuse(photometry, sines and cosines of the time))).

Forward: the points' features in one kernel, `fuse`'s product by the library, then bias, GELU and LayerNorm in one
kernel. Backward keeps the points, that product, and the norm's mean and rstd, and computes the features again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.prepared import cast, prepared
from astroco_fast.kernels.tensors import compute_dtype, no_autocast, pitch, rows_of
from astroco_fast.kernels.triton.gelu_norm import gelu_norm, gelu_norm_backward
from astroco_fast.kernels.triton.point_features import hide_bits, point_features
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.kernels.triton.tensors import weight_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import InputEmbed


class _InputEmbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, w_points: Tensor, b_points: Tensor,
        w_fuse: Tensor, b_fuse: Tensor, gain: Tensor, shift: Tensor, fuse: Tensor, frequencies: Tensor, end: Tensor,
        hide: int, eps: float,
    ) -> Tensor:  # fmt: skip
        time, mag, err = rows_of(time), rows_of(mag), rows_of(err)
        hidden = None if hidden is None else rows_of(hidden)
        with no_autocast(time):
            features = point_features(time, mag, err, hidden, frequencies, w_points, b_points, end, hide, fuse)
            o = torch.mm(features, fuse.t())
            y, mean, rstd = gelu_norm(o, b_fuse, gain, shift, end, eps)
        ctx.save_for_backward(
            time, mag, err, hidden, w_points, b_points, w_fuse, b_fuse, gain, frequencies, end, o, mean, rstd
        )
        ctx.hide = hide
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        time, mag, err, hidden, w_points, b_points, w_fuse, b_fuse, gain, frequencies, end, o, mean, rstd = (
            ctx.saved_tensors
        )
        width, half = w_fuse.shape[0], w_points.shape[0]
        with no_autocast(time):
            do, sums = gelu_norm_backward(rows_of(dy), o, b_fuse, gain, end, mean, rstd, mag, err, hidden, ctx.hide)
            d_gain, d_shift, d_b_fuse, by_mag, by_err = sums.sum(0)
            features = point_features(time, mag, err, hidden, frequencies, w_points, b_points, end, ctx.hide, o)
            d_w_fuse = weight_gradient(do, features)[:width, :width]
            photometry = torch.mm(w_fuse[:, :half].t(), torch.stack([by_mag, by_err, d_b_fuse], dim=1))
        d_w_points, d_b_points = photometry[:, :2], photometry[:, 2]
        return None, None, None, None, d_w_points, d_b_points, d_w_fuse, d_b_fuse, d_gain, d_shift, *[None] * 5


def input_embed(
    module: InputEmbed, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    """Points (N,) to x(0), rows (N, D); see `reference.sublayers.InputEmbed`.

    The reference runs if gradients of the points themselves are wanted (for a saliency map, say), or if a tensor is not
    float32.
    """
    points, weight, dtype = (time, mag, err), module.fuse.weight, compute_dtype(time)
    saliency = torch.is_grad_enabled() and any(x.requires_grad for x in points)
    if saliency or any(x.dtype != torch.float32 for x in (*points, weight)):
        return module(time, mag, err, hidden, layout)

    def make_frequencies() -> Tensor:
        frequencies = module.frequencies(time)
        return F.pad(frequencies, (0, pitch(frequencies.shape[0]) - frequencies.shape[0]))

    shape = 2 * (pitch(weight.shape[0]),)
    fuse = prepared(module, ("fuse", dtype), (weight,), lambda: cast(dtype, [(weight, shape)])[0])
    settings = (module.time_base, time.device)
    frequencies = prepared(module, "frequencies", (), make_frequencies, settings)
    return _InputEmbed.apply(
        time, mag, err, hidden, module.photometry.weight, module.photometry.bias, weight, module.fuse.bias,
        module.norm.weight, module.norm.bias, fuse, frequencies, segments(layout).end,
        hide_bits(module.hide, hidden), module.norm.eps,
    )  # fmt: skip
