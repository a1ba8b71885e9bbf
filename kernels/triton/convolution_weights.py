"""All of the convolution sublayer's matrices prepared in one launch: cast, padded with zeros, the taps transposed.

Weights change at every training step, so this kernel runs in every forward pass. It reads 12 D^2 + 4 K D bytes of
float32 parameters and writes (3 P, P) in the compute dtype and (K, P) float32. It reads the taps across their rows,
number by number, which costs little because they are few.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit(repr=named("convolution_weights"))
def _kernel(
    w_in, w_out, depthwise, matrices, taps,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // (P // BLOCK_C) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (column < D)[None, :]
    # Rows 0 .. 2 P - 1 are the two halves of w_in, the next P are w_out, the next K the taps.
    matrix = row // P
    source = row % P
    here = (source < D)[:, None] & exists
    at = source[:, None] * D + column[None, :]
    value = tl.load(w_in + (matrix * D * D)[:, None] + at, mask=here & (matrix < 2)[:, None], other=0.0)
    value += tl.load(w_out + at, mask=here & (matrix == 2)[:, None], other=0.0)
    at = row[:, None] * P + column[None, :]
    tl.store(matrices + at, value.to(matrices.dtype.element_ty), mask=(matrix < 3)[:, None])
    k = row - 3 * P
    inside = ((k >= 0) & (k < K))[:, None]
    tap = tl.load(depthwise + column[None, :] * K + k[:, None], mask=inside & exists, other=0.0)
    tl.store(taps + k[:, None] * P + column[None, :], tap, mask=inside)


def _outputs(w_in: Tensor, w_out: Tensor, depthwise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    width, taps = depthwise.shape
    return new(w_out, 3 * pitch(width), pitch(width), dtype=dtype), new(depthwise, taps, pitch(width))


@kernel_op(_outputs)
def convolution_weights(w_in: Tensor, w_out: Tensor, depthwise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sublayer's matrices as kernels read them.

    Args:
        w_in: (2 D, D) float32, values and gates.
        w_out: (D, D) float32.
        depthwise: (D, K) float32.
        dtype: the compute dtype.

    Returns:
        (3 P, P) in `dtype`: the values' rows of w_in, padded to P, its gates' rows, likewise, and w_out; and the taps
        (K, P) float32.
    """
    matrices, taps = outputs = _outputs(w_in, w_out, depthwise, dtype)
    width, count = depthwise.shape
    padded = pitch(width)
    config = Config({"BLOCK_R": 32, "BLOCK_C": 32}, warps=4, stages=1)
    grid = (cdiv(3 * padded + count, 32) * (padded // 32),)
    launch(_kernel, grid, w_in, w_out, depthwise, matrices, taps, D=width, P=padded, K=count, config=config)
    return outputs
