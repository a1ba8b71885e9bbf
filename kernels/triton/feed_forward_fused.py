"""The feed-forward sublayer in inference, in one kernel: y = LayerNorm(x + W_out(GELU(W_val x) * sigmoid(W_gate x))).

The kernel reads x (N, D) and writes y (N, D), 8 D bytes a row. The hidden units, 16 D bytes a row if written and read
once in half precision, never leave the multiprocessor.

Tiling: a block owns 64 whole rows, since LayerNorm needs them whole, and walks over the hidden units 32 at a time: two
products with the rows of x that it holds, the gate, and a third product into accumulators that begin as residual and
bias. At D = 276 rows and accumulators are in two parts, 256 and 32 columns wide, because one of 512 would leave half of
the tensor cores' work unused.

The price: every block reads all three matrices from the second-level cache, 1.5 MB for 64 rows of preset L, 1.2 GB for
a batch of 51,200 rows. There is next to no memory traffic, but the kernel may wait for the cache. Whether the two
kernels `gated_linear` and `linear_residual_norm` are faster has not been measured on a GPU; `_COLUMNS` says what was
counted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.gate import gate
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.linear_residual_norm import squares_about, store_normalised
from astroco_fast.kernels.triton.tensors import dot_precision, split


@triton.jit
def _rows(x, row, real, column, D: tl.constexpr):
    here = real[:, None] & (column < D)[None, :]
    return tl.load(x + row[:, None] * D + column[None, :], mask=here, other=0.0).to(tl.float32)


@triton.jit
def _up(w, column, feature, P: tl.constexpr, MASKED: tl.constexpr):
    """[column, feature] of W_val^T or W_gate^T."""
    at = w + feature[None, :] * P + column[:, None]
    return tl.load(at, mask=(column < P)[:, None], other=0.0) if MASKED else tl.load(at)


@triton.jit
def _down(w, column, feature, P: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr):
    """[feature, column] of W_out^T."""
    at = w + column[None, :] * F + feature[:, None]
    return tl.load(at, mask=(column < P)[None, :], other=0.0) if MASKED else tl.load(at)


@triton.jit(repr=named("feed_forward_inference"), do_not_specialize=["rows", "hidden"])
def _kernel(
    x, w_val, w_gate, b_val, b_gate, w_out, b_out, gain, shift, end, eps, y, rows, hidden,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = P != MAIN + TAIL
    compute = w_val.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, MAIN)
    # The accumulators begin as residual and bias, because reading x a second time, at the end, would spill.
    z = _rows(x, row, real, column, D)
    left = z.to(compute)
    z += tl.load(b_out + column, mask=column < D, other=0.0)[None, :]
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        z_tail = _rows(x, row, real, last, D)
        left_tail = z_tail.to(compute)
        z_tail += tl.load(b_out + last, mask=last < D, other=0.0)[None, :]
    for start in range(0, hidden, BLOCK_F):
        feature = start + tl.arange(0, BLOCK_F)
        v = tl.dot(left, _up(w_val, column, feature, P, False), input_precision=PRECISION)
        g = tl.dot(left, _up(w_gate, column, feature, P, False), input_precision=PRECISION)
        if TAIL:
            v = tl.dot(left_tail, _up(w_val, last, feature, P, MASKED), v, input_precision=PRECISION)
            g = tl.dot(left_tail, _up(w_gate, last, feature, P, MASKED), g, input_precision=PRECISION)
        v += tl.load(b_val + feature, mask=feature < WIDTH, other=0.0)[None, :]
        g += tl.load(b_gate + feature, mask=feature < WIDTH, other=0.0)[None, :]
        gated = gate(v, g, True, compute != tl.float32).to(compute)
        z = tl.dot(gated, _down(w_out, column, feature, P, F, False), z, input_precision=PRECISION)
        if TAIL:
            z_tail = tl.dot(gated, _down(w_out, last, feature, P, F, MASKED), z_tail, input_precision=PRECISION)

    means = tl.sum(z, 1)
    if TAIL:
        means += tl.sum(z_tail, 1)
    means = means / D
    squares = squares_about(z, means, column, D)
    if TAIL:
        squares += squares_about(z_tail, means, last, D)
    rstds = reciprocal_deviations(squares, D, eps)
    store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D)
    if TAIL:
        store_normalised(z_tail, means, rstds, gain, shift, y, row, last, inside, real, D)


# The most columns (main and tail) for which the kernel compiles without local loads and stores, by architecture:
#
# | registers, local loads and stores, shared memory | D = 256 | D = 276 |
# |---|---|---|
# | sm_80 | 255, 0, 84 KB | 255, 48, 96 KB |
# | sm_86 | 255, 12, 84 KB | |
# | sm_90 | 250, 0, 128 KB | 238, 0, 144 KB |
# | sm_100 | 216, 0, 128 KB | 218, 0, 144 KB |
# | sm_120 | 255, 28, 84 KB | |
#
# (bfloat16, 64 rows, 32 hidden units, 8 warps; 64 hidden units spill on sm_80 and need 224 KB on sm_90; 128 rows spill
# everywhere; 32 rows still spill on sm_86 with D = 276.) Where products are mma.sync's, x is in registers beside the
# accumulators; wgmma and tcgen05 read it from shared memory. Float32 has twice the bytes and would not pay.
#
# On sm_80 and sm_90 it fits at D = 256, but does not pay. On sm_90 64 rows are one warp group's, so the two groups of a
# block compute both up-projections twice, and shared memory feeds them twice. `bench.roofline` (modelled) expects, for
# preset L and 256 windows, 431 us on an H100, and 297 us of the two kernels together; on an A100 879 and 724 us.
_COLUMNS = {"sm_90": 0, "sm_100": 288}
_COLUMNS_ELSEWHERE = 128


def fits(w_val: Tensor, width: int) -> bool:
    """Whether the kernel fits the GPU; if not, `gated_linear` and `linear_residual_norm` do its work."""
    limit = _COLUMNS.get(architecture(w_val.device).name, _COLUMNS_ELSEWHERE)
    return w_val.dtype != torch.float32 and sum(split(width)) <= limit


def _config(w_val: Tensor, width: int) -> Config:
    main, tail = split(width)
    if w_val.dtype == torch.float32:
        # Only tests run it. 64 rows need 464 KB of shared memory at D = 512, 16 need 96 KB.
        return Config({"BLOCK_R": 16, "BLOCK_F": 16, "MAIN": main, "TAIL": tail}, warps=8, stages=1)
    # With 64 columns and two stages, the compiler on sm_80, sm_86 and sm_89 allots at most 128 registers, and spills;
    # with three stages it does not.
    blocks = {"BLOCK_R": 64, "BLOCK_F": 32, "MAIN": main, "TAIL": tail}
    return Config(blocks, warps=8, stages=3 if main <= 64 else 2)


def _outputs(
    x: Tensor, w_val: Tensor, w_gate: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    return new(x, *x.shape)


@kernel_op(_outputs)
def feed_forward_fused(
    x: Tensor, w_val: Tensor, w_gate: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """LayerNorm(x + W_out(GELU(W_val x) * sigmoid(W_gate x))), zero at rows that are not real.

    Args:
        x: (N, D) float32.
        w_val, w_gate: (F, P) in the compute dtype, zero in rows beyond the hidden units and in columns from D on.
        b_val, b_gate: (hidden units,) float32.
        w_out: (P, F) in the compute dtype, zero from row D on.
        b_out: (D,) float32.
        gain, shift: (D,) float32, LayerNorm's.
        end: (N,) int32, as in `Segments`.
        eps: LayerNorm's.

    Returns:
        (N, D) float32.
    """
    y = _outputs(x, w_val, w_gate, b_val, b_gate, w_out, b_out, gain, shift, end, eps)
    rows, width = x.shape
    config = _config(w_val, width)
    launch(
        _kernel, (cdiv(rows, config.blocks["BLOCK_R"]),),
        x, w_val, w_gate, b_val, b_gate, w_out, b_out, gain, shift, end, eps, y, rows, w_val.shape[0],
        WIDTH=b_val.shape[0], D=width, P=pitch(width), F=w_val.shape[0], PRECISION=dot_precision(x), config=config,
    )  # fmt: skip
    return y
