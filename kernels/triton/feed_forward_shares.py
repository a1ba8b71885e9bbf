"""The feed-forward sublayer of few rows: blocks of some rows and a share of the hidden units, and a sum over shares.

One block takes as long for all hidden units as a whole wave of blocks, 31 us for 64 rows of preset L on an H100
(modelled), however few multiprocessors have work. Here several blocks share the hidden units of a row tile. Each writes
its part of W_out's product in float32, and a second kernel adds the parts, always in the same order, and goes on to
bias, dropout, residual and LayerNorm.

Bytes: 8 D a row and share for the parts, on top of x and y. A share has at least `_LEAST` weights of W_out, with fewer
of which the parts would cost more than the shares gain.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.dropout import dropout_scale
from astroco_fast.kernels.triton.hidden_units import held_rows, hidden_units
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.linear_residual_norm import squares_about, store_normalised
from astroco_fast.kernels.triton.residual_norm import (
    furthest,
    store_spread,
    store_unit,
)
from astroco_fast.kernels.triton.tensors import dot_precision
from astroco_fast.kernels.triton.whole_rows import part_of_rows

_LEAST = 128 * 256
_SUM_ROWS = 4  # of a block that adds parts up


@triton.jit(repr=named("feed_forward_shares"), do_not_specialize=["rows", "hidden", "steps"])
def _kernel(
    x, w_up, b_val, b_gate, w_out, end, parts, rows, hidden, steps,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    HALVED: tl.constexpr = MAIN >= 256
    PART: tl.constexpr = MAIN // 2 if HALVED else MAIN
    compute: tl.constexpr = w_up.dtype.element_ty
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, PART)
    left, z = held_rows(x, row, real, column, D, compute)
    second, left_second, z_second = column, left, z
    if HALVED:
        second = PART + column
        left_second, z_second = held_rows(x, row, real, second, D, compute)
    last, left_tail, z_tail = column, left, z
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        left_tail, z_tail = held_rows(x, row, real, last, D, compute)
    mine = tl.program_id(1)
    begin = mine * steps * BLOCK_F  # a multiple of BLOCK_F, which the compiler has to know
    z, z_second, z_tail, zero = hidden_units(
        left, left_second, left_tail, z, z_second, z_tail, w_up, b_val, b_gate, w_out, column, second, last,
        begin, min(begin + steps * BLOCK_F, hidden), WIDTH, P, F, PRECISION, MAIN, TAIL, BLOCK_R, BLOCK_F, False,
    )  # fmt: skip
    row = (tl.program_id(0) + zero) * BLOCK_R + tl.arange(0, BLOCK_R)  # anew: kept, they would spill at D = 276
    inside = row < rows
    at = parts + (mine * rows + row)[:, None] * D
    tl.store(at + column[None, :], z, mask=inside[:, None] & (column < D)[None, :])
    if HALVED:
        tl.store(at + second[None, :], z_second, mask=inside[:, None] & (second < D)[None, :])
    if TAIL:
        tl.store(at + last[None, :], z_tail, mask=inside[:, None] & (last < D)[None, :])


@triton.jit(
    repr=named("feed_forward_sum", TRAINING=("inference", "training"), DROPOUT=("", "dropout")),
    do_not_specialize=["salt", "rows", "before", "shares"],
)
def _sum_kernel(
    parts, b_out, x, gain, shift, end, seed, salt, p, eps, y, normal, spread, rows, before, shares,
    D: tl.constexpr, P: tl.constexpr, MOST: tl.constexpr, TRAINING: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tl.arange(0, COLUMNS)
    here = real[:, None] & (column < D)[None, :]
    z = tl.zeros([BLOCK_R, COLUMNS], tl.float32)
    for i in tl.static_range(MOST):  # unrolled, so that a thread waits for all parts at once
        at = parts + (i * rows + row)[:, None] * D + column[None, :]
        z += tl.load(at, mask=here & (i < shares), other=0.0)
    z += tl.load(b_out + column, mask=column < D, other=0.0)[None, :]
    if DROPOUT:
        z *= dropout_scale(seed, salt, before + row, 0, p, BLOCK_R, COLUMNS)
    z = tl.where(here, z + part_of_rows(x, row, real, column, D), 0.0)
    means = tl.sum(z, 1) / D
    rstds = reciprocal_deviations(squares_about(z, means, column, D), D, eps)
    if TRAINING:
        factors = store_spread(furthest(z, means, column, D), rstds, spread, row, inside, normal.dtype.element_ty)
        store_unit(z, means, factors, normal, row, column, inside, real, D, P)
    store_normalised(z, means, rstds, gain, shift, y, row, column, inside, real, D)


class Rows(NamedTuple):
    """Rows start .. stop - 1, and how they are computed.

    Attributes:
        config: the tiling.
        shares: the number of blocks that share the hidden units of a row tile.
    """

    start: int
    stop: int
    config: Config
    shares: int = 1


def _most(w_out: Tensor) -> int:
    """The most shares into which the hidden units are divided."""
    return min(max(w_out.numel() // _LEAST, 1), 16)


def divided(rows: int, w_out: Tensor, many: Config, few: Config) -> list[Rows]:
    """The rows by launch: whole waves of blocks, and the rest.

    A rest that would leave the last wave half empty has blocks of fewer rows, and as many shares of the hidden units as
    give each multiprocessor a block: 51,200 rows of preset L are three waves of 132 blocks of 128 rows on an H100, and
    512 rows, which are 8 tiles of 64 in 8 shares.

    Args:
        rows: their number.
        w_out: (P, F).
        many, few: tilings for whole waves, and for a rest.
    """
    multiprocessors = architecture(w_out.device).multiprocessors
    wave = many.blocks["BLOCK_R"] * multiprocessors
    rest = rows % wave if wave else 0
    shares = min(multiprocessors // max(cdiv(rest, few.blocks["BLOCK_R"]), 1), _most(w_out))
    if rest > wave // 2 or (many == few and shares < 2):
        rest = 0
    launches = Rows(0, rows - rest, many), Rows(rows - rest, rows, few, max(shares, 1))
    return [some for some in launches if some.stop > some.start]


def launch_shares(
    some: Rows, x: Tensor, w_up: Tensor, b_val: Tensor, b_gate: Tensor, w_out: Tensor, b_out: Tensor,
    gain: Tensor, shift: Tensor, end: Tensor, eps: float, y: Tensor, normal: Tensor | None = None,
    spread: Tensor | None = None, seed: Tensor | None = None, salt: int = 0, p: float = 0.0,
) -> None:  # fmt: skip
    """Compute some rows of y, and in training of `normal` and `spread`; all tensors are given whole."""
    width, (depth, hidden) = x.shape[1], w_out.shape
    part, count, unit = slice(some.start, some.stop), some.stop - some.start, some.config.blocks["BLOCK_F"]
    parts = new(x, some.shares, count, width)
    launch(
        _kernel, (cdiv(count, some.config.blocks["BLOCK_R"]), some.shares),
        x[part], w_up, b_val, b_gate, w_out, end[part], parts, count, hidden, cdiv(cdiv(hidden, unit), some.shares),
        WIDTH=b_val.shape[0], D=width, P=depth, F=hidden, PRECISION=dot_precision(x), config=some.config,
    )  # fmt: skip
    launch(
        _sum_kernel, (cdiv(count, _SUM_ROWS),),
        parts, b_out, x[part], gain, shift, end[part], seed, salt, p, eps, y[part],
        None if normal is None else normal[part], None if spread is None else spread[part],
        count, some.start, some.shares,
        D=width, P=depth, MOST=_most(w_out), TRAINING=normal is not None, DROPOUT=seed is not None,
        config=Config({"BLOCK_R": _SUM_ROWS, "COLUMNS": triton.next_power_of_2(depth)}, warps=4),
    )  # fmt: skip
