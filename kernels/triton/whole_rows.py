"""Blocks that hold whole rows, in half precision, and walk over the columns of a product with them.

Such a block reads its rows of x once. A block of one column tile reads them again, in float32, and converts them again,
from the second-level cache, which feeds most products of float32 rows more slowly than they could run.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.tensors import cdiv
from astroco_fast.kernels.triton.launch import Config, architecture
from astroco_fast.kernels.triton.tensors import split


@triton.jit
def part_of_rows(x, row, real, column, D: tl.constexpr):
    """A part of the rows of x, zero at rows that are not real and in the pad columns."""
    return tl.load(x + row[:, None] * D + column[None, :], mask=real[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def transposed(w, feature, column, P: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr):
    """[column, feature] of W^T; W is (F, P)."""
    at = w + feature[None, :] * P + column[:, None]
    if MASKED:
        return tl.load(at, mask=(feature < F)[None, :] & (column < P)[:, None], other=0.0)
    return tl.load(at)


def holds(weight: Tensor, width: int) -> bool:
    """Whether blocks can hold rows of this width for a weight in the compute dtype.

    wgmma reads them from shared memory, where 128 rows of 288 columns leave room for two tiles of weights. mma.sync
    would read them from registers.
    """
    return architecture(weight.device).name == "sm_90" and weight.element_size() == 2 and sum(split(width)) <= 288


def grid(rows: int, tiling: Config) -> tuple[int]:
    """The blocks of a launch: SPLIT for every row tile, which take turns in its column tiles."""
    return (cdiv(rows, tiling.blocks["BLOCK_R"]) * tiling.blocks["SPLIT"],)
