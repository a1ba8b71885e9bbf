"""The points' features, input of `fuse`: photometry, Linear(2 -> D/2) in float32, and sines and cosines of the time.

A point is 13 bytes and its half row 2 P, so the kernel takes the time of writing the rows, and backward computes them
again instead of keeping them. One reduction of an angle serves its sine and its cosine, so the column tiles run over
D/2 photometric channels and then over D/4 angles, not along the row. The loops are not unrolled, because the same
arithmetic would then be compiled up to six times.

libdevice's sine of a float32 reads a table in local memory for large angles. This kernel reduces the angle in float64
instead; the angle is the same float32 product whose sine the reference computes. The reduction is seven float64
operations an angle, which take about as long as writing the row on GPUs with few float64 units.
"""

import triton
import triton.language as tl
from torch import Tensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import PITCH, cdiv, new, pitch
from astroco_fast.kernels.triton.launch import Config, launch, named

_BITS = {"time": 1, "magnitude": 2, "uncertainty": 4}


def hide_bits(hide: tuple[str, ...], hidden: Tensor | None) -> int:
    """The fields that are replaced by zero at hidden points, as bits of an integer, which an op's schema can hold."""
    return 0 if hidden is None else sum(_BITS[name] for name in set(hide))


def hides(hide: int) -> dict[str, bool]:
    """The same fields as a kernel's constants HIDE_TIME, HIDE_MAGNITUDE and HIDE_UNCERTAINTY."""
    return {f"HIDE_{name.upper()}": bool(hide & bit) for name, bit in _BITS.items()}


@triton.jit
def field(values, hidden, row, real, HIDDEN: tl.constexpr):
    """A field of points, [BLOCK_R] float32: zero at rows that are not real and, if HIDDEN, at hidden points."""
    shown = real
    if HIDDEN:
        shown = real & (tl.load(hidden + row, mask=real, other=0) == 0)
    return tl.load(values + row, mask=shown, other=0.0).to(tl.float32)


@triton.jit
def sine_and_cosine(angle):
    """Sine and cosine of a float32 tile, to 1.5 units in the last place up to 1e6 (quarter turns then have 20 bits)."""
    exact = angle.to(tl.float64)
    quarters = tl.floor(exact * 0.6366197723675814 + 0.5)
    # pi/2 is in two parts. The first has 33 bits, so its multiples are exact and the difference loses nothing.
    rest = (exact - quarters * 1.5707963267341256) - quarters * 6.077100506506192e-11
    r = rest.to(tl.float32)  # at most pi/4
    s = r * r
    # Taylor series, cut where the next term is below 1e-9.
    sine = r + r * s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880))))
    cosine = 1.0 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 - s * (1.0 / 3628800)))))
    quarter = quarters.to(tl.int64).to(tl.int32)
    odd = (quarter & 1) != 0
    a = tl.where(odd, cosine, sine)
    b = tl.where(odd, sine, cosine)
    return tl.where((quarter & 2) != 0, -a, a), tl.where(((quarter + 1) & 2) != 0, -b, b)


@triton.jit(repr=named("point_features_forward"), do_not_specialize=["rows"])
def _kernel(
    time, mag, err, hidden, frequencies, w_points, b_points, end, features, rows,
    D: tl.constexpr, P: tl.constexpr, HIDE_TIME: tl.constexpr, HIDE_MAGNITUDE: tl.constexpr,
    HIDE_UNCERTAINTY: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    half: tl.constexpr = D // 2
    quarter: tl.constexpr = D // 4
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    real = tl.load(end + row, mask=inside, other=0) > 0
    t = field(time, hidden, row, real, HIDE_TIME)
    m = field(mag, hidden, row, real, HIDE_MAGNITUDE)
    e = field(err, hidden, row, real, HIDE_UNCERTAINTY)
    out = features + row[:, None] * P
    dtype = features.dtype.element_ty
    for start in range(0, half, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        by_mag = tl.load(w_points + 2 * channel, mask=channel < half, other=0.0)
        by_err = tl.load(w_points + 2 * channel + 1, mask=channel < half, other=0.0)
        biases = tl.load(b_points + channel, mask=channel < half, other=0.0)
        value = m[:, None] * by_mag[None, :] + e[:, None] * by_err[None, :] + biases[None, :]
        value = tl.where(real[:, None], value, 0.0).to(dtype)
        tl.store(out + channel[None, :], value, mask=inside[:, None] & (channel < half)[None, :])
    for start in range(0, quarter, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        sine, cosine = sine_and_cosine(t[:, None] * tl.load(frequencies + channel)[None, :])
        here = inside[:, None] & (channel < quarter)[None, :]
        tl.store(out + half + channel[None, :], tl.where(real[:, None], sine, 0.0).to(dtype), mask=here)
        tl.store(out + half + quarter + channel[None, :], tl.where(real[:, None], cosine, 0.0).to(dtype), mask=here)
    if D < P:
        column = D + tl.arange(0, BLOCK_C)
        pad = tl.zeros([BLOCK_R, BLOCK_C], dtype)
        tl.store(out + column[None, :], pad, mask=inside[:, None] & (column < P)[None, :])


# The frequencies are padded to a pitch, which has at most 31 pad columns; 32 divides D/2 and D/4 of D = 256.
_CONFIG = Config({"BLOCK_R": 32, "BLOCK_C": PITCH}, warps=4, stages=1)


def _outputs(
    time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, frequencies: Tensor, w_points: Tensor,
    b_points: Tensor, end: Tensor, hide: int, like: Tensor,
) -> Tensor:  # fmt: skip
    return new(like, time.shape[0], pitch(2 * w_points.shape[0]))


@kernel_op(_outputs)
def point_features(
    time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, frequencies: Tensor, w_points: Tensor,
    b_points: Tensor, end: Tensor, hide: int, like: Tensor,
) -> Tensor:  # fmt: skip
    """Photometry, sines and cosines side by side, (N, P) half rows, zero at rows that are not real.

    Args:
        time, mag, err: (N,) float32.
        hidden: (N,) bool, the points where the fields in `hide` are replaced by zero.
        frequencies: (pitch(D/4),) float32, zeros from D/4 on.
        w_points, b_points: (D/2, 2) and (D/2,) float32, photometry's weight and bias.
        end: (N,) int32, as in `Segments`.
        hide: those fields, as `hide_bits` returns them.
        like: a tensor of the result's dtype.
    """
    features = _outputs(time, mag, err, hidden, frequencies, w_points, b_points, end, hide, like)
    rows, width = time.shape[0], 2 * w_points.shape[0]
    launch(
        _kernel, (cdiv(rows, _CONFIG.blocks["BLOCK_R"]),),
        time, mag, err, hidden, frequencies, w_points, b_points, end, features, rows,
        D=width, P=pitch(width), **hides(hide), config=_CONFIG,
    )  # fmt: skip
    return features
