"""Whether kernels can run a module: the conditions that all backends share.

Kernels compute the same as the reference's modules, from these modules' parameters. A subclass, a part that was
replaced (as low-rank adapters do) or another `forward` may compute something else, and kernels call no hooks. They read
as many numbers as width, heads, expansion and taps imply, so they would read past the end of a smaller tensor (pruned
heads).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from astroco_fast.kernels.backend import constant_while_tracing
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.dropout import Dropout
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward, InputEmbed, LayerMix, LayerNorm

_MODULES: dict[str, type[nn.Module]] = {
    "input_embed": InputEmbed,
    "attention": Attention,
    "convolution": Convolution,
    "feed_forward": FeedForward,
    "mix_pool": LayerMix,
}
_PARTS: tuple[type[nn.Module], ...] = (nn.Linear, Dropout, LayerNorm, MaskedBatchNorm1d)
_FORWARDS = {kind: kind.forward for kind in (*_MODULES.values(), *_PARTS)}
_COUNT = "num_batches_tracked"  # BatchNorm's, a scalar
# Tensors of other types may be quantised, or one device's shard of a tensor.
_TENSORS = (Tensor, nn.Parameter, FakeTensor)


class Limits(NamedTuple):
    """Sizes that a backend's kernels take.

    Attributes:
        widths: the smallest and the largest D, both included.
        head_size: the largest.
        taps: the smallest and the largest K, both included.
    """

    widths: tuple[int, int]
    head_size: int
    taps: tuple[int, int]


def unfit(op: str, module: nn.Module, device: torch.device, limits: Limits) -> str | None:
    """The reason why kernels with these limits cannot run this module on this type of device; None: they can.

    Every call of an op checks this, because all of it may change unnoticed between two calls. So it has to be quick.
    """
    if op not in _MODULES:
        return None
    if type(module) is not _MODULES[op]:
        return f"no kernels for {type(module).__name__}"
    if _has_any_global_hook():  # PyTorch's FlopCounterMode has some, and knows no kernel's operations either
        return "no kernels while hooks are registered for all modules"
    parts = module._modules
    for part in parts.values():
        if type(part) not in _PARTS:
            return f"no kernels for {type(module).__name__} with a {type(part).__name__} in it"
    if isinstance(module, LayerMix):
        like, shapes = module._parameters["logits"], {}
    else:
        norm = parts["norm_out" if isinstance(module, Convolution) else "norm"]
        like = norm._parameters.get("weight")  # type: ignore[union-attr]
        shapes = {} if like is None else _shapes(module, like.shape[0])
    place = device if like is None else like.device
    if place.type != device.type:
        return f"no kernels on {device.type} for parameters on {place}"
    reason = _altered(module, place, None)
    for name, part in parts.items():
        reason = reason or _altered(part, place, shapes.get(name))  # type: ignore[arg-type]
    if reason is not None or isinstance(module, LayerMix):
        return reason
    if isinstance(module, Convolution) and module.batch_norm.training and module.batch_norm.momentum is None:
        return "no kernels for BatchNorm's average over all batches"
    return _beyond(module, like.shape[0], limits)  # type: ignore[union-attr]


def _beyond(module: nn.Module, width: int, limits: Limits) -> str | None:
    """The limit that a module exceeds, in words for the user; None: it exceeds none of them."""
    least, most = limits.widths
    if not least <= width <= most or width % 4:
        return f"width {width}: kernels take multiples of 4 from {least} to {most}"
    if isinstance(module, Attention):
        if width % module.heads:
            return f"width {width}: not a multiple of {module.heads} heads"
        if width // module.heads > limits.head_size:
            return f"head size {width // module.heads}: kernels take up to {limits.head_size}"
    if isinstance(module, Convolution):
        channels, taps = module.depthwise.shape
        if channels != width:
            return f"{channels} channels to convolve: kernels take as many as the width, {width}"
        if not limits.taps[0] <= taps <= limits.taps[1]:
            return f"{taps} taps: kernels take {limits.taps[0]} to {limits.taps[1]}"
    return None


def _shapes(module: nn.Module, width: int) -> dict[str, tuple[int, ...]]:
    """The shape of each part's weight at this width; a part's other tensors are as long as its weight's first axis."""
    vector, square = (width,), (width, width)
    if isinstance(module, FeedForward):
        weight = module._modules["w_val"]._parameters.get("weight")  # type: ignore[union-attr]
        hidden = width * max(1, 0 if weight is None else weight.shape[0] // width)
        return {"w_val": (hidden, width), "w_gate": (hidden, width), "w_out": (width, hidden), "norm": vector}
    if isinstance(module, Attention):
        return {"qkv": (3 * width, width), "out": square, "norm": vector}
    if isinstance(module, Convolution):
        ends = {"norm_in": vector, "batch_norm": vector, "pointwise_out": square, "norm_out": vector}
        return {"pointwise_in": (2 * width, width), **ends}
    return {"photometry": (width // 2, 2), "fuse": square, "norm": vector}


def _altered(part: nn.Module, place: torch.device, shape: tuple[int, ...] | None) -> str | None:
    """The reason why kernels cannot run a part (it has hooks, or tensors that they cannot read); None: they can.

    Args:
        part: a submodule, or the module itself for the parameters that it owns.
        place: the device on which its tensors should be.
        shape: the shape that its weight should have; None: its shapes are not checked.
    """
    if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
        return f"no kernels for a {type(part).__name__} with hooks"
    if replaced(part):
        return f"no kernels for a {type(part).__name__} with another forward"
    if shape is not None and "weight" not in part._parameters:  # a wrapper may keep it under another name
        return f"no kernels for a {type(part).__name__} without weight"
    for kind, tensors in (("parameters", part._parameters), ("buffers", part._buffers)):
        for name, tensor in tensors.items():
            if tensor is None:
                return f"no kernels for a {type(part).__name__} without {name}"
            if type(tensor) not in _TENSORS:
                return f"no kernels for {kind} of type {type(tensor).__name__}"
            if tensor.dtype is not torch.float32 and (kind == "parameters" or tensor.is_floating_point()):
                return f"no kernels for {kind} in {short(tensor.dtype)}"
            if not tensor.is_contiguous():
                return f"no kernels for {kind} that are not contiguous"
            if tensor.device != place:
                return f"no kernels for {kind} on both {place} and {tensor.device}"
            if shape is not None and tensor.shape != (shape if name == "weight" else shape[:1]) and name != _COUNT:
                return f"no kernels for a {type(part).__name__} with {name} of shape {tuple(tensor.shape)}"
    return None


def replaced(part: nn.Module) -> bool:
    """Whether a call of the module runs another function than its class had at first."""
    kind = type(part)
    return "forward" in part.__dict__ or part._compiled_call_impl is not None or kind.forward is not _FORWARDS[kind]


@constant_while_tracing
def transformed() -> bool:
    """Whether a transformation is in force that wants PyTorch's own ops.

    These are `torch.func`'s, forward-mode derivatives, and a trace by `torch.jit`, which would keep prepared weights as
    constants.
    """
    functorch, forward = torch._C._are_functorch_transforms_active(), forward_ad._current_level >= 0
    return functorch or forward or torch._C._is_tracing()


def short(dtype: torch.dtype) -> str:
    """A dtype's name without `torch.`"""
    return str(dtype).removeprefix("torch.")
