"""The layer mix, sum_l w_l x(l) with w = softmax(logits), and its mean over each window's real points.

A launch adds up to five states (S's five in one launch, L's thirteen in three), and the one that adds the last also
computes the means: 4 D bytes a row and state, and 8 D for a launch that continues a sum or whose sum is continued. A
launch for every state would move 12 D; to add in the kernel that ends a block, which has the state in registers, 8 D.

Backward computes, for the logits, the sum of dM x(l), where dM, the gradient of the mixed rows, is that of the sequence
plus that of the mean. Again a launch takes up to five states, 4 D bytes a row and state, and 4 D for dM. The sums run
over all rows and nearly cancel in softmax's gradient, so each has a second float32 number for what rounding takes from
the first; the kernel waits for memory, so this costs no time. It writes a state's gradient, w_l dM, only where no other
kernel adds that (mix_term.py); where dM has two parts, it writes their sum for those that do.

Tiling: a block owns 32 channels (128 bytes, a cache line of each row) of a window and sweeps the window's rows, so that
the mean needs no second pass and no atomics. The block also zeroes the rows between its window and the next, which are
not real points. Every block computes the softmax again, which is some tens of numbers.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new
from astroco_fast.kernels.triton.launch import Config, launch, named

# The most states that one launch takes, because kernels name their arguments one by one.
GROUP = 5


@triton.jit
def _softmax(logits, LAYERS: tl.constexpr, BLOCK_L: tl.constexpr):
    """The weights of the states, [BLOCK_L] float32, zero from LAYERS on."""
    layer = tl.arange(0, BLOCK_L)
    values = tl.load(logits + layer, mask=layer < LAYERS, other=float("-inf")).to(tl.float32)
    powers = tl.exp(values - tl.max(values, 0))
    return powers / tl.sum(powers, 0)


@triton.jit
def _window(start, lengths, rows, windows, D: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block's window, its first row, the row after its last real one, the next window's first row, the channels."""
    tiles: tl.constexpr = (D + BLOCK_C - 1) // BLOCK_C
    window = tl.program_id(0) // tiles
    column = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(start + window)
    end = first + tl.load(lengths + window)
    until = tl.load(start + window + 1, mask=window + 1 < windows, other=rows)
    return window, first, end, until, column


@triton.jit
def _pick(weights, layer, BLOCK_L: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, BLOCK_L) == layer, weights, 0.0), 0)


@triton.jit(repr=named("mix_forward", POOL=("", "pool")), do_not_specialize=["index", "rows", "windows"])
def _forward_kernel(
    x0, x1, x2, x3, x4, total, logits, index, start, lengths, mixed, pooled, rows, windows,
    D: tl.constexpr, COUNT: tl.constexpr, LAYERS: tl.constexpr, BLOCK_L: tl.constexpr, TOTAL: tl.constexpr,
    POOL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    window, first, end, until, column = _window(start, lengths, rows, windows, D, BLOCK_C)
    weights = _softmax(logits, LAYERS, BLOCK_L)
    w0 = _pick(weights, index, BLOCK_L)
    w1 = _pick(weights, index + 1, BLOCK_L)
    w2 = _pick(weights, index + 2, BLOCK_L)
    w3 = _pick(weights, index + 3, BLOCK_L)
    w4 = _pick(weights, index + 4, BLOCK_L)
    mass = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for at in range(first, until, BLOCK_R):
        row = at + tl.arange(0, BLOCK_R)
        offset = row.to(tl.int64)[:, None] * D + column[None, :]
        real = (row < end)[:, None] & (column < D)[None, :]
        value = w0 * tl.load(x0 + offset, mask=real, other=0.0)
        if TOTAL:
            value += tl.load(total + offset, mask=real, other=0.0)
        if COUNT > 1:
            value += w1 * tl.load(x1 + offset, mask=real, other=0.0)
        if COUNT > 2:
            value += w2 * tl.load(x2 + offset, mask=real, other=0.0)
        if COUNT > 3:
            value += w3 * tl.load(x3 + offset, mask=real, other=0.0)
        if COUNT > 4:
            value += w4 * tl.load(x4 + offset, mask=real, other=0.0)
        tl.store(mixed + offset, value, mask=(row < until)[:, None] & (column < D)[None, :])
        if POOL:
            mass += value
    if POOL:
        count = tl.maximum(end - first, 1).to(tl.float32)
        tl.store(pooled + window.to(tl.int64) * D + column, tl.sum(mass, 0) / count, mask=column < D)


@triton.jit
def _state_backward(x, dx, offset, real, inside, weight, upstream, dot, lost, WRITE: tl.constexpr):
    """Write the state's gradient if WRITE; add upstream * x to `dot`, and to `lost` what rounding takes from `dot`.

    The multiply-adds are written out, because the compiler would choose others to fuse, whose rounding `lost` misses.
    """
    if WRITE:
        tl.store(dx + offset, weight * upstream, mask=inside)
    value = tl.load(x + offset, mask=real, other=0.0)
    total = tl.fma(upstream, value, dot)
    added = total - dot
    lost += (dot - (total - added)) + tl.fma(upstream, value, -added)
    return total, lost


@triton.jit
def _store_sum(at, dot, lost):
    tl.store(at, tl.sum(dot.to(tl.float64) + lost.to(tl.float64)))


@triton.jit(repr=named("mix_backward", POOLED=("", "pool")), do_not_specialize=["index", "rows", "windows"])
def _backward_kernel(
    x0, x1, x2, x3, x4, dmixed, dpooled, logits, index, start, lengths, dx0, dx1, dx2, dx3, dx4, joined, partial, rows,
    windows, D: tl.constexpr, COUNT: tl.constexpr, LAYERS: tl.constexpr, BLOCK_L: tl.constexpr, MIXED: tl.constexpr,
    POOLED: tl.constexpr, WRITES: tl.constexpr, JOIN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    window, first, end, until, column = _window(start, lengths, rows, windows, D, BLOCK_C)
    weights = _softmax(logits, LAYERS, BLOCK_L)
    w0 = _pick(weights, index, BLOCK_L)
    w1 = _pick(weights, index + 1, BLOCK_L)
    w2 = _pick(weights, index + 2, BLOCK_L)
    w3 = _pick(weights, index + 3, BLOCK_L)
    w4 = _pick(weights, index + 4, BLOCK_L)
    share = tl.zeros([BLOCK_C], tl.float32)  # each point's gradient through the mean
    if POOLED:
        share = tl.load(dpooled + window.to(tl.int64) * D + column, mask=column < D, other=0.0)
        share = share / tl.maximum(end - first, 1).to(tl.float32)
    dot0 = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    dot1, dot2, dot3, dot4 = dot0, dot0, dot0, dot0
    lost0, lost1, lost2, lost3, lost4 = dot0, dot0, dot0, dot0, dot0
    for at in range(first, until, BLOCK_R):
        row = at + tl.arange(0, BLOCK_R)
        offset = row.to(tl.int64)[:, None] * D + column[None, :]
        real = (row < end)[:, None] & (column < D)[None, :]
        inside = (row < until)[:, None] & (column < D)[None, :]
        upstream = tl.zeros([BLOCK_R, BLOCK_C], tl.float32) + share[None, :]
        if MIXED:
            upstream += tl.load(dmixed + offset, mask=real, other=0.0)
        upstream = tl.where(real, upstream, 0.0)
        if JOIN:
            tl.store(joined + offset, upstream, mask=inside)
        dot0, lost0 = _state_backward(x0, dx0, offset, real, inside, w0, upstream, dot0, lost0, WRITES & 1)
        if COUNT > 1:
            dot1, lost1 = _state_backward(x1, dx1, offset, real, inside, w1, upstream, dot1, lost1, WRITES & 2)
        if COUNT > 2:
            dot2, lost2 = _state_backward(x2, dx2, offset, real, inside, w2, upstream, dot2, lost2, WRITES & 4)
        if COUNT > 3:
            dot3, lost3 = _state_backward(x3, dx3, offset, real, inside, w3, upstream, dot3, lost3, WRITES & 8)
        if COUNT > 4:
            dot4, lost4 = _state_backward(x4, dx4, offset, real, inside, w4, upstream, dot4, lost4, WRITES & 16)
    at = partial + tl.program_id(0).to(tl.int64) * COUNT
    _store_sum(at, dot0, lost0)
    if COUNT > 1:
        _store_sum(at + 1, dot1, lost1)
    if COUNT > 2:
        _store_sum(at + 2, dot2, lost2)
    if COUNT > 3:
        _store_sum(at + 3, dot3, lost3)
    if COUNT > 4:
        _store_sum(at + 4, dot4, lost4)


# A thread loads 16 bytes of two rows of each state. Five states, and in backward their ten sums, fit its registers.
_CONFIG = Config({"BLOCK_R": 32, "BLOCK_C": 32}, warps=4, stages=1)


def _blocks(windows: int, width: int) -> int:
    return windows * cdiv(width, _CONFIG.blocks["BLOCK_C"])


def _constants(states: Sequence[Tensor], logits: Tensor) -> dict[str, int]:
    layers = logits.shape[0]
    return {
        "D": states[0].shape[1],
        "COUNT": len(states),
        "LAYERS": layers,
        "BLOCK_L": triton.next_power_of_2(layers),
    }


def _group(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, filled up to `GROUP` by repeating the first; kernels do not read the repetitions."""
    return [*tensors, *[tensors[0]] * (GROUP - len(tensors))]


def _forward_outputs(
    states: Sequence[Tensor],
    total: Tensor | None,
    logits: Tensor,
    index: int,
    start: Tensor,
    lengths: Tensor,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    x = states[0]
    return new(x, *x.shape), new(x, start.shape[0] if pool else 0, x.shape[1])


@kernel_op(_forward_outputs)
def mix(
    states: Sequence[Tensor],
    total: Tensor | None,
    logits: Tensor,
    index: int,
    start: Tensor,
    lengths: Tensor,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    """Add some states to the mix: total + sum_j softmax(logits)_{index + j} states_j.

    Args:
        states: up to `GROUP` states, (N, D) float32 each.
        total: (N, D) float32, the sum so far; None: zero.
        logits: (L+1,) float32.
        index: the number l of the first of `states`.
        start, lengths: (B,) int32, as in `Segments`.
        pool: whether to compute the means, too.

    Returns:
        The sum (N, D), zero at rows that are not real; its mean over each window's real points, (B, D), zero for a
        window without any. Unless `pool`, the mean is (0, D).
    """
    mixed, pooled = outputs = _forward_outputs(states, total, logits, index, start, lengths, pool)
    rows, width = mixed.shape
    windows = start.shape[0]
    launch(
        _forward_kernel, (_blocks(windows, width),),
        *_group(states), mixed if total is None else total, logits, index, start, lengths, mixed, pooled, rows, windows,
        TOTAL=total is not None, POOL=pool, config=_CONFIG, **_constants(states, logits),
    )  # fmt: skip
    return outputs


def _backward_outputs(
    states: Sequence[Tensor], start: Tensor, written: Sequence[bool], join: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    x = states[0]
    dx = [new(x, *(x.shape if write else (0, 0))) for x, write in zip(states, written, strict=True)]
    partial = new(x, _blocks(start.shape[0], x.shape[1]), len(states), dtype=torch.float64)
    return dx, new(x, x.shape[0] if join else 0, x.shape[1]), partial


@kernel_op(_backward_outputs)
def mix_backward(
    states: Sequence[Tensor], dmixed: Tensor | None, dpooled: Tensor | None, logits: Tensor, index: int, start: Tensor,
    lengths: Tensor, written: Sequence[bool], join: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Backward of the whole mix, for some of its states.

    Args:
        states, logits, index, start, lengths: as in `mix`.
        dmixed, dpooled: (N, D) and (B, D) float32, gradients of the mix and of the means; None: zero.
        written: of which states to write the gradient.
        join: whether to write dM, the gradient of the mix and of the means together.

    Returns:
        The gradients of `states`, (0, 0) of those not `written`; dM (N, D), or (0, D); partial sums (blocks, states)
        float64, whose sum over blocks is the sum of each state's product with dM.
    """
    dx, joined, partial = outputs = _backward_outputs(states, start, written, join)
    rows, width = states[0].shape
    windows = start.shape[0]
    launch(
        _backward_kernel, (_blocks(windows, width),),
        *_group(states), partial if dmixed is None else dmixed, partial if dpooled is None else dpooled, logits, index,
        start, lengths, *_group(dx), joined, partial, rows, windows,
        MIXED=dmixed is not None, POOLED=dpooled is not None, WRITES=sum(on << i for i, on in enumerate(written)),
        JOIN=join, config=_CONFIG, **_constants(states, logits),
    )  # fmt: skip
    return outputs
