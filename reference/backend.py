"""The reference as a backend of `astroco_fast.ops`: each op is its module, called."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from astroco_fast.reference.layout import Layout
from astroco_fast.reference.loss import masked_loss

__all__ = ["attention", "convolution", "feed_forward", "input_embed", "masked_loss", "mix_pool", "unsupported"]


def unsupported(
    op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None = None
) -> str | None:
    """Why an op can't run here, with this module or (None) in general; the reference runs everything."""
    return None


def input_embed(
    module: nn.Module, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    return module(time, mag, err, hidden, layout)


def attention(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    return module(x, layout)


def convolution(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    return module(x, layout)


def feed_forward(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    return module(x, layout)


def mix_pool(module: nn.Module, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    return module(states, layout)
