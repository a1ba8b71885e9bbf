"""The input gradient of a projection, joined to what flows past it: dx = base + d W.

d comes as one tensor, or as three (those of q, k and v), whose columns stand side by side in the product. Reads
2 F + 4 D and writes 4 D bytes a row; a library product and a sum of float32 rows move 4 D to 8 D more.

Tiling: a block owns all columns of its rows where two warp groups can hold them (sm_90, half precision, up to 288
columns): 128 rows of 256 are 128 accumulator registers a thread. Then d passes the second-level cache once, and W once
for every 128 rows. With tiles of 128 x 128 d would pass twice, and at D = 276, with tiles of 128, 128 and 32 columns,
three times. A main and a tail tile (256 + 32 columns) share each tile of d. The base is added when the product is
complete, for half of the columns at a time: one half has room in registers beside the accumulators. An accumulator that
begins as the base would have its every step rounded to the base's last digit. The layer mix's part of the gradient is
added there, too (mix_term.py), for 4 D bytes a row, and to a quarter of the columns at a time. The tail comes before
them, which leaves their accumulators more registers.

By `bench.roofline` (modelled, H100, bf16, 51,200 rows), microseconds, of tiles of 128 columns and of whole rows:

| columns of d | D | microseconds | registers, shared memory |
|---|---|---|---|
| 3 x 256 | 256 | 81, 66 | 246, 144 KB |
| 3 x 256, and the mix's gradient | 256 | , 80 | 186, 144 KB |
| 2,048 | 256 | 176, 138 | 246, 144 KB |
| 3 x 288 | 276 | 113, 77 | 242, 78 KB |
| 2,240 | 276 | 247, 160 | 242, 78 KB |

16 warps of 64 accumulators spill, or take more instructions, beside a tail (222 microseconds for 2,240 columns). The
sums of d over rows, made in the loop as a by-product, would cost 27 microseconds: the warps have to exchange them.

Elsewhere tiles of rows by columns walk along d, the column tile as the fastest index of the grid: the blocks that run
together share a row tile, which memory serves once and the second-level cache the rest. The last column tile is
narrower where fewer columns are left: at D = 276 these are 128, 128 and 32.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.linear import product_config
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import holds


@triton.jit
def _weights(w, part, k, column, F: tl.constexpr, P: tl.constexpr, MASKED: tl.constexpr):
    at = w + (part * F + k)[:, None] * P + column[None, :]
    if MASKED:
        return tl.load(at, mask=(k < F)[:, None] & (column < P)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def _store_onto(base, dterm, weight, product, y, row, column, inside, real, D: tl.constexpr, TERM: tl.constexpr):
    here = (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    product += tl.load(base + at, mask=real[:, None] & here, other=0.0)
    if TERM:
        product += weight * tl.load(dterm + at, mask=real[:, None] & here, other=0.0)
    # Zero there already; but without this the compiler keeps more in registers than there are on sm_90.
    tl.store(y + at, tl.where(real[:, None], product, 0.0), mask=inside[:, None] & here)


@triton.jit
def _halves(tile):
    return tile.reshape([tile.shape[0], 2, tile.shape[1] // 2]).permute(0, 2, 1).split()


@triton.jit
def _columns(
    base, dterm, weight, d0, d1, d2, w, end, y, rows, chunks, tile,
    D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PARTS: tl.constexpr, TERM: tl.constexpr,
    PRECISION: tl.constexpr, TILES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
    TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block's rows: WIDE columns from tile * BLOCK_N on, and TAIL more."""
    CHUNKS: tl.constexpr = (F + BLOCK_K - 1) // BLOCK_K
    MASKED: tl.constexpr = P != TILES * BLOCK_N + TAIL or WIDE != BLOCK_N or F % BLOCK_K != 0
    row = (tl.program_id(0) // TILES).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    column = tile * BLOCK_N + tl.arange(0, WIDE)
    total = tl.zeros([BLOCK_R, WIDE], tl.float32)
    if TAIL:
        last = WIDE + tl.arange(0, TAIL)
        total_tail = tl.zeros([BLOCK_R, TAIL], tl.float32)
    for i in range(chunks):  # chunks is PARTS * CHUNKS: a bound known to the compiler it unrolls, and spills
        part = i // CHUNKS
        k = (i - part * CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
        d = d0
        if PARTS == 3:
            d = tl.where(part == 0, d0, tl.where(part == 1, d1, d2))
        here = real[:, None] if F % BLOCK_K == 0 else real[:, None] & (k < F)[None, :]
        left = tl.load(d + row[:, None] * F + k[None, :], mask=here, other=0.0)
        total = tl.dot(left, _weights(w, part, k, column, F, P, MASKED), total, input_precision=PRECISION)
        if TAIL:
            right = _weights(w, part, k, last, F, P, MASKED)
            total_tail = tl.dot(left, right, total_tail, input_precision=PRECISION)
    if TAIL:
        _store_onto(base, dterm, weight, total_tail, y, row, last, inside, real, D, TERM)
    first, third = _halves(total)
    if TERM and WIDE > 128:
        column = tile * BLOCK_N + tl.arange(0, WIDE // 4)
        first, second = _halves(first)
        third, fourth = _halves(third)
        _store_onto(base, dterm, weight, first, y, row, column, inside, real, D, TERM)
        _store_onto(base, dterm, weight, second, y, row, column + WIDE // 4, inside, real, D, TERM)
        _store_onto(base, dterm, weight, third, y, row, column + WIDE // 2, inside, real, D, TERM)
        _store_onto(base, dterm, weight, fourth, y, row, column + 3 * WIDE // 4, inside, real, D, TERM)
    else:
        column = tile * BLOCK_N + tl.arange(0, WIDE // 2)
        _store_onto(base, dterm, weight, first, y, row, column, inside, real, D, TERM)
        _store_onto(base, dterm, weight, third, y, row, column + WIDE // 2, inside, real, D, TERM)


@triton.jit(repr=named("linear_onto_backward", TERM=("", "mix")), do_not_specialize=["index", "rows", "chunks"])
def _kernel(
    base, dterm, weights, index, d0, d1, d2, w, end, y, rows, chunks,
    D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, PARTS: tl.constexpr, TERM: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, LAST: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, D) = base + (d0, d1, d2) W, and weights[index] dterm if TERM.

    A part of d is (rows, F), and W (PARTS F, P).
    """
    weight = tl.load(weights + index) if TERM else 0.0
    TILES: tl.constexpr = (D - TAIL + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) % TILES
    if LAST == BLOCK_N:  # noqa: SIM114 (known to the compiler, unlike the next condition)
        _columns(
            base, dterm, weight, d0, d1, d2, w, end, y, rows, chunks, tile,
            D, P, F, PARTS, TERM, PRECISION, TILES, BLOCK_R, BLOCK_N, BLOCK_N, TAIL, BLOCK_K,
        )  # fmt: skip
    elif tile < TILES - 1:
        _columns(
            base, dterm, weight, d0, d1, d2, w, end, y, rows, chunks, tile,
            D, P, F, PARTS, TERM, PRECISION, TILES, BLOCK_R, BLOCK_N, BLOCK_N, TAIL, BLOCK_K,
        )  # fmt: skip
    else:
        _columns(
            base, dterm, weight, d0, d1, d2, w, end, y, rows, chunks, tile,
            D, P, F, PARTS, TERM, PRECISION, TILES, BLOCK_R, BLOCK_N, LAST, TAIL, BLOCK_K,
        )  # fmt: skip


def _config(w: Tensor, width: int) -> Config:
    if not holds(w, width):
        tiling = product_config(w, width)
        return Config({**tiling.blocks, "TAIL": 0}, tiling.warps, tiling.stages)
    main, tail = split(width)
    # With steps of 64 a tail's block spills, and 288 is no multiple of 64.
    blocks = {"BLOCK_R": 128, "BLOCK_N": main, "LAST": main, "TAIL": tail, "BLOCK_K": 32 if tail else 64}
    return Config(blocks, warps=8, stages=3)


def _outputs(base: Tensor) -> Tensor:
    return new(base, *base.shape)


@kernel_op(_outputs)
def linear_onto(
    base: Tensor, d: list[Tensor], w: Tensor, end: Tensor, dterm: Tensor | None = None, weights: Tensor | None = None,
    index: int = 0,
) -> Tensor:  # fmt: skip
    """base + d W, or base + weights[index] dterm + d W; zero at rows that are not real.

    Args:
        base: (N, D) float32; this, d and dterm may have any values at rows that are not real.
        d: one tensor or three, (N, F) each, F a multiple of 8, in the compute dtype: all columns side by side.
        w: (columns, P) in the compute dtype, P = pitch(D).
        end: (N,) int32, as in `Segments`.
        dterm: (N, D) float32, the gradient of the layer mix (mix_term.py); None: nothing is added for it.
        weights: (L + 1,) float32, the mix's.
        index: the number of the state whose gradient this is.

    Returns:
        (N, D) float32.
    """
    y = _outputs(base)
    (rows, width), columns = base.shape, d[0].shape[1]
    config = _config(w, width)
    tiles = cdiv(width - config.blocks["TAIL"], config.blocks["BLOCK_N"])
    d0, d1, d2 = d if len(d) == 3 else 3 * list(d)
    launch(
        _kernel, (cdiv(rows, config.blocks["BLOCK_R"]) * tiles,),
        base, dterm, weights, index, d0, d1, d2, w, end, y, rows, len(d) * cdiv(columns, config.blocks["BLOCK_K"]),
        D=width, P=w.shape[1], F=columns, PARTS=len(d), TERM=dterm is not None, PRECISION=dot_precision(w),
        config=config,
    )  # fmt: skip
    return y
