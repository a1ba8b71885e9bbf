"""What the kernels of all backends ask of a module.

They compute what the reference's modules compute, and read their parameters. A subclass, or a part put in another's
place (low-rank adapters do so), may compute something else; a hook would not be called.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward, InputEmbed, LayerMix, LayerNorm

_MODULES = {
    "input_embed": InputEmbed,
    "attention": Attention,
    "convolution": Convolution,
    "feed_forward": FeedForward,
    "mix_pool": LayerMix,
}
_PARTS = (nn.Linear, nn.Dropout, LayerNorm, MaskedBatchNorm1d)


class Limits(NamedTuple):
    """What a backend's kernels take: the least and the most channels and taps, both included, and the widest head."""

    widths: tuple[int, int]
    head_size: int
    taps: tuple[int, int]


def unfit(op: str, module: nn.Module, limits: Limits) -> str | None:
    """Why kernels with these limits can't do this module; None if they can."""
    if op not in _MODULES:
        return None
    if type(module) is not _MODULES[op]:
        return f"no kernels for {type(module).__name__}"
    for part in module._modules.values():
        if type(part) not in _PARTS:
            return f"no kernels for {type(module).__name__} with a {type(part).__name__} in it"
    for part in (module, *module._modules.values()):
        if part is not None and (reason := _altered(part)) is not None:
            return reason
    return None if isinstance(module, LayerMix) else _beyond(module, limits)


def _beyond(module: nn.Module, limits: Limits) -> str | None:
    """Which of the limits a module is beyond."""
    norm = module.norm_out if isinstance(module, Convolution) else module.norm
    weight: Tensor = norm.weight  # type: ignore[union-attr,assignment]
    width, (least, most) = weight.shape[0], limits.widths
    if not least <= width <= most or width % 4:
        return f"width {width}: kernels take multiples of 4 from {least} to {most}"
    if isinstance(module, Attention) and width // module.heads > limits.head_size:
        return f"head size {width // module.heads}: kernels take up to {limits.head_size}"
    if isinstance(module, Convolution) and not limits.taps[0] <= module.depthwise.shape[1] <= limits.taps[1]:
        return f"{module.depthwise.shape[1]} taps: kernels take {limits.taps[0]} to {limits.taps[1]}"
    return None


def _altered(part: nn.Module) -> str | None:
    """Why kernels can't do a part: it has hooks, which they don't call, or numbers in a form that they can't read.

    Asked at every call, since any of it may change at any time, in ways that leave no trace; hence short.
    """
    if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
        return f"no kernels for a {type(part).__name__} with hooks"
    for name, tensor in part._parameters.items():
        if tensor is None:
            return f"no kernels for a {type(part).__name__} without {name}"
        if tensor.dtype is not torch.float32:
            return f"no kernels for parameters in {short(tensor.dtype)}"
        if not tensor.is_contiguous():
            return "no kernels for parameters that are not contiguous"
    for name, buffer in part._buffers.items():
        if buffer is None:
            return f"no kernels for a {type(part).__name__} without {name}"
        if buffer.dtype is not torch.float32 and buffer.is_floating_point():
            return f"no kernels for buffers in {short(buffer.dtype)}"
        if not buffer.is_contiguous():
            return "no kernels for buffers that are not contiguous"
    return None


def short(dtype: torch.dtype) -> str:
    """A dtype's name without `torch.`"""
    return str(dtype).removeprefix("torch.")
