"""The CPU backend of `astroco_fast.ops`: C++ kernels, compiled by the system's compiler when they are first needed."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from astroco_fast.kernels.cpu import native
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

DTYPES = (torch.float32, torch.bfloat16)
LIMITS = Limits(widths=(16, 1024), head_size=256, taps=(1, 128))

# The ops' modules bear the functions' names: imported first, they do not replace them later.
for _op in ("attention", "convolution", "feed_forward", "input_embed", "masked_loss", "mix_pool"):
    import_module(f"astroco_fast.kernels.cpu.{_op}")


def unsupported(
    op: str, device: torch.device, dtype: torch.dtype, training: bool, module: nn.Module | None = None
) -> str | None:
    """Why an op can't run here; None if it can. The first answer about the CPU compiles the kernels.

    Args:
        module: the op's; None: in general.
    """
    if device.type != "cpu":
        return "runs on the CPU only"
    if dtype not in DTYPES:
        return f"no kernels for {short(dtype)}"
    if module is not None and (reason := unfit(op, module, device, LIMITS)) is not None:
        return reason
    return _while_tracing(dtype) if torch.compiler.is_compiling() else lacking(dtype)


def lacking(dtype: torch.dtype) -> str | None:
    """What this machine lacks for kernels in `dtype`."""
    if (reason := native.missing()) is not None:
        return reason
    # Without dot products of bfloat16 numbers plain PyTorch is as fast.
    if dtype is torch.bfloat16 and native.library().plan.isa.name != "avx512_bf16":
        return "bfloat16 needs a CPU with AVX512-BF16"
    return None


# It runs for real while torch.compile traces its caller, and its result becomes a constant of the graph.
_while_tracing = torch.compiler.assume_constant_result(lacking)


def versions() -> tuple[str, ...]:
    """Of what makes the kernels: a verdict of the self-check holds for these."""
    plan = native.library().plan
    return plan.version, plan.isa.name, f"library {plan.key}"


def dropout_scale(layout: Layout, salt: int, p: float, width: int) -> Tensor:
    """What the dropout of this salt multiplies this batch's rows by, (N, D) float32: 0 or 1 / (1 - p)."""
    from astroco_fast.kernels.cpu.dropout import cpu_dropout_mask

    return cpu_dropout_mask(layout.seed(), salt, p, layout.rows, width)


def input_embed(module: Any, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> Tensor:
    from astroco_fast.kernels.cpu.input_embed import input_embed as run

    return run(module, time, mag, err, hidden, layout)


def attention(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.cpu.attention import attention as run

    return run(module, x, layout)


def convolution(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.cpu.convolution import convolution as run

    return run(module, x, layout)


def feed_forward(module: Any, x: Tensor, layout: Layout) -> Tensor:
    from astroco_fast.kernels.cpu.feed_forward import feed_forward as run

    return run(module, x, layout)


def mix_pool(module: Any, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.cpu.mix_pool import mix_pool as run

    return run(module, states, layout)


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    from astroco_fast.kernels.cpu.masked_loss import masked_loss as run

    return run(prediction, target, role)
