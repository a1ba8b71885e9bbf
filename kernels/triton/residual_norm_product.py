"""Backward of a sublayer's end, y = LayerNorm(x + Dropout(o + b)) with o = s W^T: back to x, o and s in one kernel.

Bytes: the kernel reads dy and x (4 D a row each) and o (2 P), and writes the gradients of the sum (4 D), of o (2 P, for
W's gradient) and of s (2 F). A library product would read the gradient of o once more, 2 P, in a launch of its own.

Tiling: a block owns 64 rows. It takes them through LayerNorm 4 at a time, as residual_norm.py does, and writes their
gradients; then it reads those of o again, which the caches have, holds them in shared memory, and walks over the
columns of W, 32 at a time. Three blocks of 4 warps share a multiprocessor, so that one reads rows while another's
products run. Each block reads all of W, 128 KB at D = 256, from the second-level cache, a third of what the rows
take; the W_out of the feed-forward is four times as large, and two launches are expected to be as fast there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, launch, named
from astroco_fast.kernels.triton.residual_norm import residual_norm_backward, store_gradients, store_sums, upstream_of
from astroco_fast.kernels.triton.tensors import dot_precision, split
from astroco_fast.kernels.triton.whole_rows import holds


@triton.jit(
    repr=named("residual_norm_product_backward", DROPOUT=("", "dropout")), do_not_specialize=["salt", "rows", "columns"]
)
def _kernel(
    dy, o, b, x, gain, end, seed, salt, p, mean, rstd, w, dz, do, ds, partial, rows, columns,
    D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    for_gain = tl.zeros([STEP, P], tl.float32)
    for_shift = tl.zeros([STEP, P], tl.float32)
    for_b = tl.zeros([STEP, P], tl.float32)
    for start in range(0, BLOCK_R, STEP):
        row = first + start + tl.arange(0, STEP)
        inside = row < rows
        real = tl.load(end + row, mask=inside, other=0) > 0
        means = tl.load(mean + row, mask=inside, other=0.0)
        rstds = tl.load(rstd + row, mask=inside, other=0.0)
        upstream, pulled, normal, scale = upstream_of(
            dy, o, b, x, gain, means, rstds, row, real, 0, seed, salt, p, D, P, DROPOUT, STEP, P
        )
        for_gain += upstream * normal
        for_shift += upstream
        slope = tl.sum(pulled, 1) / D
        tilt = tl.sum(pulled * normal, 1) / D
        for_b += store_gradients(pulled, normal, scale, slope, tilt, rstds, dz, do, row, inside, real, 0, D, P, P)
    store_sums(for_gain, for_shift, for_b, partial + tl.program_id(0).to(tl.int64) * 3 * D, 0, D, P)
    tl.debug_barrier()
    do += first * P
    ds += first * F
    here = (tl.arange(0, BLOCK_R) < rows - tl.program_id(0) * BLOCK_R)[:, None]
    held = tl.arange(0, BLOCK_R)[:, None]
    k = tl.arange(0, P)
    rows_of_do = tl.load(do + held * P + k[None, :], mask=here, other=0.0)
    for start in range(0, columns, BLOCK_F):  # columns is F, lest the loop be unrolled
        column = start + tl.arange(0, BLOCK_F)[None, :]
        at = w + k[:, None] * F + column
        if F % BLOCK_F == 0:
            product = tl.dot(rows_of_do, tl.load(at), input_precision=PRECISION)
            tl.store(ds + held * F + column, product.to(ds.dtype.element_ty), mask=here)
        else:
            product = tl.dot(rows_of_do, tl.load(at, mask=column < F, other=0.0), input_precision=PRECISION)
            tl.store(ds + held * F + column, product.to(ds.dtype.element_ty), mask=here & (column < F))


_CONFIG = Config({"BLOCK_R": 64, "BLOCK_F": 32, "STEP": 4}, warps=4, stages=2)


def _outputs(
    dy: Tensor, o: Tensor, b: Tensor, x: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    mean: Tensor, rstd: Tensor, w: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, width = x.shape
    partial = new(x, cdiv(rows, _CONFIG.blocks["BLOCK_R"]), 3, width)
    return new(x, rows, width), new(o, *o.shape), new(o, rows, w.shape[1]), partial


@kernel_op(_outputs)
def residual_norm_product_backward(
    dy: Tensor, o: Tensor, b: Tensor, x: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    mean: Tensor, rstd: Tensor, w: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`end_gradients` in one kernel, for weights and widths that `fits`."""
    dz, do, ds, partial = outputs = _outputs(dy, o, b, x, gain, end, seed, salt, p, mean, rstd, w)
    (rows, width), (depth, columns) = x.shape, w.shape
    launch(
        _kernel, (cdiv(rows, _CONFIG.blocks["BLOCK_R"]),),
        dy, o, b, x, gain, end, seed, salt, p, mean, rstd, w, dz, do, ds, partial, rows, columns,
        D=width, P=depth, F=columns, DROPOUT=seed is not None, PRECISION=dot_precision(x), config=_CONFIG,
    )  # fmt: skip
    return outputs


def fits(weight: Tensor, width: int) -> bool:
    """Whether the kernel fits the GPU, and is expected to be faster than two launches."""
    return holds(weight, width) and not split(width)[1] and weight.shape[1] <= 2 * weight.shape[0]


def end_gradients(
    dy: Tensor, o: Tensor, b: Tensor, x: Tensor, gain: Tensor, end: Tensor, seed: Tensor | None, salt: int, p: float,
    mean: Tensor, rstd: Tensor, w: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of `residual_norm` and of the product before it.

    Args:
        w: (P, F) in the compute dtype, the product's weight.
        others: as for `residual_norm_backward`.

    Returns:
        The gradients of the sum (N, D), float32, of o (N, P) and of s (N, F), half rows; partial sums (blocks, 3, D)
        float32, whose sum over blocks is the gradients of gain, shift and b.
    """
    if fits(w, x.shape[1]):
        return residual_norm_product_backward(dy, o, b, x, gain, end, seed, salt, p, mean, rstd, w)
    dz, do, partial = residual_norm_backward(dy, o, b, x, gain, end, seed, salt, p, mean, rstd)
    return dz, do, torch.mm(do, w), partial
