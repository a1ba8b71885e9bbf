"""The feed-forward sublayer: LayerNorm(x + Dropout(W_out(GELU(W_val x) * sigmoid(W_gate x)))).

Forward in training: one kernel where that fits the GPU (`feed_forward_training`), else both up-projections and the gate
in one, W_out's product by the library, then bias, dropout, residual and LayerNorm in one. Backward keeps x (the output
of the sublayer before, so it is in memory anyway), and the normalised sum and its scale (residual_norm.py). It computes
both up-projections again, unless `KEEP`. Inference is one kernel where that fits the GPU (`feed_forward_fused`), else
two.
"""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import compute_dtype, no_autocast, pitch, rows_of, wants_gradient
from astroco_fast.kernels.triton.column_sums import summed
from astroco_fast.kernels.triton.feed_forward_fused import feed_forward_fused, fits
from astroco_fast.kernels.triton.feed_forward_training import feed_forward_training
from astroco_fast.kernels.triton.feed_forward_training import fits as training_fits
from astroco_fast.kernels.triton.gated_linear import gated_linear
from astroco_fast.kernels.triton.gated_onto import input_gradient
from astroco_fast.kernels.triton.linear_residual_norm import linear_residual_norm
from astroco_fast.kernels.triton.residual_norm_product import end_gradients, sublayer_end
from astroco_fast.kernels.triton.segments import segments
from astroco_fast.kernels.triton.tensors import weight_gradient
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import FeedForward

# ASTROCO_TRITON_KEEP=1: training keeps W_val x and W_gate x in the compute dtype. In half precision that is 16 D bytes
# a point, half as much again as all else that a block keeps, and saves this backward a quarter of its arithmetic.
KEEP = os.environ.get("ASTROCO_TRITON_KEEP") == "1"


class Weights(NamedTuple):
    """The three matrices in the compute dtype, hidden units padded to F, channels to P."""

    up: Tensor  # (2F, P): W_val, then W_gate
    out: Tensor  # (P, F)

    @property
    def val(self) -> Tensor:
        return self.up[: self.out.shape[1]]

    @property
    def gate(self) -> Tensor:
        return self.up[self.out.shape[1] :]


def weights(module: FeedForward, dtype: torch.dtype) -> Weights:
    """The module's matrices, prepared."""
    val, gate, out = module.w_val.weight, module.w_gate.weight, module.w_out.weight
    hidden, depth = pitch(val.shape[0]), pitch(val.shape[1])

    def make() -> Weights:
        # `cast` would make two tensors of W_val and W_gate, which have to be one. Zeroing costs a launch.
        allocate = torch.empty if val.shape == (hidden, depth) else torch.zeros
        up = allocate(2, hidden, depth, dtype=dtype, device=val.device)
        made = allocate(depth, hidden, dtype=dtype, device=val.device)
        targets = [half[: val.shape[0], : val.shape[1]] for half in up]
        targets.append(made[: out.shape[0], : out.shape[1]])
        torch._foreach_copy_(targets, [val.detach(), gate.detach(), out.detach()])
        return Weights(up.view(2 * hidden, depth), made)

    return prepared(module, ("feed_forward", dtype), (val, gate, out), make)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_val: Tensor, b_val: Tensor, w_gate: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
        gain: Tensor, shift: Tensor, w: Weights, end: Tensor, seed: Tensor | None, salt: int, p: float, eps: float,
    ) -> Tensor:  # fmt: skip
        x = rows_of(x)
        with no_autocast(x):
            kept = None
            if not KEEP and training_fits(w.up, x.shape[1]):
                y, normal, spread = feed_forward_training(
                    x, w.up, b_val, b_gate, w.out, b_out, gain, shift, end, seed, salt, p, eps
                )
            else:
                h, _, _, vg = gated_linear(x, None, None, 0.0, w.val, w.gate, b_val, b_gate, end, "gelu", KEEP)
                kept = vg if KEEP else None
                y, normal, spread = sublayer_end(h, w.out, b_out, x, gain, shift, end, seed, salt, p, eps)
        ctx.save_for_backward(x, normal, spread, b_val, b_gate, gain, w.up, w.out, end, seed, kept)
        ctx.salt, ctx.p = salt, p
        ctx.shape = w_val.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, normal, spread, b_val, b_gate, gain, up, out, end, seed, kept = ctx.saved_tensors
        w = Weights(up, out)
        hidden, width = ctx.shape
        with no_autocast(x):
            dz, do, dh, of_norm = end_gradients(rows_of(dy), normal, spread, gain, end, seed, ctx.salt, ctx.p, w.out)
            none = x.new_empty(0)
            d, h, a, dx, of_gate, _ = input_gradient(
                x, None, None, none, none, w.up, b_val, b_gate, end, dh, dz, "gelu", kept
            )
            (d_gain, d_shift, d_b_out), d_biases = summed(of_norm, of_gate)
            d_b_val, d_b_gate = d_biases[:, :hidden]
            d_out = weight_gradient(do, h)[:width, :hidden]
            d_val, d_gate = weight_gradient(d, a).view(2, -1, a.shape[1])[:, :hidden, :width]
        return dx, d_val, d_b_val, d_gate, d_b_gate, d_out, d_b_out, d_gain, d_shift, *[None] * 6


def _inference(module: FeedForward, x: Tensor, layout: Layout) -> Tensor:
    w, end, norm = weights(module, compute_dtype(x)), segments(layout).end, module.norm
    b_val, b_gate, b_out = module.w_val.bias, module.w_gate.bias, module.w_out.bias
    x = rows_of(x)
    if fits(w.up, x.shape[1]):
        return feed_forward_fused(x, w.up, b_val, b_gate, w.out, b_out, norm.weight, norm.bias, end, norm.eps)
    h, *_ = gated_linear(x, None, None, 0.0, w.val, w.gate, b_val, b_gate, end, "gelu")
    return linear_residual_norm(h, w.out, b_out, x, norm.weight, norm.bias, end, norm.eps)


def feed_forward(module: FeedForward, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.FeedForward`."""
    p = module.dropout.p if module.dropout.training else 0.0
    if p == 0 and not wants_gradient(module, x):
        return _inference(module, x, layout)
    return _FeedForward.apply(
        x, module.w_val.weight, module.w_val.bias, module.w_gate.weight, module.w_gate.bias, module.w_out.weight,
        module.w_out.bias, module.norm.weight, module.norm.bias, weights(module, compute_dtype(x)),
        segments(layout).end, layout.seed() if p > 0 else None, module.dropout.salt, p, module.norm.eps,
    )  # fmt: skip
