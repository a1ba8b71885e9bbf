"""Two projections of the same rows, one gating the other: u = act(a W_val^T + b_val) * sigmoid(a W_gate^T + b_gate).

The feed-forward sublayer has a = x and act = GELU; the convolution sublayer has a = LayerNorm(x) and act = identity, a
GLU. v and g are the two projections before act and sigmoid. Shapes: x (N, D) float32, weights (F, P) in the compute
dtype, u (N, F) half rows.

Bytes: forward reads 4 D and writes 2 F a row; v, g and LayerNorm(x) are never in memory. Backward computes v and g
again, which costs one product's time and saves 8 F bytes a row, and writes their gradients side by side, so that the
gradients of x and of both weights are one library product each. Backward writes a and, in the feed-forward, u in half
precision for the products that compute the weights' gradients.

With `keep`, forward writes v and g as well, side by side, and backward reads them instead of computing them. This saves
one product's time and takes 4 F bytes a row from forward to backward, written once and read once.

Tiling: where that fits, blocks hold whole rows (gated_rows.py). Elsewhere a block computes one tile of rows and columns
of both projections, stepping along D. The column tiles of a row tile are neighbours in the grid, so x is read from
memory once and from the second-level cache thereafter. Each of them computes LayerNorm's statistics again, which saves
a launch and rereads nothing from memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import cdiv, new, pitch
from astroco_fast.kernels.triton import gated_rows
from astroco_fast.kernels.triton.deviation import reciprocal_deviations
from astroco_fast.kernels.triton.gate import biased, gate, gate_gradient
from astroco_fast.kernels.triton.launch import Config, architecture, launch, named
from astroco_fast.kernels.triton.tensors import dot_precision
from astroco_fast.kernels.triton.whole_rows import grid as grid_of_rows


@triton.jit
def _load_rows(
    x, row, real, column, means, rstds, gain, shift, D: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """A tile of x, or of LayerNorm(x), float32; zero at rows that are not real and in the pad columns."""
    here = real[:, None] & (column < D)[None, :]
    value = tl.load(x + row[:, None] * D + column[None, :], mask=here, other=0.0).to(tl.float32)
    if NORM:
        gains = tl.load(gain + column, mask=column < D, other=0.0)
        shifts = tl.load(shift + column, mask=column < D, other=0.0)
        value = tl.where(here, (value - means[:, None]) * rstds[:, None] * gains[None, :] + shifts[None, :], 0.0)
    return value


@triton.jit
def _statistics(
    x, row, real, eps, D: tl.constexpr, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Mean and 1/standard deviation of rows of x, in one pass."""
    means = tl.zeros([BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_R], tl.float32)  # about the mean
    for start in range(0, P, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        value = _load_rows(x, row, real, column, means, means, x, x, D, False)
        # Chan's formula joins the chunk to those before it; E[x^2] - E[x]^2 would cancel.
        n = tl.minimum(D - start, BLOCK_K) * 1.0
        chunk_mean = tl.sum(value, 1) / n
        deviation = tl.where((column < D)[None, :], value - chunk_mean[:, None], 0.0)
        delta = chunk_mean - means
        means += delta * (n / (start + n))
        squares += tl.sum(deviation * deviation, 1) + delta * delta * (start * n / (start + n))
    return means, reciprocal_deviations(squares, D, eps)


@triton.jit
def _projections(
    x, row, inside, real, means, rstds, gain, shift, w_val, w_gate, b_val, b_gate, feature, a,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, KEEP_ROWS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """v and g, [BLOCK_R, BLOCK_F] float32. With KEEP_ROWS, the block of the first columns also writes its rows of a."""
    compute = w_val.dtype.element_ty
    v = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    g = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    for start in range(0, P, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        tile = _load_rows(x, row, real, column, means, rstds, gain, shift, D, NORM).to(compute)
        at = feature[None, :] * P + column[:, None]
        val = tl.load(w_val + at, mask=(feature < F)[None, :], other=0.0)
        gate = tl.load(w_gate + at, mask=(feature < F)[None, :], other=0.0)
        v = tl.dot(tile, val, v, input_precision=PRECISION)
        g = tl.dot(tile, gate, g, input_precision=PRECISION)
        if KEEP_ROWS:
            leading = tl.where(tl.program_id(0) % tl.cdiv(F, BLOCK_F) == 0, inside, False)
            tl.store(a + row[:, None] * P + column[None, :], tile, mask=leading[:, None])
    v, g = biased(v, g, b_val, b_gate, feature, WIDTH)
    return v, g


@triton.jit(repr=named("gated_linear_forward", GELU=("glu", "gelu")), do_not_specialize=["rows"])
def _forward_kernel(
    x, gain, shift, eps, w_val, w_gate, b_val, b_gate, end, u, mean, rstd, vg, rows,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0) // tl.cdiv(F, BLOCK_F), tl.program_id(0) % tl.cdiv(F, BLOCK_F)
    row = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = part * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.zeros([BLOCK_R], tl.float32)
    rstds = means
    if NORM:
        means, rstds = _statistics(x, row, real, eps, D, P, BLOCK_R, BLOCK_K)
        leading = tl.where(part == 0, inside, False)  # Triton 3.9 makes whole numbers of a block & a scalar
        tl.store(mean + row, means, mask=leading)
        tl.store(rstd + row, rstds, mask=leading)
    v, g = _projections(
        x, row, inside, real, means, rstds, gain, shift, w_val, w_gate, b_val, b_gate, feature, u,
        WIDTH, D, P, F, NORM, False, PRECISION, BLOCK_R, BLOCK_F, BLOCK_K,
    )  # fmt: skip
    stored = inside[:, None] & (feature < F)[None, :]
    if KEEP:
        at = vg + row[:, None] * (2 * F) + feature[None, :]
        tl.store(at, tl.where(real[:, None], v, 0.0).to(vg.dtype.element_ty), mask=stored)
        tl.store(at + F, tl.where(real[:, None], g, 0.0).to(vg.dtype.element_ty), mask=stored)
    gated = tl.where(real[:, None], gate(v, g, GELU, u.dtype.element_ty != tl.float32), 0.0)
    tl.store(u + row[:, None] * F + feature[None, :], gated.to(u.dtype.element_ty), mask=stored)


@triton.jit(repr=named("gated_linear_backward", GELU=("glu", "gelu")), do_not_specialize=["rows"])
def _backward_kernel(
    x, gain, shift, mean, rstd, w_val, w_gate, b_val, b_gate, end, upstream, kept, d, u, a, partial, rows,
    WIDTH: tl.constexpr, D: tl.constexpr, P: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr,
    KEPT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0) // tl.cdiv(F, BLOCK_F), tl.program_id(0) % tl.cdiv(F, BLOCK_F)
    row = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = part * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    means = tl.zeros([BLOCK_R], tl.float32)
    rstds = means
    if NORM:
        means = tl.load(mean + row, mask=inside, other=0.0)
        rstds = tl.load(rstd + row, mask=inside, other=0.0)
    here = real[:, None] & (feature < F)[None, :]
    if KEPT:
        # Only a's copy needs x, so the column tiles divide its chunks among themselves.
        for start in range(part * BLOCK_K, P, tl.cdiv(F, BLOCK_F) * BLOCK_K):
            column = start + tl.arange(0, BLOCK_K)
            value = _load_rows(x, row, real, column, means, rstds, gain, shift, D, NORM)
            tl.store(a + row[:, None] * P + column[None, :], value.to(a.dtype.element_ty), mask=inside[:, None])
        at = kept + row[:, None] * (2 * F) + feature[None, :]
        v = tl.load(at, mask=here, other=0.0).to(tl.float32)
        g = tl.load(at + F, mask=here, other=0.0).to(tl.float32)
    else:
        v, g = _projections(
            x, row, inside, real, means, rstds, gain, shift, w_val, w_gate, b_val, b_gate, feature, a,
            WIDTH, D, P, F, NORM, True, PRECISION, BLOCK_R, BLOCK_F, BLOCK_K,
        )  # fmt: skip
    arrived = tl.load(upstream + row[:, None] * F + feature[None, :], mask=here, other=0.0).to(tl.float32)
    gated, for_v, for_g = gate_gradient(v, g, GELU, u.dtype.element_ty != tl.float32)
    dv = tl.where(here, arrived * for_v, 0.0)
    dg = tl.where(here, arrived * for_g, 0.0)
    stored = inside[:, None] & (feature < F)[None, :]
    at = d + row[:, None] * (2 * F) + feature[None, :]
    tl.store(at, dv.to(d.dtype.element_ty), mask=stored)
    tl.store(at + F, dg.to(d.dtype.element_ty), mask=stored)
    if GELU:
        gated = tl.where(here, gated, 0.0)
        tl.store(u + row[:, None] * F + feature[None, :], gated.to(u.dtype.element_ty), mask=stored)
    at = partial + tile.to(tl.int64) * 2 * F + feature
    tl.store(at, tl.sum(dv, 0), mask=feature < F)
    tl.store(at + F, tl.sum(dg, 0), mask=feature < F)


def _config(weight: Tensor, gelu: bool, backward: bool, keep: bool) -> Config:
    """The tiling, chosen from the compilers' figures (registers, spills, shared memory), not from times on a GPU.

    128 x 64 with 8 warps compiles without spilling on every architecture. Steps of 64 along D halve the loop's
    overhead; three buffers of them fit in 227 KB, not in 99 KB. In float32 each product is three (3xTF32), whose
    split operands need registers. `keep` needs registers for the addresses of v and g: with it 128 rows leave no
    register free in backward, and on sm_100 none in forward. The second-level cache serves x once for each column
    tile, so wider tiles are better where they fit, as 128 x 128 do on sm_90 in the feed-forward's forward.
    """
    on = architecture(weight.device)
    if weight.element_size() == 4:
        # 64 x 32 with 4 warps spills on sm_100 at D = 276; twice both spills where products are mma.sync's.
        columns, warps = (64, 8) if on.name == "sm_100" else (32, 4)
        return Config({"BLOCK_R": 64, "BLOCK_F": columns, "BLOCK_K": 32}, warps, stages=2)
    roomy = on.shared > 200 * 1024
    rows = 64 if gelu and keep and (backward or on.name == "sm_100") else 128
    wide = on.name == "sm_90" and gelu and not backward and not keep
    step = 64 if roomy and weight.shape[1] % 64 == 0 else 32
    return Config({"BLOCK_R": rows, "BLOCK_F": 128 if wide else 64, "BLOCK_K": step}, warps=8, stages=3)


def _grid(rows: int, features: int, config: Config) -> tuple[int]:
    return (cdiv(rows, config.blocks["BLOCK_R"]) * cdiv(features, config.blocks["BLOCK_F"]),)


def _forward_outputs(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float, w_val: Tensor, w_gate: Tensor,
    b_val: Tensor, b_gate: Tensor, end: Tensor, activation: str, keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, features = x.shape[0], w_val.shape[0]
    normed = 0 if gain is None else rows
    vg = new(w_val, rows, 2 * features) if keep else new(w_val, 0)
    return new(w_val, rows, features), new(x, normed), new(x, normed), vg


@kernel_op(_forward_outputs)
def gated_linear(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float, w_val: Tensor, w_gate: Tensor,
    b_val: Tensor, b_gate: Tensor, end: Tensor, activation: str, keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """act(a W_val^T + b_val) * sigmoid(a W_gate^T + b_gate), zero at rows that are not real; a = x or LayerNorm(x).

    Args:
        x: (N, D) float32.
        gain, shift: (D,) float32, LayerNorm's; None: a = x.
        eps: LayerNorm's.
        w_val, w_gate: (F, P) in the compute dtype, zero in rows beyond the output's width and in columns from D on.
        b_val, b_gate: (output's width,) float32.
        end: (N,) int32, as in `Segments`.
        activation: "glu" (act is the identity) or "gelu" (the exact one).
        keep: whether to return v and g, for `gated_linear_backward`.

    Returns:
        u, (N, F) half rows; LayerNorm's mean and 1/standard deviation, (N,) float32, empty if a = x; v and g side by
        side, (N, 2F) half rows, empty unless `keep`.
    """
    u, mean, rstd, vg = outputs = _forward_outputs(
        x, gain, shift, eps, w_val, w_gate, b_val, b_gate, end, activation, keep
    )
    (rows, width), features = x.shape, u.shape[1]
    given = (x, gain, shift, eps, w_val, w_gate, b_val, b_gate, end, u, mean, rstd)
    constants = {
        "WIDTH": b_val.shape[0], "D": width, "P": pitch(width), "F": features, "NORM": gain is not None,
        "GELU": activation == "gelu", "PRECISION": dot_precision(x),
    }  # fmt: skip
    if not keep and (config := gated_rows.config(w_val, width, activation == "gelu", rows)):
        grid = grid_of_rows(rows, config)
        launch(gated_rows.forward_kernel, grid, *given, rows, features, config=config, **constants)
    else:
        config = _config(w_val, activation == "gelu", backward=False, keep=keep)
        launch(_forward_kernel, _grid(rows, features, config), *given, vg, rows, KEEP=keep, config=config, **constants)
    return outputs


def _backward_config(weight: Tensor, width: int, activation: str, kept: Tensor | None) -> Config:
    held = gated_rows.config(weight, width, activation == "gelu", None) if kept is None else None
    return held or _config(weight, activation == "gelu", backward=True, keep=kept is not None)


def _backward_outputs(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, w_val: Tensor,
    w_gate: Tensor, b_val: Tensor, b_gate: Tensor, end: Tensor, upstream: Tensor, activation: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, (features, depth) = x.shape[0], w_val.shape
    config = _backward_config(w_val, x.shape[1], activation, kept)
    u = new(w_val, rows, features) if activation == "gelu" else new(w_val, 0)
    partial = new(x, cdiv(rows, config.blocks["BLOCK_R"]), 2, features)
    return new(w_val, rows, 2 * features), u, new(w_val, rows, depth), partial


@kernel_op(_backward_outputs)
def gated_linear_backward(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, w_val: Tensor,
    w_gate: Tensor, b_val: Tensor, b_gate: Tensor, end: Tensor, upstream: Tensor, activation: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of `gated_linear`, up to v = a W_val^T + b_val and g = a W_gate^T + b_gate.

    Args:
        mean, rstd: LayerNorm's, as `gated_linear` returns them.
        upstream: the gradient of u, (N, F) half rows.
        kept: v and g, as `gated_linear` returns them with `keep`; None: they are computed again.

    Returns:
        The gradients of v and g side by side, (N, 2F) half rows; u, (N, F) half rows, empty for "glu"; a, (N, P)
        half rows; partial sums (blocks, 2, F) float32, whose sum over blocks is the gradients of b_val and b_gate.
    """
    d, u, a, partial = outputs = _backward_outputs(
        x, gain, shift, mean, rstd, w_val, w_gate, b_val, b_gate, end, upstream, activation, kept
    )
    (rows, width), features = x.shape, w_val.shape[0]
    config = _backward_config(w_val, width, activation, kept)
    given = (x, gain, shift, mean, rstd, w_val, w_gate, b_val, b_gate, end, upstream)
    constants = {
        "WIDTH": b_val.shape[0], "D": width, "P": pitch(width), "F": features, "NORM": gain is not None,
        "GELU": activation == "gelu", "PRECISION": dot_precision(x),
    }  # fmt: skip
    if "SPLIT" in config.blocks:
        grid = grid_of_rows(rows, config)
        launch(gated_rows.backward_kernel, grid, *given, d, u, a, partial, rows, features, config=config, **constants)
    else:
        grid = _grid(rows, features, config)
        launch(
            _backward_kernel, grid, *given, kept, d, u, a, partial, rows,
            KEPT=kept is not None, config=config, **constants,
        )  # fmt: skip
    return outputs
