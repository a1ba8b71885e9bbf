"""From rows (float32) to half rows, by a matrix product or without one.

- `linear`: y = x W^T + b. x is cast on its way to the tensor cores and the bias added in the accumulator: reads 4 D and
  writes 2 F bytes a row, where a cast, a library product and a bias would move 4 D + 2 D + 2 D + 2 F.
- `rows_with_ones`: x in the compute dtype and a column of ones, for a library's product over rows: the gradients of a
  weight and of its bias. Reads 4 D and writes 2 D bytes a row; where blocks hold whole rows, `linear` writes it, too.

Tiling: tiles of rows by columns that walk along the product's depth in chunks. The column tile is the fastest index of
the grid: the blocks that run together share a row tile, which memory serves once and the second-level cache the rest.
The last column tile is narrower where fewer columns are left: at D = 276 these are 128, 128 and 32. Where a program can
hold whole rows of x (whole_rows.py), `linear` has one a multiprocessor, with an equal share of all tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import holds, part_of_rows, shares, transposed, turns, unit


@triton.jit
def _tile(
    x, w, b, end, y, rows, depth, row, first,
    D: tl.constexpr, P: tl.constexpr, N: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The rows' columns first .. first + BLOCK_N - 1."""
    column = first + tl.arange(0, BLOCK_N)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, depth, BLOCK_K):  # depth is D: a bound known to the compiler it unrolls, and spills
        k = start + tl.arange(0, BLOCK_K)
        left = part_of_rows(x, row, real, k, D).to(w.dtype.element_ty)
        # Masked at the pitch: at D = 276 a mask would cut 16-byte loads of half precision to 8.
        total = tl.dot(left, transposed(w, column, k, P, N, True), total, input_precision=PRECISION)
    total += tl.load(b + column, mask=column < B, other=0.0)[None, :]
    total = tl.where(real[:, None], total, 0.0)
    there = inside[:, None] & (column < N)[None, :]
    tl.store(y + row[:, None] * N + column[None, :], total.to(y.dtype.element_ty), mask=there)


@triton.jit(repr=named("linear_forward"), do_not_specialize=["rows", "depth"])
def _product_kernel(
    x, w, b, end, y, rows, depth,
    D: tl.constexpr, P: tl.constexpr, N: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, LAST: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, N) = x W^T + b; x is (rows, D), W (N, P), b (B,)."""
    tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    tile = tl.program_id(0) % tiles
    if LAST == BLOCK_N:  # noqa: SIM114 (known to the compiler, unlike the next condition)
        _tile(
            x, w, b, end, y, rows, depth, row, tile * BLOCK_N,
            D, P, N, B, PRECISION, BLOCK_R, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif tile < tiles - 1:
        _tile(
            x, w, b, end, y, rows, depth, row, tile * BLOCK_N,
            D, P, N, B, PRECISION, BLOCK_R, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        _tile(
            x, w, b, end, y, rows, depth, row, tile * BLOCK_N,
            D, P, N, B, PRECISION, BLOCK_R, LAST, BLOCK_K,
        )  # fmt: skip


def product_config(w: Tensor, columns: int) -> Config:
    """The tiling for so many columns; LAST is the width of the last column tile."""
    half = w.dtype != torch.float32
    # At D = 64 columns are 64 or 192: tiles of 128 would be idle by half or a quarter, and spill on sm_120.
    rows, wide, warps, stages = (128, 128 if columns >= 256 else 64, 8, 3) if half else (64, 64, 4, 2)
    last = max(32, triton.next_power_of_2((columns - 1) % wide + 1))
    return Config({"BLOCK_R": rows, "BLOCK_N": wide, "LAST": last, "BLOCK_K": 32}, warps, stages)


@triton.jit
def _store_with_ones(values, ones, row, column, inside, real, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Store columns of rows (N, D) in rows (N, COLUMNS), whose column D has a one where the row is real."""
    values = tl.where(real[:, None] & (column == D)[None, :], 1.0, values.to(tl.float32))
    at = ones + row[:, None] * COLUMNS + column[None, :]
    tl.store(at, values.to(ones.dtype.element_ty), mask=inside[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def _rows_of(
    x, ones, row, column, inside, real, leads, D: tl.constexpr, END: tl.constexpr, ONES: tl.constexpr,
    compute: tl.constexpr,
):  # fmt: skip
    """Columns below END of rows of x in the compute dtype. A program that leads writes the rows of ones, if ONES."""
    COLUMNS: tl.constexpr = (D + 16) // 16 * 16
    part = part_of_rows(x, row, real, column, D).to(compute)
    if ONES:  # noqa: SIM102 (known to the compiler, unlike the next condition)
        if leads:
            if END > D:
                _store_with_ones(part, ones, row, column, inside, real, D, COLUMNS)
            else:
                tl.store(ones + row[:, None] * COLUMNS + column[None, :], part, mask=inside[:, None])
    return part


@triton.jit(repr=named("linear_rows_forward"), do_not_specialize=["rows", "own", "left_over", "each"])
def _rows_kernel(
    x, w, b, end, y, ones, rows, own, left_over, each,
    D: tl.constexpr, P: tl.constexpr, N: tl.constexpr, B: tl.constexpr, ONES: tl.constexpr,
    PRECISION: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y (rows, N) = x W^T + b by programs that hold rows of x (rows, D) and have `shares`; W is (N, P).

    The rows change inside the one loop over units, not in a loop around it: so the weights of a unit are on their way
    during the unit before, and rows that the loop carries stay in registers. Those from outside of a loop the compiler
    would load from shared memory anew for each unit.
    """
    MASKED: tl.constexpr = (P != MAIN + TAIL) or (N % BLOCK_N != 0)
    COLUMNS: tl.constexpr = (D + 16) // 16 * 16
    compute: tl.constexpr = w.dtype.element_ty
    row = tl.arange(0, BLOCK_R)
    k = tl.arange(0, MAIN)
    left = tl.zeros([BLOCK_R, MAIN], compute)
    if TAIL:
        last = MAIN + tl.arange(0, TAIL)
        left_tail = tl.zeros([BLOCK_R, TAIL], compute)
    for turn in range(turns(own, left_over, each)):
        tile, place, fresh = unit(turn, own, left_over, each, (N + BLOCK_N - 1) // BLOCK_N)
        first = tile.to(tl.int64) * BLOCK_R
        inside = row < rows - first
        if fresh:
            real = tl.load(end + first + row, mask=inside, other=0) > 0
            at, copy, leads = x + first * D, ones + first * COLUMNS, place == 0
            left = _rows_of(at, copy, row, k, inside, real, leads, D, MAIN, ONES, compute)
            if TAIL:
                left_tail = _rows_of(at, copy, row, last, inside, real, leads, D, MAIN + TAIL, ONES, compute)
            if ONES and D == MAIN + TAIL:  # noqa: SIM102 (known to the compiler, unlike the next condition)
                if leads:
                    behind = tl.zeros([BLOCK_R, 16], tl.float32)
                    _store_with_ones(behind, copy, row, D + tl.arange(0, 16), inside, real, D, COLUMNS)
        column = place * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.dot(left, transposed(w, column, k, P, N, MASKED), input_precision=PRECISION)
        if TAIL:
            total = tl.dot(left_tail, transposed(w, column, last, P, N, MASKED), total, input_precision=PRECISION)
        # Rows that are not real are zero, and so are their products: only the bias needs a mask.
        biases = tl.load(b + column, mask=column < B, other=0.0)
        real = tl.load(end + first + row, mask=inside, other=0) > 0
        total += real.to(tl.float32)[:, None] * biases[None, :]
        there = inside[:, None] & (column < N)[None, :] if MASKED else inside[:, None]
        tl.store(y + first * N + row[:, None] * N + column[None, :], total.to(compute), mask=there)


def _rows_config(rows: int, w: Tensor, width: int) -> Config:
    """The tiling of blocks that hold rows: as many rows as registers hold, so that few read the weights.

    By `bench.roofline` (modelled, H100, 51,200 rows), microseconds in inference and in training, and the registers and
    shared memory of these:

    | | D = 256 | D = 276 |
    |---|---|---|
    | waves of blocks of 128 rows | 63, 62 | 84, 85 |
    | shares of 256 rows at D = 256, of 128 at D = 276 | 49, 55 | 64, 70 |
    | | 128, 160 KB | 180, 144 KB |

    Column tiles of 64 at D = 256 spill, and so do 256 rows at D = 276. Rows of less than a wave have blocks of 128.
    """
    main, tail = split(width)
    few = rows <= 256 * architecture(w.device).multiprocessors
    block, columns = (128, 64) if tail or few else (256, 32)
    return Config({"BLOCK_R": block, "BLOCK_N": columns, "MAIN": main, "TAIL": tail}, warps=block // 16, stages=2)


def _linear_outputs(x: Tensor, w: Tensor, ones: bool) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    return new(w, rows, w.shape[0]), new(w, rows if ones and holds(w, width) else 0, _columns_with_ones(width))


@kernel_op(_linear_outputs)
def linear(x: Tensor, w: Tensor, b: Tensor, end: Tensor, ones: bool) -> tuple[Tensor, Tensor]:
    """x W^T + b, zero at rows that are not real.

    Args:
        x: (N, D) float32; rows that are not real may have any values.
        w: (F, P) in the compute dtype, P = pitch(D), F a multiple of 8.
        b: (F,) float32, or fewer, where the last columns have no bias.
        end: (N,) int32, as in `Segments`.
        ones: whether to give the second result.

    Returns:
        (N, F) in w's dtype; and `rows_with_ones` of x, without a row where blocks do not hold rows.
    """
    y, kept = outputs = _linear_outputs(x, w, ones)
    rows, width = x.shape
    sizes = {"D": width, "P": w.shape[1], "N": w.shape[0], "B": b.shape[0], "PRECISION": dot_precision(w)}
    if holds(w, width):
        config = _rows_config(rows, w, width)
        tiles = cdiv(rows, config.blocks["BLOCK_R"])
        programs, *share = shares(tiles, cdiv(w.shape[0], config.blocks["BLOCK_N"]), x.device)
        launch(_rows_kernel, (programs,), x, w, b, end, y, kept, rows, *share, **sizes, ONES=ones, config=config)
    else:
        config = product_config(w, w.shape[0])
        blocks = cdiv(rows, config.blocks["BLOCK_R"]) * cdiv(w.shape[0], config.blocks["BLOCK_N"])
        launch(_product_kernel, (blocks,), x, w, b, end, y, rows, width, **sizes, config=config)
    return outputs


@triton.jit(repr=named("rows_with_ones_backward"), do_not_specialize=["rows"])
def _ones_kernel(x, end, y, rows, D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    for start in tl.static_range(0, COLUMNS, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        _store_with_ones(part_of_rows(x, row, real, column, D), y, row, column, inside, real, D, COLUMNS)


def _columns_with_ones(width: int) -> int:
    return 16 * cdiv(width + 1, 16)  # in half precision rows of whole sectors (32 bytes)


def _ones_outputs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return new(x, x.shape[0], _columns_with_ones(x.shape[1]), dtype=dtype)


@kernel_op(_ones_outputs)
def rows_with_ones(x: Tensor, end: Tensor, dtype: torch.dtype) -> Tensor:
    """x (N, D) float32 in `dtype`, a one after each row, and zeros up to a multiple of 16; zero at rows not real.

    A product upstream^T y then has a weight's gradient in its first D columns, and the bias's in the next.
    """
    y = _ones_outputs(x, dtype)
    rows, width = x.shape
    # 128 columns of 32 rows: a warp reads whole rows, 16 bytes a lane.
    block = min(128, triton.next_power_of_2(y.shape[1]))
    config = Config({"BLOCK_R": 32, "BLOCK_C": block}, warps=4, stages=1)
    grid = (cdiv(rows, config.blocks["BLOCK_R"]),)
    launch(_ones_kernel, grid, x, end, y, rows, D=width, COLUMNS=y.shape[1], config=config)
    return y
