"""The Triton backend of `astroco_fast.ops`: fused kernels for CUDA and ROCm GPUs.

Importing it needs no triton: an op's kernels are imported when it first runs.
"""

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from astroco_fast.layout import Layout

__all__ = ["attention", "convolution", "feed_forward", "input_embed", "masked_loss", "mix_pool", "unsupported"]

# Tests set it: the CPU then counts as a GPU, through Triton's interpreter (TRITON_INTERPRET=1). Much too slow for use.
interpreting = False

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unsupported(op: str, device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
    """Why an op can't run here; None if it can."""
    if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreting):
        return "needs a CUDA or ROCm GPU"
    if find_spec("triton") is None:
        return "triton is not installed; pip install 'astroco_fast[triton]'"
    if dtype not in DTYPES:
        return f"no kernels for {str(dtype).removeprefix('torch.')}"
    return None


def input_embed(
    module: nn.Module, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.input_embed import input_embed as run

    return run(module, time, mag, err, hidden, layout)


def attention(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.attention import attention as run

    return run(module, x, layout)


def convolution(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.convolution import convolution as run

    return run(module, x, layout)


def feed_forward(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.feed_forward import feed_forward as run

    return run(module, x, layout)


def mix_pool(module: nn.Module, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.triton.sublayers.mix_pool import mix_pool as run

    return run(module, states, layout)


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.triton.sublayers.masked_loss import masked_loss as run

    return run(prediction, target, role)
