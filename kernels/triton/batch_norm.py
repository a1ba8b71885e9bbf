"""BatchNorm over a batch's real rows, followed by SiLU: s = SiLU(n), n = (c - mean) * rstd * scale + offset.

Forward: the convolution writes (count, mean, squared deviations) of every row tile. `batch_norm_merge` joins them by
Chan's formula, as it joins those of several ranks, and updates the running statistics. A mean is two numbers, the
rounded mean and the rest, because the means of tiles would otherwise differ more by rounding than by their data where
channels have large means. Then `batch_norm_silu` reads c and writes s, 4 P bytes a row in half precision.

Backward needs two sums over all rows before it can compute a single row. The first kernel reads c and ds and writes s
again (for the next weight's gradient) and the sums of its rows, 6 P; the second reads c and ds again and writes dc,
6 P.

Tiling: each element is computed by itself, so a tile is any 4096 of them. The merge reads little, (tiles, 3, P), and
spends its time on latency, so a block has 8 channels, one memory sector, and hundreds of tiles at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.depthwise import columns
from astroco_fast.kernels.triton.launch import Config, launch, named


@triton.jit(repr=named("batch_norm_statistics_forward"), do_not_specialize=["tiles", "momentum", "eps"])
def _merge_kernel(
    count, partial, running_mean, running_var, batches, momentum, eps, total, statistics, tiles,
    D: tl.constexpr, P: tl.constexpr, UPDATE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = 0.0
    mean = tl.zeros([BLOCK_C], tl.float32)
    rest = tl.zeros([BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        inside = tile < tiles
        part = tl.load(count + tile, mask=inside, other=0.0)
        at = partial + tile[:, None] * (3 * P) + column[None, :]
        part_mean = tl.load(at, mask=inside[:, None], other=0.0)
        part_rest = tl.load(at + P, mask=inside[:, None], other=0.0)
        part_squares = tl.load(at + 2 * P, mask=inside[:, None], other=0.0)
        many = tl.sum(part, 0)
        # These tiles are joined about their own mean first, and then to the tiles before them.
        here = tl.sum(part[:, None] * part_mean, 0) / tl.maximum(many, 1.0)
        apart = (part_mean - here[None, :]) + part_rest
        spread = tl.sum(part_squares + part[:, None] * apart * apart, 0)
        delta = (here - mean) + (tl.sum(part[:, None] * apart, 0) / tl.maximum(many, 1.0) - rest)
        share = many / tl.maximum(n + many, 1.0)
        squares += spread + delta * delta * (n * share)
        move = rest + delta * share
        rest = move - ((mean + move) - mean)
        mean += move
        n += many
    variance = squares / tl.maximum(n, 1.0)
    tl.store(total, n, mask=tl.program_id(0) == 0)
    tl.store(statistics + column, mean)
    tl.store(statistics + P + column, rest)
    tl.store(statistics + 2 * P + column, squares)
    tl.store(statistics + 3 * P + column, 1.0 / tl.sqrt_rn(variance + eps))
    if UPDATE:
        step = tl.where(n > 0, momentum, 0.0)
        old_mean = tl.load(running_mean + column, mask=column < D, other=0.0)
        old_variance = tl.load(running_var + column, mask=column < D, other=0.0)
        unbiased = variance * (n / tl.maximum(n - 1.0, 1.0))
        tl.store(running_mean + column, old_mean + step * (mean - old_mean), mask=column < D)
        tl.store(running_var + column, old_variance + step * (unbiased - old_variance), mask=column < D)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _tile(end, rows, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block's row tile, its rows, which of them are real, and its channels."""
    tile = (tl.program_id(0) // (P // BLOCK_C)).to(tl.int64)
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    real = tl.load(end + row, mask=row < rows, other=0) > 0
    column = tl.program_id(0) % (P // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    return tile, row, real, column


@triton.jit
def _normal(c, statistics, scale, offset, row, real, column, D: tl.constexpr, P: tl.constexpr):
    """u = (c - mean) * rstd, zero at rows that are not real; n = u * scale + offset; rstd; scale."""
    value = tl.load(c + row[:, None] * P + column[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    mean = tl.load(statistics + column)
    rstd = tl.load(statistics + 3 * P + column)
    scales = tl.load(scale + column, mask=column < D, other=0.0)
    offsets = tl.load(offset + column, mask=column < D, other=0.0)
    unit = tl.where(real[:, None], (value - mean[None, :]) * rstd[None, :], 0.0)
    return unit, unit * scales[None, :] + offsets[None, :], rstd, scales


@triton.jit
def _upstream(ds, n, row, real, column, P: tl.constexpr):
    """The gradient of n: ds * SiLU'(n), zero at rows that are not real; and the sigmoid of n."""
    gate = tl.sigmoid(n)
    given = tl.load(ds + row[:, None] * P + column[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    return given * gate * (1.0 + n * (1.0 - gate)), gate


@triton.jit(repr=named("batch_norm_silu_forward"), do_not_specialize=["rows"])
def _silu_kernel(
    c, statistics, scale, offset, end, s, rows,
    D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, row, real, column = _tile(end, rows, P, BLOCK_R, BLOCK_C)
    _, n, _, _ = _normal(c, statistics, scale, offset, row, real, column, D, P)
    result = tl.where(real[:, None], n * tl.sigmoid(n), 0.0).to(s.dtype.element_ty)
    tl.store(s + row[:, None] * P + column[None, :], result, mask=(row < rows)[:, None])


@triton.jit(repr=named("batch_norm_silu_backward_sums"), do_not_specialize=["rows"])
def _sums_kernel(
    ds, c, statistics, scale, offset, end, s, partial, rows,
    D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, row, real, column = _tile(end, rows, P, BLOCK_R, BLOCK_C)
    unit, n, _, _ = _normal(c, statistics, scale, offset, row, real, column, D, P)
    dn, gate = _upstream(ds, n, row, real, column, P)
    result = tl.where(real[:, None], n * gate, 0.0).to(s.dtype.element_ty)
    tl.store(s + row[:, None] * P + column[None, :], result, mask=(row < rows)[:, None])
    at = partial + tile * 2 * D + column
    tl.store(at, tl.sum(dn * unit, 0), mask=column < D)
    tl.store(at + D, tl.sum(dn, 0), mask=column < D)


@triton.jit(repr=named("batch_norm_silu_backward_input"), do_not_specialize=["rows"])
def _gradient_kernel(
    ds, c, statistics, scale, offset, end, count, sums, dc, rows,
    D: tl.constexpr, P: tl.constexpr, FIXED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, row, real, column = _tile(end, rows, P, BLOCK_R, BLOCK_C)
    unit, n, rstd, scales = _normal(c, statistics, scale, offset, row, real, column, D, P)
    gradient, _ = _upstream(ds, n, row, real, column, P)
    if not FIXED:
        many = tl.maximum(tl.load(count), 1.0)
        tilt = tl.load(sums + column, mask=column < D, other=0.0) / many
        slope = tl.load(sums + D + column, mask=column < D, other=0.0) / many
        gradient = tl.where(real[:, None], gradient - slope[None, :] - unit * tilt[None, :], 0.0)
    gradient *= (rstd * scales)[None, :]
    tl.store(dc + row[:, None] * P + column[None, :], gradient.to(dc.dtype.element_ty), mask=(row < rows)[:, None])


def _config(padded: int) -> Config:
    # 4096 elements for 4 warps are 4 loads of 16 bytes a thread from each tensor, without spilling.
    block = columns(padded)
    return Config({"BLOCK_R": 4096 // block, "BLOCK_C": block}, warps=4, stages=1)


def _merge_config() -> Config:
    # 16 tiles a thread, with all their loads in flight at once; 51,200 rows take two such rounds.
    return Config({"BLOCK_T": 512, "BLOCK_C": 8}, warps=8, stages=1)


def _grid(rows: int, padded: int) -> tuple[int]:
    blocks = _config(padded).blocks
    return (cdiv(rows, blocks["BLOCK_R"]) * (padded // blocks["BLOCK_C"]),)


def _merge_outputs(
    count: Tensor, partial: Tensor, running_mean: Tensor | None, running_var: Tensor | None, batches: Tensor | None,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return new(count, 1), new(partial, 4, partial.shape[2])


@kernel_op(_merge_outputs, mutates=("running_mean", "running_var", "batches"))
def batch_norm_merge(
    count: Tensor, partial: Tensor, running_mean: Tensor | None, running_var: Tensor | None, batches: Tensor | None,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Join the statistics of row tiles, or of ranks, and update the running ones.

    Args:
        count: (tiles,) float32, the number of real rows of each.
        partial: (tiles, 3, P) float32: their mean, the part of it that float32 lost, and their sum of squared
            deviations.
        running_mean, running_var: (D,) float32, BatchNorm's, updated in place with the mean and the unbiased variance,
            unless no row is real. None: no update.
        batches: () int64, BatchNorm's count of batches, updated in place.
        momentum, eps: BatchNorm's.

    Returns:
        The number of real rows (1,), and (4, P) float32: the same three statistics over all rows, and
        1/standard deviation.
    """
    total, statistics = outputs = _merge_outputs(count, partial, running_mean, running_var, batches, momentum, eps)
    tiles, _, padded = partial.shape
    config = _merge_config()
    # The running statistics are folded into prepared weights, which are prepared again when this version changes.
    torch.autograd.graph.increment_version([t for t in (running_mean, running_var, batches) if t is not None])
    launch(
        _merge_kernel, (padded // config.blocks["BLOCK_C"],), count, partial, running_mean, running_var, batches,
        momentum, eps, total, statistics, tiles,
        D=padded if running_mean is None else running_mean.shape[0], P=padded, UPDATE=running_mean is not None,
        config=config,
    )  # fmt: skip
    return outputs


def _silu_outputs(c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, end: Tensor) -> Tensor:
    return new(c, *c.shape)


@kernel_op(_silu_outputs)
def batch_norm_silu(c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, end: Tensor) -> Tensor:
    """SiLU(BatchNorm(c)), zero at rows that are not real.

    Args:
        c: (N, P) half rows.
        statistics: (4, P) float32, as from `batch_norm_merge`.
        scale, offset: (D,) float32, BatchNorm's weight and bias.
        end: (N,) int32, as in `Segments`.

    Returns:
        (N, P) half rows.
    """
    s = _silu_outputs(c, statistics, scale, offset, end)
    rows, padded = c.shape
    launch(
        _silu_kernel, _grid(rows, padded), c, statistics, scale, offset, end, s, rows,
        D=scale.shape[0], P=padded, config=_config(padded),
    )  # fmt: skip
    return s


def _sums_outputs(
    ds: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    rows, padded = c.shape
    tiles = cdiv(rows, _config(padded).blocks["BLOCK_R"])
    return new(c, rows, padded), new(statistics, tiles, 2, scale.shape[0])


@kernel_op(_sums_outputs)
def batch_norm_silu_sums(
    ds: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The first half of backward: s again, and the gradients of scale and offset.

    Args:
        ds: (N, P) half rows, the gradient of s.
        c, statistics, scale, offset, end: as for `batch_norm_silu`.

    Returns:
        s, (N, P) half rows; partial sums (tiles, 2, D) float32, whose sum over tiles is the gradients of scale and
        offset.
    """
    s, partial = outputs = _sums_outputs(ds, c, statistics, scale, offset, end)
    rows, padded = c.shape
    launch(
        _sums_kernel, _grid(rows, padded), ds, c, statistics, scale, offset, end, s, partial, rows,
        D=scale.shape[0], P=padded, config=_config(padded),
    )  # fmt: skip
    return outputs


def _gradient_outputs(
    ds: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, end: Tensor, count: Tensor, sums: Tensor,
    fixed: bool,
) -> Tensor:  # fmt: skip
    return new(c, *c.shape)


@kernel_op(_gradient_outputs)
def batch_norm_silu_gradient(
    ds: Tensor, c: Tensor, statistics: Tensor, scale: Tensor, offset: Tensor, end: Tensor, count: Tensor, sums: Tensor,
    fixed: bool,
) -> Tensor:  # fmt: skip
    """The second half of backward: the gradient of c.

    Args:
        ds, c, statistics, scale, offset, end: as for `batch_norm_silu_sums`.
        count: (1,) float32, the number of real rows on all ranks, over which the statistics were computed.
        sums: (2, D) float32, the partial sums of `batch_norm_silu_sums`, summed over tiles and ranks.
        fixed: whether the statistics are independent of c, as in evaluation mode; then count and sums are not read.

    Returns:
        The gradient of c, (N, P) half rows, zero at rows that are not real.
    """
    dc = _gradient_outputs(ds, c, statistics, scale, offset, end, count, sums, fixed)
    rows, padded = c.shape
    launch(
        _gradient_kernel, _grid(rows, padded), ds, c, statistics, scale, offset, end, count, sums, dc, rows,
        D=scale.shape[0], P=padded, FIXED=fixed, config=_config(padded),
    )  # fmt: skip
    return dc
