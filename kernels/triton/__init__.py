"""The Triton backend of `astroco_fast.ops`: fused kernels for CUDA and ROCm GPUs.

Importing it needs no triton: an op's kernels are imported when it first runs.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from astroco_fast.layout import Layout
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward, InputEmbed, LayerMix, LayerNorm

__all__ = [
    "attention",
    "convolution",
    "dropout_scale",
    "feed_forward",
    "input_embed",
    "masked_loss",
    "mix_pool",
    "unsupported",
    "versions",
]

# Tests set it: the CPU then counts as a GPU, through Triton's interpreter (TRITON_INTERPRET=1). Much too slow for use.
interpreting = False

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Below, tiles would be mostly idle lanes; above, a tile of whole rows no longer fits a block's registers.
WIDTHS = (64, 512)
# torch's fused attention takes no wider heads.
HEAD_SIZE = 256
TAPS = (2, 128)

# The kernels compute what these compute, and read their parameters. A subclass, or a part put in another's place
# (low-rank adapters do so), may compute something else.
_MODULES = {
    "input_embed": InputEmbed,
    "attention": Attention,
    "convolution": Convolution,
    "feed_forward": FeedForward,
    "mix_pool": LayerMix,
}
_PARTS = (nn.Linear, nn.Dropout, LayerNorm, MaskedBatchNorm1d)

# Asked once: it looks through the folders of sys.path, which is slow, and which torch.compile can't trace.
_installed = find_spec("triton") is not None


def unsupported(
    op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None = None
) -> str | None:
    """Why an op can't run here; None if it can.

    Args:
        module: the op's; None: in general.
    """
    if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreting):
        return "needs a CUDA or ROCm GPU"
    if not _installed:
        return "triton is not installed; pip install 'astroco_fast[triton]'"
    if dtype not in DTYPES:
        return f"no kernels for {_short(dtype)}"
    return None if module is None or op not in _MODULES else _unfit(op, module)


def _unfit(op: str, module: nn.Module) -> str | None:
    """Why there are no kernels for this module."""
    if type(module) is not _MODULES[op]:
        return f"no kernels for {type(module).__name__}"
    for part in module._modules.values():
        if type(part) not in _PARTS:
            return f"no kernels for {type(module).__name__} with a {type(part).__name__} in it"
    for part in (module, *module._modules.values()):
        if part is not None and (reason := _altered(part)) is not None:
            return reason
    if isinstance(module, LayerMix):
        return None
    norm = module.norm_out if isinstance(module, Convolution) else module.norm
    weight: Tensor = norm.weight  # type: ignore[union-attr,assignment]
    width = weight.shape[0]
    if not WIDTHS[0] <= width <= WIDTHS[1] or width % 4:
        return f"width {width}: kernels take multiples of 4 from {WIDTHS[0]} to {WIDTHS[1]}"
    if isinstance(module, Attention) and width // module.heads > HEAD_SIZE:
        return f"head size {width // module.heads}: kernels take up to {HEAD_SIZE}"
    if isinstance(module, Convolution) and not TAPS[0] <= module.depthwise.shape[1] <= TAPS[1]:
        return f"{module.depthwise.shape[1]} taps: kernels take {TAPS[0]} to {TAPS[1]}"
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
            return f"no kernels for parameters in {_short(tensor.dtype)}"
        if not tensor.is_contiguous():
            return "no kernels for parameters that are not contiguous"
    for name, buffer in part._buffers.items():
        if buffer is None:
            return f"no kernels for a {type(part).__name__} without {name}"
        if buffer.dtype is not torch.float32 and buffer.is_floating_point():
            return f"no kernels for buffers in {_short(buffer.dtype)}"
        if not buffer.is_contiguous():
            return "no kernels for buffers that are not contiguous"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def versions() -> tuple[str, ...]:
    """Of what makes the kernels, and which of them run: a verdict of the self-check holds for these."""
    import triton

    from astroco_fast.kernels.triton.sublayers.feed_forward import KEEP

    return f"triton {triton.__version__}", f"keep {int(KEEP)}"


def dropout_scale(layout: Layout, salt: int, p: float, width: int) -> Tensor:
    """What the dropout of this salt multiplies this batch's rows by, (N, D) float32: 0 or 1 / (1 - p)."""
    from astroco_fast.kernels.triton.dropout import dropout_mask

    return dropout_mask(layout.seed(), salt, p, layout.rows, width)


def input_embed(module: Any, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.input_embed import input_embed as run

    return run(module, time, mag, err, hidden, layout)


def attention(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.attention import attention as run

    return run(module, x, layout)


def convolution(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.convolution import convolution as run

    return run(module, x, layout)


def feed_forward(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.sublayers.feed_forward import feed_forward as run

    return run(module, x, layout)


def mix_pool(module: Any, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.triton.sublayers.mix_pool import mix_pool as run

    return run(module, states, layout)


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.triton.sublayers.masked_loss import masked_loss as run

    return run(prediction, target, role)
