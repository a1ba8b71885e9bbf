"""Dropout without a stored mask: backward draws it again from the same seed.

One Philox draw gives four numbers, for four neighbouring channels. So which elements are dropped depends on seed +
salt, the row and the channel alone, not on any tiling.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit
def dropout_scale(seed, salt, row, column, p, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_R, BLOCK_C] float32: 0 where dropped, else 1 / (1 - p).

    `row` is [BLOCK_R]; the tile's channels are column .. column + BLOCK_C - 1, column a multiple of 4.
    """
    group = column // 4 + tl.arange(0, BLOCK_C // 4)
    counter = tl.zeros([BLOCK_R, BLOCK_C // 4], tl.uint32)
    rows, groups = counter + row.to(tl.uint32)[:, None], counter + group.to(tl.uint32)[None, :]
    a, b, c, d = tl.philox(tl.load(seed) + salt, rows, groups, counter, counter)
    drawn = tl.join(tl.join(a, c), tl.join(b, d)).reshape([BLOCK_R, BLOCK_C])
    return tl.where(tl.uint_to_uniform_float(drawn) >= p, 1.0 / (1.0 - p), 0.0)


@triton.jit(repr=named("dropout_mask"), do_not_specialize=["salt", "rows"])
def _mask_kernel(seed, salt, p, mask, rows, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    for start in range(0, D, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        scale = dropout_scale(seed, salt, row, start, p, BLOCK_R, BLOCK_C)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        tl.store(mask + row.to(tl.int64)[:, None] * D + column[None, :], scale, mask=inside)


def _mask_outputs(seed: Tensor, salt: int, p: float, rows: int, width: int) -> Tensor:
    return new(seed, rows, width, dtype=torch.float32)


@kernel_op(_mask_outputs)
def dropout_mask(seed: Tensor, salt: int, p: float, rows: int, width: int) -> Tensor:
    """The factors of dropout, 0 or 1 / (1 - p), (rows, width) float32.

    The ops never store them: only tests and the self-check call this.
    """
    mask = _mask_outputs(seed, salt, p, rows, width)
    config = Config({"BLOCK_R": 16, "BLOCK_C": 64})
    launch(_mask_kernel, (cdiv(rows, 16),), seed, salt, p, mask, rows, D=width, config=config)
    return mask
