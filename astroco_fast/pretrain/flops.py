"""Model FLOPs utilisation, as an estimate.

The model's arithmetic is counted as 2 operations per parameter and real point, plus attention's 4 T D per point and
layer, times 3 for a forward and backward pass. It is divided by what this device reaches on a large matrix product in
the same precision, measured for a fraction of a second at the start: a machine's own ceiling, not a data sheet's.
"""

import time

import torch
from torch import nn


def training_flops(model: nn.Module, points: float, pairs: float) -> float:
    """Operations of forward and backward passes.

    Args:
        model: the encoder; attention is counted if its configuration has `width` and `layers`.
        points: real points.
        pairs: the sum over windows of their real points squared.
    """
    config = getattr(model, "config", None)
    parameters = sum(p.numel() for p in model.parameters())
    attention = 4 * getattr(config, "width", 0) * getattr(config, "layers", 0)
    return 3.0 * (2.0 * parameters * points + attention * pairs)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that `device` reaches on a square matrix product, best of a few."""
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
