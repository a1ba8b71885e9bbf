"""The feed-forward sublayer in inference, in one kernel: y = LayerNorm(x + W_out(GELU(W_val x) * sigmoid(W_gate x))).

The kernel reads x (N, D) and writes y (N, D), 8 D bytes a row. The hidden units, 16 D bytes a row if written and read
once in half precision, never leave the multiprocessor.

Tiling: a block owns whole rows, since LayerNorm needs them whole, and walks over the hidden units 32 at a time: a
product with the rows of x that it holds gives v and g, the gate follows, and a second product goes into accumulators
that begin as residual and bias. On sm_90 that one follows two steps later, so that it runs during a gate: 143 us for
150 of preset L's whole waves on an H100 (modelled); narrow rows and shares of the hidden units gain nothing from it.
Rows and accumulators are in parts: two of 128 columns at D = 256, so that one half at a time changes hands between
threads, and a tail of 32 at D = 276, because one part of 512 would leave half of the tensor cores' work unused. A warp
has whole rows; a warp group of wgmma has 64.

Every block reads all three matrices from the second-level cache, 1.57 MB for preset L. Blocks of 128 rows on sm_90 read
629 MB for a batch of 51,200 rows, and 105 MB of rows; the two kernels `gated_linear` and `linear_residual_norm` move
1.05 GB. `_COLUMNS` says where the kernel is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.feed_forward_shares import Rows, divided, launch_shares
from astroco_fast.kernels.triton.hidden_units import hidden_units
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.linear_residual_norm import squares_about, store_normalised
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import part_of_rows


@triton.jit(repr=named("feed_forward_inference"), do_not_specialize=["rows", "hidden"])
def _kernel(
    x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end, eps, y, rows, hidden,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    HALVED: tl.constexpr = MAIN >= 256
    PART: tl.constexpr = MAIN // 2 if HALVED else MAIN
    compute = w_up.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, PART)
    # The accumulators begin as residual and bias, because reading x a second time, at the end, would spill.
    z = part_of_rows(x, row, real, column, D)
    left = z.to(compute)
    z += tl.load(b_out + column, mask=column < D, other=0.0)[None, :]
    if HALVED:
        second = PART + tl.arange(0, PART)
        z_second = part_of_rows(x, row, real, second, D)
        left_second = z_second.to(compute)
        z_second += tl.load(b_out + second, mask=second < D, other=0.0)[None, :]
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        z_tail = part_of_rows(x, row, real, last, D)
        left_tail = z_tail.to(compute)
        z_tail += tl.load(b_out + last, mask=last < D, other=0.0)[None, :]
    if not HALVED:
        second, left_second, z_second = column, left, z
    if not TAIL:
        last, left_tail, z_tail = column, left, z
    z, z_second, z_tail, zero = hidden_units(
        left, left_second, left_tail, z, z_second, z_tail, w_up, b_val, b_gate, w_out, column, second, last, 0, hidden,
        WIDTH, P, F, PRECISION, MAIN, TAIL, BLOCK_R, BLOCK_F, BLOCK_R == 128 and MAIN >= 256,
    )  # fmt: skip

    # The rows' numbers and masks, anew: kept through the loop, they would take registers that D = 276 has not.
    row = (tl.program_id(0) + zero).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.sum(z, 1)
    if HALVED:
        means += tl.sum(z_second, 1)
    if TAIL:
        means += tl.sum(z_tail, 1)
    means = means / D
    squares = squares_about(z, means, column, D)
    if HALVED:
        squares += squares_about(z_second, means, second, D)
    if TAIL:
        squares += squares_about(z_tail, means, last, D)
    rstds = reciprocal_deviations(squares, D, eps)
    if TAIL:
        store_normalised(z_tail, means, rstds, gain, shift, y, row, last, inside, real, D)
    store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D)
    if HALVED:
        store_normalised(z_second, means, rstds, gain, shift, y, row, second, inside, real, D)


# The most columns (main and tail) for which the kernel compiles without local loads and stores, by architecture:
#
# | registers, shared memory | D = 64 | D = 256 | D = 276 |
# |---|---|---|---|
# | sm_80, sm_86, sm_89, sm_120 (64 rows, 4 warps) | 167, 22 KB | | |
# | sm_90 (128 rows, 8 warps) | 126, 48 KB | 252, 160 KB | 255, 180 KB |
# | sm_90 (64 rows, 4 warps) | 122, 32 KB | 244, 128 KB | 255, 144 KB |
# | sm_100 (64 rows, 8 warps) | 52, 32 KB | 128, 128 KB | 170, 144 KB |
#
# (bfloat16, 32 hidden units. On sm_90 64 of them spill, and so do three stages; with 16 the products are too narrow.
# 128 rows spill on sm_100.) Where products are mma.sync's, x is in registers beside the accumulators; wgmma and tcgen05
# read it from shared memory. Float32 has twice the bytes and would not pay.
#
# By `bench.roofline` (modelled), microseconds for 256 windows of 200, of this kernel and of the two that it replaces:
# on an H100 178 and 353 at D = 276, 154 and 223 at D = 256, 64 and 81 at D = 128, 23 and 37 at D = 64; on an A100 48
# and 80 at D = 64. There, at D = 128, 4 warps spilled, and 8 compute v and g twice: 330 and 196.
_COLUMNS = {"sm_90": 288, "sm_100": 288}
_COLUMNS_ELSEWHERE = 64


def fits(w_up: Tensor, width: int) -> bool:
    """Whether the kernel fits the GPU; if not, `gated_linear` and `linear_residual_norm` do its work."""
    limit = _COLUMNS.get(architecture(w_up.device).name, _COLUMNS_ELSEWHERE)
    return w_up.dtype != torch.float32 and sum(split(width)) <= limit


def _config(w_up: Tensor, width: int, few: bool) -> Config:
    """The tiling; few: of rows that fill at most one wave of blocks of 64."""
    main, tail = split(width)
    columns = {"MAIN": main, "TAIL": tail}
    if w_up.dtype == torch.float32:
        # Only tests run it. 64 rows need 464 KB of shared memory at D = 512, 16 need 96 KB.
        return Config({"BLOCK_R": 16, "BLOCK_F": 16, **columns}, warps=8, stages=1)
    name = architecture(w_up.device).name
    rows = 128 if name == "sm_90" and not few else 64
    # A warp has 16 whole rows or more: if there are more warps, some compute v and g again, unless by tcgen05.
    warps = 8 if rows == 128 or name == "sm_100" else 4
    return Config({"BLOCK_R": rows, "BLOCK_F": 32, **columns}, warps, stages=2)


def tilings(rows: int, w_up: Tensor, w_out: Tensor, width: int) -> list[Rows]:
    """The launches for so many rows."""
    return divided(rows, w_out, *(_config(w_up, width, few) for few in (False, True)))


def _outputs(
    x: Tensor, w_up: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    return new(x, *x.shape)


@kernel_op(_outputs)
def feed_forward_fused(
    x: Tensor, w_up: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """LayerNorm(x + W_out(GELU(W_val x) * sigmoid(W_gate x))), zero at rows that are not real.

    Args:
        x: (N, D) float32.
        w_up: (2F, P) in the compute dtype, W_val above W_gate, each zero in rows beyond the hidden units and in columns
            from D on.
        b_val, b_gate: (hidden units,) float32.
        w_out: (P, F) in the compute dtype, zero from row D on.
        b_out: (D,) float32.
        gain, shift: (D,) float32, LayerNorm's.
        end: (N,) int32, as in `Segments`.
        eps: LayerNorm's.

    Returns:
        (N, D) float32.
    """
    y = _outputs(x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end, eps)
    rows, width = x.shape
    hidden = w_out.shape[1]
    for some in tilings(rows, w_up, w_out, width):
        part, count = slice(some.start, some.stop), some.stop - some.start
        if some.shares > 1:
            launch_shares(some, x, w_up, b_val, b_gate, w_out, b_out, gain, shift, end, eps, y)
            continue
        launch(
            _kernel, (cdiv(count, some.config.blocks["BLOCK_R"]),),
            x[part], w_up, b_val, b_gate, w_out, b_out, gain, shift, end[part], eps, y[part], count, hidden,
            WIDTH=b_val.shape[0], D=width, P=pitch(width), F=hidden, PRECISION=dot_precision(x), config=some.config,
        )  # fmt: skip
    return y
