"""The useful work of an op or model, whoever computes it: floating-point operations and bytes, of real points alone.

Operations are those of matrix products, attention and the depthwise convolution, as is usual; the backward pass takes
twice those of the forward pass. Bytes are those that no fusion within an op can avoid: its float32 input and output
rows and its parameters, once each; in training also the gradient of its output, its input again, and the gradients of
its input and parameters. By these counts GFLOP/s and GB/s are useful ones: padding and other traffic count for nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from astroco_fast.flops import TRAINING, forward_flops
from astroco_fast.reference.config import AstroCoConfig, AstromerConfig


class Work(NamedTuple):
    """Floating-point operations, and bytes to move."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:  # type: ignore[override]
        return Work(self.flops * times, self.bytes * times)


def model_work(config: Any, lengths: Tensor, training: bool) -> Work:
    """The work of an encoder on windows of these lengths (B,), which is that of all its ops."""
    if isinstance(config, AstromerConfig):
        return _astromer(config, lengths, training)
    block = sum((op_work(op, config, lengths, training) for op in ("attention", "convolution", "feed_forward")), NONE)
    outside = op_work("input_embed", config, lengths, training) + op_work("mix_pool", config, lengths, training)
    return block * config.layers + outside


NONE = Work(0, 0)


def op_work(op: str, config: AstroCoConfig, lengths: Tensor, training: bool) -> Work:
    """The work of one op of `astroco_fast.ops` on windows of these lengths (B,)."""
    d, points = config.width, int(lengths.sum())
    pairs = int((lengths**2).sum())
    weights, channels, given, gives, others = {
        "input_embed": (d + d * d, 0, 3 / d, 1, 4 * d),  # three numbers of input a point
        "attention": (4 * d * d, d, 1, 1, 6 * d),
        "convolution": (3 * d * d + d * config.kernel, 0, 1, 1, 9 * d),
        "feed_forward": (3 * config.expansion * d * d, 0, 1, 1, (2 * config.expansion + 3) * d),
        "mix_pool": (0, 0, config.layers + 1, 1, config.layers + 1),
        "masked_loss": (0, 0, 3 / d, 0, 0),
    }[op]
    flops = forward_flops(weights, points, channels, pairs)
    return _work(points * d, flops, given, gives, weights + others, training)


def _astromer(config: AstromerConfig, lengths: Tensor, training: bool) -> Work:
    d, points, pairs = config.width, int(lengths.sum()), int((lengths**2).sum())
    leaks = d * d if config.leak else 0
    weights = 4 * d * d + 2 * d * config.feed_forward + 2 * leaks
    block = _work(points * d, forward_flops(weights, points, d, pairs), 2, 2, weights, training)
    return block * config.layers + _work(points * d, forward_flops(2 * d, points), 1, 1, 2 * d, training)


def _work(row: float, flops: float, given: float, gives: float, parameters: float, training: bool) -> Work:
    """The work of an op.

    Args:
        row: numbers in all rows of width D together.
        flops: operations of the forward pass.
        given: rows of input for each row.
        gives: rows of output for each row.
        parameters: numbers of parameters.
        training: forward and backward pass, or else the forward pass alone.
    """
    if not training:
        return Work(flops, 4 * (row * (given + gives) + parameters))
    return Work(TRAINING * flops, 4 * (row * (3 * given + 2 * gives) + 3 * parameters))
