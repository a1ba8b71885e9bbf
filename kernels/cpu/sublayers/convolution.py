"""The convolution sublayer: LayerNorm(x + Dropout(W_out SiLU(BatchNorm(conv(GLU(W_in LayerNorm(x)))))))).

Inference is one pass over the windows, BatchNorm folded into the taps (csrc/convolution.h).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from astroco_fast.kernels.cpu import native
from astroco_fast.kernels.cpu.weights import pack, padded, symbol
from astroco_fast.kernels.cpu.windows import windows
from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.prepared import prepared
from astroco_fast.kernels.tensors import PITCH, compute_dtype, pitch, rows_of
from astroco_fast.layout import Layout
from astroco_fast.reference.sublayers import Convolution

SPAN = 8  # taps come in multiples of this


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
        val, gate = (pack(half, False, dtype) for half in inner.weight.detach().chunk(2))
        b_val, b_gate = (padded(half) for half in inner.bias.detach().chunk(2))
        return Weights(val, gate, b_val, b_gate, pack(outer.weight.detach(), False, dtype))

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


def _new_rows(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


@kernel_op(
    "cpu_convolution(Tensor x, Tensor windows, Tensor w_val, Tensor w_gate, Tensor b_val, Tensor b_gate, Tensor w_out, "
    "Tensor taps, Tensor offset, int before, Tensor gain_in, Tensor shift_in, float eps_in, Tensor b_out, Tensor gain, "
    "Tensor shift, float eps) -> Tensor",
    _new_rows,
)
def inference(
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


def convolution(module: Convolution, x: Tensor, layout: Layout) -> Tensor:
    """Rows (N, D) to rows (N, D); see `reference.sublayers.Convolution`."""
    w, spans, norm_in, norm_out = weights(module, compute_dtype(x)), windows(layout), module.norm_in, module.norm_out
    before, b_out = module.depthwise.shape[1] // 2, module.pointwise_out.bias
    return inference(
        rows_of(x), spans, *w, *folded(module), before, norm_in.weight, norm_in.bias, norm_in.eps, b_out,
        norm_out.weight, norm_out.bias, norm_out.eps,
    )  # fmt: skip
