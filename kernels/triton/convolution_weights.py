"""All of the convolution sublayer's matrices prepared in one launch: cast, padded with zeros, the taps as bands.

Weights change at every training step, so this kernel runs in every forward pass. It reads 12 D^2 + 4 K D bytes of
float32 parameters and writes (3 P, P) and (2, P, M, 256) in the compute dtype.

Bands: for tensor cores, a channel's 16 outputs of the depthwise convolution are its inputs, in M chunks of 16 rows,
times a matrix of 16 x 16 for each chunk, which has tap 16 (m - M0) + j - i + K // 2 for the chunk's input j and output
i, M0 = ceil(K // 2 / 16); the gradient's outputs i and inputs j have the tap with i and j exchanged. A matrix's 256
numbers lie as tensor cores want them in half precision: eight for each of a warp's 32 threads, 4 a + b, which are the
outputs 8 x + a and the inputs 8 y + 2 b + z for x, y and z of 0 and 1 in this order.
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
    w_in, w_out, depthwise, matrices, bands,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // (P // BLOCK_C) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0) % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (column < D)[None, :]
    # Rows 0 .. 2 P - 1 are the two halves of w_in, the next P are w_out, and the rest the bands, as if they were such.
    matrix = row // P
    source = row % P
    here = (source < D)[:, None] & exists
    at = source[:, None] * D + column[None, :]
    value = tl.load(w_in + (matrix * D * D)[:, None] + at, mask=here & (matrix < 2)[:, None], other=0.0)
    value += tl.load(w_out + at, mask=here & (matrix == 2)[:, None], other=0.0)
    at = row[:, None] * P + column[None, :]
    tl.store(matrices + at, value.to(matrices.dtype.element_ty), mask=(matrix < 3)[:, None])
    if (tl.program_id(0) // (P // BLOCK_C) + 1) * BLOCK_R > 3 * P:
        before: tl.constexpr = (K // 2 + 15) // 16
        number = (row[:, None] - 3 * P) * P + column[None, :]
        within, chunk = number % 256, number // 256 % CHUNKS
        channel = number // (256 * CHUNKS)
        mirrored = channel >= P
        channel = tl.where(mirrored, channel - P, channel)
        j = within // 2 % 2 * 8 + within // 8 % 4 * 2 + within % 2
        i = within // 4 % 2 * 8 + within // 32
        k = 16 * (chunk - before) + tl.where(mirrored, i - j, j - i) + K // 2
        known = (number >= 0) & (k >= 0) & (k < K) & (channel < D)
        tap = tl.load(depthwise + channel * K + k, mask=known, other=0.0)
        tl.store(bands + number, tap.to(bands.dtype.element_ty), mask=(number >= 0) & (number < 2 * P * CHUNKS * 256))


def chunks(taps: int) -> int:
    """M, the chunks of 16 inputs that 16 outputs see."""
    return cdiv(taps // 2, 16) + cdiv(taps - 1 - taps // 2, 16) + 1


def _outputs(w_in: Tensor, w_out: Tensor, depthwise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    width, taps = depthwise.shape
    padded = pitch(width)
    return new(w_out, 3 * padded, padded, dtype=dtype), new(w_out, 2, padded, chunks(taps), 256, dtype=dtype)


@kernel_op(_outputs)
def convolution_weights(w_in: Tensor, w_out: Tensor, depthwise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sublayer's matrices as kernels read them.

    Args:
        w_in: (2 D, D) float32, values and gates.
        w_out: (D, D) float32.
        depthwise: (D, K) float32.
        dtype: the compute dtype.

    Returns:
        In `dtype`, (3 P, P): the values' rows of w_in, padded to P, its gates' rows, likewise, and w_out; and the bands
        (2, P, M, 256) of the forward and of the backward pass.
    """
    matrices, bands = outputs = _outputs(w_in, w_out, depthwise, dtype)
    width, taps = depthwise.shape
    padded = pitch(width)
    config = Config({"BLOCK_R": 32, "BLOCK_C": 32}, warps=4, stages=1)
    grid = (cdiv(3 * padded + 2 * chunks(taps) * 256, 32) * (padded // 32),)
    launch(
        _kernel, grid, w_in, w_out, depthwise, matrices, bands,
        D=width, P=padded, K=taps, CHUNKS=chunks(taps), config=config,
    )  # fmt: skip
    return outputs
