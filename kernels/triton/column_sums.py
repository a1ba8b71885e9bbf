"""The last step of sums over rows: partial sums of up to four tensors, added up in one launch.

Kernels that sum over rows (for gradients of biases, norms and taps) leave a partial sum a block. A backward pass of a
sublayer adds up all of its partial sums at its end, because each launch costs some microseconds, and the sums little.

Tiling: a block sums 32 columns (128 bytes, a cache line) of one tensor, 128 rows at a time, all in flight at once.
"""

from math import prod

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, launch, named

MOST = 4


@triton.jit
def over_rows(terms, COLUMNS: tl.constexpr):
    """The sums of [rows, COLUMNS] over at most 32 rows, a power of two, by halves.

    Where the rows are in different warps, `tl.sum` would have all threads of a warp write to one bank of shared memory.
    """
    for _ in tl.static_range(5):
        if terms.shape[0] > 1:
            upper, lower = tl.split(tl.trans(tl.reshape(terms, [2, terms.shape[0] // 2, COLUMNS]), [1, 2, 0]))
            terms = upper + lower
    return tl.reshape(terms, [COLUMNS])


@triton.jit
def _sum(partial, out, rows, columns, block, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        here = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(partial + row.to(tl.int64)[:, None] * columns + column[None, :], mask=here, other=0.0)
    tl.store(out + column, tl.sum(total, 0), mask=column < columns)


@triton.jit(
    repr=named("column_sums_backward"),
    do_not_specialize=["rows_a", "rows_b", "rows_c", "rows_d", "first_b", "first_c", "first_d"],
)
def _kernel(
    a, b, c, d, out, rows_a, rows_b, rows_c, rows_d, columns_a, columns_b, columns_c, columns_d,
    first_b, first_c, first_d, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)  # first_b .. first_d: the first blocks of these tensors
    if block < first_b:
        _sum(a, out, rows_a, columns_a, block, BLOCK_R, BLOCK_C)
    elif block < first_c:
        _sum(b, out + columns_a, rows_b, columns_b, block - first_b, BLOCK_R, BLOCK_C)
    elif block < first_d:
        _sum(c, out + columns_a + columns_b, rows_c, columns_c, block - first_c, BLOCK_R, BLOCK_C)
    else:
        _sum(d, out + columns_a + columns_b + columns_c, rows_d, columns_d, block - first_d, BLOCK_R, BLOCK_C)


_CONFIG = Config({"BLOCK_R": 128, "BLOCK_C": 32}, warps=4, stages=1)


def _outputs(partials: list[Tensor]) -> Tensor:
    return new(partials[0], sum(prod(partial.shape[1:]) for partial in partials))


@kernel_op(_outputs)
def column_sums(partials: list[Tensor]) -> Tensor:
    """Up to `MOST` tensors (rows, ...) float32, each with its own rows, summed over them; one after another."""
    out = _outputs(partials)
    given = list(partials) + [partials[0]] * (MOST - len(partials))
    rows = [partial.shape[0] for partial in given]
    columns = [prod(partial.shape[1:]) if i < len(partials) else 0 for i, partial in enumerate(given)]
    blocks = [cdiv(n, _CONFIG.blocks["BLOCK_C"]) for n in columns]
    first = [sum(blocks[:i]) for i in range(1, MOST)]
    launch(_kernel, (sum(blocks),), *given, out, *rows, *columns, *first, config=_CONFIG)
    return out


def summed(*partials: Tensor) -> list[Tensor]:
    """The sums of tensors (rows, ...) over their rows, (...), views of one tensor."""
    sizes = [prod(partial.shape[1:]) for partial in partials]
    parts = zip(column_sums(list(partials)).split(sizes), partials, strict=True)
    return [part.view(partial.shape[1:]) for part, partial in parts]
