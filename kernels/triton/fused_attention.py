"""Softmax attention within runs of rows, by PyTorch's fused kernels.

q, k and v are views of one projection's output, (N, 3, H, d), d the head size padded to a multiple of 8 with zeros (69
to 72: 4 heads then fill 288 = pitch(276)). Runs of rows of any length follow one another and every row is in one, so
there is no mask and nothing is undefined. Rows that are not real have runs of their own, which no real row sees. Scores
are never in memory: forward reads 3 H d and writes H d a row. FlashAttention runs half precision on GPUs that have
bfloat16 matrix units; the memory-efficient kernels run float32, older GPUs, and runs too long for FlashAttention (see
below). Neither writes out the scores.

PyTorch's backward returns the three gradients as separate tensors and cannot write them to one buffer. Joining them
would read and write 6 H d a row, so what comes next takes three: `linear_onto`, and a library's product for each.

Gradients must be the same at every run of a program, but FlashAttention adds up dq by atomics, one for each block of
keys, in any order. The order of two does not matter, so FlashAttention runs as many keys as two blocks hold: 256 for
heads of up to 96, else 128. PyTorch's switch to an ordered sum is global, and a traced call cannot turn it. So longer
runs go to the memory-efficient kernels, which add up dq in order if the keys are not split.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from astroco_fast.kernels.library import kernel_op
from astroco_fast.kernels.tensors import new
from astroco_fast.kernels.triton.tensors import on_gpu

HEAD_MULTIPLE = 8  # what the fused kernels ask of a head's size
MOST_RUNS = 65535  # both kinds of kernels put runs on a grid's second or third axis, which ends there


class Runs(NamedTuple):
    """Runs of rows, each of which attends to itself only.

    Attributes:
        offsets: (S + 1,) int32, the first row of each run, and N.
        longest: an upper bound of a run's length.
    """

    offsets: Tensor
    longest: int


def head_pitch(size: int) -> int:
    """Columns of a head of `size` channels."""
    return -(-size // HEAD_MULTIPLE) * HEAD_MULTIPLE


def attend(qkv: Tensor, runs: Runs, heads: int, scale: float, keep: bool = True) -> tuple[Tensor, ...]:
    """Attention of every row over the rows of its run.

    Args:
        qkv: (N, 3 H d), finite everywhere.
        runs: which rows see one another.
        heads: H.
        scale: of the scores, before softmax.
        keep: whether there will be a backward pass.

    Returns:
        The attended values, (N, H d), and three tensors for `attend_backward`: the logarithms of softmax's sums, and
        two that only PyTorch reads.

    Raises:
        ValueError: there are more runs than the GPU's kernels take at once.
    """
    rows = qkv.shape[0]
    if rows == 0:  # which the fused kernels refuse
        return new(qkv, 0, qkv.shape[1] // 3), new(qkv, 0), new(qkv, 0), new(qkv, 0)
    q, k, v = _parts(qkv, heads)
    offsets, longest = runs
    # Without backward there is no sum whose order would matter.
    kind = kernels_for(qkv, q.shape[2], longest if keep else 1)
    longest = min(longest, rows)  # the fused kernels refuse a longer one
    count = offsets.shape[0] - 1
    if kind != "plain" and count > MOST_RUNS:
        raise ValueError(
            f"attention: {count} runs of rows (a window is one; in padded layouts its padding is another), but the "
            f"GPU's kernels take {MOST_RUNS} at most: use smaller batches"
        )
    if kind == "flash":
        out, *kept, _ = torch.ops.aten._flash_attention_forward.default(
            q, k, v, offsets, offsets, longest, longest, 0.0, False, False, scale=scale
        )
    elif kind == "efficient":
        out, *kept, _, _ = torch.ops.aten._efficient_attention_forward.default(
            q[None], k[None], v[None], None, offsets, offsets, longest, longest, 0.0, 0, keep, scale=scale
        )
    else:
        out, weights = plain_attention(q, k, v, offsets, scale)
        kept = [weights, weights, weights]
    return out.reshape(rows, qkv.shape[1] // 3), *kept


def attend_backward(
    upstream: Tensor,
    qkv: Tensor,
    out: Tensor,
    kept: Sequence[Tensor],
    runs: Runs,
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, (N, H d) each, from the gradient of `out` and the tensors that `attend` returned."""
    rows = qkv.shape[0]
    if rows == 0:
        return new(out, *out.shape), new(out, *out.shape), new(out, *out.shape)
    q, k, v = _parts(qkv, heads)
    upstream, out = upstream.view(q.shape), out.view(q.shape)
    offsets, longest = runs
    logsumexp, *state = kept
    kind = kernels_for(qkv, q.shape[2], longest)
    longest = min(longest, rows)
    if kind == "flash":
        gradients = torch.ops.aten._flash_attention_backward.default(
            upstream, q, k, v, out, logsumexp, offsets, offsets, longest, longest, 0.0, False, *state, scale=scale
        )
    elif kind == "efficient":
        gradients = efficient_attention_backward(upstream, q, k, v, out, logsumexp, *state, offsets, longest, scale)
    else:
        gradients = plain_attention_backward(upstream, q, k, v, logsumexp, offsets, scale)
    dq, dk, dv = (gradient.reshape(rows, qkv.shape[1] // 3).contiguous() for gradient in gradients)
    return dq, dk, dv


def _parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (N, H, d) each, views of (N, 3 H d)."""
    rows, columns = qkv.shape
    q, k, v = qkv.view(rows, 3, heads, columns // (3 * heads)).unbind(1)
    return q, k, v


def _gradients(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return new(q, *q.shape), new(q, *q.shape), new(q, *q.shape)


@kernel_op(_gradients)
def efficient_attention_backward(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, philox_seed: Tensor,
    philox_offset: Tensor, offsets: Tensor, longest: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """PyTorch's op, wrapped because its fake, for tensors without data, takes no scale (in torch 2.13)."""
    scaled = {} if isinstance(q, FakeTensor) else {"scale": scale}
    # With more than one split of the keys, the order of adding them up varies. ROCm's kernels take no such argument.
    splits = {} if torch.version.hip else {"num_splits_key": 1}
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward.default(
        upstream[None], q[None], k[None], v[None], None, out[None], offsets, offsets, longest, longest, logsumexp, 0.0,
        philox_seed, philox_offset, 0, False, **splits, **scaled,
    )  # fmt: skip
    return dq[0], dk[0], dv[0]


def kernels_for(x: Tensor, size: int, longest: int) -> str:
    """The kernels that attend to x: "flash", "efficient" or, where PyTorch has neither, "plain".

    Forward and backward both know these arguments without waiting for the device.

    Args:
        x: a tensor of the device and dtype to attend in.
        size: a head's, padded.
        longest: an upper bound of a run's length.
    """
    if not on_gpu(x):
        return "plain"
    if x.dtype == torch.float32:
        return "efficient"
    if torch.version.hip:  # its FlashAttention has a kernel for dq alone, without atomics
        return "flash"
    old = x.is_cuda and torch.cuda.get_device_properties(x.device).major < 8
    # Two blocks of keys. FlashAttention has no backward on smaller GPUs for heads beyond 192, on any beyond 256.
    most = 256 if size <= 96 else 128 if size <= 192 else 0
    return "efficient" if old or longest > most else "flash"


# For Triton's interpreter only, because PyTorch has no fused kernels for runs on the CPU: all scores are written out.


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return new(q, *q.shape), q.new_empty(q.shape[1], q.shape[0], q.shape[0], dtype=torch.float32)


@kernel_op(_outputs)
def plain_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The attended values, (N, H, d), and softmax's weights, (H, N, N) float32, zero between runs.

    Run by run, as the fused kernels do: in one product, 0 times a NaN of another run would be NaN.
    """
    out, weights = _outputs(q)
    weights.zero_()
    for run in _slices(offsets):
        scores = torch.einsum("qhd,khd->hqk", q[run].float(), k[run].float()) * scale
        weights[:, run, run] = scores.softmax(-1)
        out[run] = torch.einsum("hqk,khd->qhd", weights[:, run, run], v[run].float()).to(q.dtype)
    return out, weights


@kernel_op(_gradients)
def plain_attention_backward(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, (N, H, d) each."""
    dq, dk, dv = _gradients(q)
    for run in _slices(offsets):
        share, above = weights[:, run, run], upstream[run].float()
        dv[run] = torch.einsum("hqk,qhd->khd", share, above).to(q.dtype)
        slope = torch.einsum("qhd,khd->hqk", above, v[run].float())
        d_scores = share * (slope - (share * slope).sum(-1, keepdim=True)) * scale
        dq[run] = torch.einsum("hqk,khd->qhd", d_scores, k[run].float()).to(q.dtype)
        dk[run] = torch.einsum("hqk,qhd->khd", d_scores, q[run].float()).to(q.dtype)
    return dq, dk, dv


def _slices(offsets: Tensor) -> list[slice]:
    """The rows of each run."""
    ends = offsets.tolist()
    return [slice(first, last) for first, last in pairwise(ends) if last > first]
