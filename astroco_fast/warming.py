"""`warmup`: compile and check kernels before they are needed."""

import contextlib
import copy
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from astroco_fast import ops
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d


def warmup(
    model: nn.Module,
    batch_size: int = 256,
    length: int | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
    training: bool | None = None,
) -> float:
    """Run a copy of `model` on random batches, so that the first real one need not wait for compilers and self-checks.

    The copy is on the model's device. The model's parameters, gradients and statistics stay as they are, and so does
    the state of torch's random numbers. The call waits for no other process. Call it before anything is timed, and
    before a CUDA graph is captured, because self-checks cannot run during the capture. It is useless, but harmless,
    where every op runs on the reference. To warm up a compiled model, call the compiled model itself instead.

    Examples:
        >>> model = af.AstroCo.from_preset("L").cuda().eval()
        >>> seconds = af.warmup(model)

    Args:
        model: an encoder, called as `AstroCo` is, or DDP around one.
        batch_size: windows in a batch; one batch is full, one is ragged.
        length: T, the points that a window has room for; None: the configuration's.
        dtype: the dtype of autocast in the later run; None: no autocast.
        training: whether to run training steps, and not only evaluation; None: as the model's mode.

    Returns:
        The time that the batches took, in seconds.
    """
    start = time.perf_counter()
    model = model.module if isinstance(model, DistributedDataParallel) else model
    training = model.training if training is None else training
    if length is None:
        config: Any = model.config
        length = config.window
    device = next(model.parameters()).device
    ragged = torch.arange(batch_size) * 37 % (length + 1)
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        twin = _copy(model)
        for lengths in (torch.full((batch_size,), length), ragged):
            points = torch.randn(3, batch_size, length, device=device)
            hidden = torch.rand(batch_size, length, device=device) < 0.3
            if training:
                loss = _forward(twin.train(), points, lengths, hidden, dtype)
                if loss.requires_grad:  # it does not if all parameters are frozen
                    loss.backward()
            with torch.no_grad():
                for given in (hidden, None) if training else (None,):
                    _forward(twin.eval(), points, lengths, given, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forward(
    model: nn.Module, points: Tensor, lengths: Tensor, hidden: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """A loss of one forward pass that depends on all outputs."""
    with torch.autocast(points.device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext():
        out = model(*points, lengths=lengths, hidden=hidden)
        if hidden is None:
            return out.embedding.sum()
        squared, _ = ops.masked_loss(out.reconstruction, points[1], hidden.to(torch.uint8))
        return squared.sum() + out.embedding.sum()


def _copy(model: nn.Module) -> nn.Module:
    """A copy without gradients, whose BatchNorm waits for no other process."""
    groups = [module.group for module in model.modules() if isinstance(module, MaskedBatchNorm1d)]
    return copy.deepcopy(model, {id(group): None for group in groups})
