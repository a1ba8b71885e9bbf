"""Blocks that hold whole rows, in half precision, and walk over the columns of a product with them.

Such a block reads its rows of x once. A block of one column tile reads them again, in float32, and converts them again,
from the second-level cache, which feeds most products of float32 rows more slowly than they could run.
"""

import torch
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


@triton.jit
def turns(own, left_over, each):
    """The number of units that a program computes; the arguments are those of `shares`."""
    return own + tl.minimum(each, tl.maximum(left_over - tl.program_id(0) * each, 0))


@triton.jit
def unit(turn, own, left_over, each, UNITS: tl.constexpr):
    """A program's unit: its row tile, its place among the tile's, and whether the tile is another than before."""
    program = tl.program_id(0)
    beyond = tl.num_programs(0) * own + program * each - own
    number = tl.where(turn < own, program * own, beyond) + turn
    place = number % UNITS
    return number // UNITS, place, (place == 0) | (turn == 0) | (turn == own)


def shares(tiles: int, units: int, device: torch.device) -> tuple[int, int, int, int]:
    """How programs, one a multiprocessor, share row tiles of so many units (column tiles) each.

    All have equally many whole row tiles, and equal shares of the units that are left over. As blocks of their own, a
    few tiles behind whole waves would take as long as a wave. A share that is nearly half a tile, a third and so on
    becomes just that, so that fewer programs read rows of two tiles.

    Returns:
        Programs; units of a program's whole tiles; units left over, of all programs; of them a program's.
    """
    programs = max(1, min(tiles * units, architecture(device).multiprocessors))
    whole, left_over = divmod(tiles, programs)
    each = cdiv(left_over * units, programs)
    if each:
        part = next(n for n in range(each, each + units) if units % n == 0 or n % units == 0)
        each = part if 2 * part <= 3 * each else each
    if not whole:
        programs = cdiv(left_over * units, max(each, 1))
    return programs, whole * units, left_over * units, each


def grid(rows: int, tiling: Config) -> tuple[int]:
    """The blocks of a launch: SPLIT for every row tile, which take turns in its column tiles."""
    return (cdiv(rows, tiling.blocks["BLOCK_R"]) * tiling.blocks["SPLIT"],)
