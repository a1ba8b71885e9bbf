"""The Triton backend of `astroco_fast.ops`: fused kernels for CUDA and ROCm GPUs.

Importing it needs no triton: an op's kernels are imported when it first runs.
"""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from astroco_fast.kernels.fitness import Limits, short, unfit
from astroco_fast.reference.layout import Layout

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
# Below 64, tiles would be mostly idle lanes; above 512, a tile of whole rows no longer fits a block's registers. Wider
# heads torch's fused attention does not take.
LIMITS = Limits(widths=(64, 512), head_size=256, taps=(2, 128))

# Asked once: it looks through the folders of sys.path, which is slow, and which torch.compile can't trace.
_installed = find_spec("triton") is not None

# The ops' modules bear the functions' names: imported first, they do not replace them later.
if _installed:
    for _op in ("attention", "convolution", "feed_forward", "input_embed", "masked_loss", "mix_pool"):
        import_module(f"astroco_fast.kernels.triton.{_op}")


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
        return f"no kernels for {short(dtype)}"
    return None if module is None else unfit(op, module, device, LIMITS)


def versions() -> tuple[str, ...]:
    """Of what makes the kernels, and which of them run: a verdict of the self-check holds for these."""
    import triton

    from astroco_fast.kernels.triton.feed_forward import KEEP

    return f"triton {triton.__version__}", f"keep {int(KEEP)}"


def dropout_scale(layout: Layout, salt: int, p: float, width: int) -> Tensor:
    """What the dropout of this salt multiplies this batch's rows by, (N, D) float32: 0 or 1 / (1 - p)."""
    from astroco_fast.kernels.triton.dropout import dropout_mask

    return dropout_mask(layout.seed(), salt, p, layout.rows, width)


def input_embed(module: Any, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.input_embed import input_embed as run

    return run(module, time, mag, err, hidden, layout)


def attention(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.attention import attention as run

    return run(module, x, layout)


def convolution(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.convolution import convolution as run

    return run(module, x, layout)


def feed_forward(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.triton.feed_forward import feed_forward as run

    return run(module, x, layout)


def mix_pool(module: Any, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.triton.mix_pool import mix_pool as run

    return run(module, states, layout)


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.triton.masked_loss import masked_loss as run

    return run(prediction, target, role)
