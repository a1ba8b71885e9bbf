"""Floating-point operations of a model, and the rate at which a device does them.

Counted, as is usual, are matrix products, convolutions and attention, over real points alone. A multiplication and an
addition are two operations.
"""

import time
from functools import cache

import torch
from torch import nn

TRAINING = 3  # forward and backward passes together, in forward passes: each product has two gradients


def forward_flops(weights: float, points: float, channels: float = 0, pairs: float = 0) -> float:
    """Operations of a forward pass.

    Args:
        weights: elements of the matrices and convolution taps; each multiplies every real point once.
        points: real points.
        channels: attention's channels, summed over layers: queries times keys and weights times values take 4
            operations a channel and pair of points.
        pairs: pairs of points of the same window: the sum over windows of their real points squared.
    """
    return 2.0 * weights * points + 4.0 * channels * pairs


def training_flops(model: nn.Module, points: float, pairs: float) -> float:
    """Operations of forward and backward passes, as an estimate: every parameter counts as a weight.

    Args:
        model: the encoder; attention is counted if its configuration has `width` and `layers`.
        points, pairs: as for `forward_flops`.
    """
    config = getattr(model, "config", None)
    parameters = sum(p.numel() for p in model.parameters())
    channels = getattr(config, "width", 0) * getattr(config, "layers", 0)
    return TRAINING * forward_flops(parameters, points, channels, pairs)


@cache
@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that `device` reaches in a large square matrix product: the best of a few.

    This is the machine's own ceiling, measured in a fraction of a second and once a process, not a data sheet's.
    """
    size, repeats = (8192, 10) if device.type == "cuda" else (1024, 5)
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
