"""The encoder's ops, and which backend runs each.

An op is a piece of the paper, cut the same in every backend. The caller's choice of backend comes first
(`backend(...)` or `set_backend`, or at start the environment variable `ASTROCO_BACKEND`), else the best that device and
dtype allow. What the chosen backend can't do goes to the reference, op by op; `astroco doctor` shows what runs where
and why.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from astroco_fast.errors import UserError
from astroco_fast.kernels import triton as _triton
from astroco_fast.layout import Layout
from astroco_fast.reference import backend as _reference

OPS = ("input_embed", "attention", "convolution", "feed_forward", "mix_pool", "masked_loss")

# By name, best first. A backend is a module with a function per op and `unsupported`, as in reference/backend.py.
BACKENDS: dict[str, ModuleType] = {"triton": _triton, "reference": _reference}

# The caller's choice. A plain global, so that code compiled under one choice is compiled anew under another.
_choice: str | None = os.environ.get("ASTROCO_BACKEND") or None


class Selection(NamedTuple):
    """Where an op runs, and for each better backend why not there."""

    backend: str
    reasons: dict[str, str]


def set_backend(name: str | None) -> None:
    """Choose the backend for this process: a name from `BACKENDS`, or None for the best available.

    Raises:
        UserError: no such backend.
    """
    global _choice
    _choice = None if name is None else _known(name, "set_backend")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend within a `with` block, for the whole process.

    Raises:
        UserError: no such backend.
    """
    global _choice
    before, _choice = _choice, _known(name, "backend")
    try:
        yield
    finally:
        _choice = before


def select(op: str, device: torch.device, dtype: torch.dtype, training: bool) -> Selection:
    """The backend that runs `op` on tensors of this device and dtype."""
    candidates = BACKENDS if _choice is None else [_known(_choice, "ASTROCO_BACKEND")]
    reasons: dict[str, str] = {}
    for name in candidates:
        reason = BACKENDS[name].unsupported(op, device, dtype, training)
        if reason is None:
            return Selection(name, reasons)
        reasons[name] = reason
    return Selection("reference", reasons)


def input_embed(
    module: nn.Module, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    """Centred points (N,) to x(0), rows (N, D); see `reference.sublayers.InputEmbed`."""
    return _backend("input_embed", time, module.training).input_embed(module, time, mag, err, hidden, layout)


def attention(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Sublayer a, residual and LayerNorm included: rows (N, D) to rows (N, D)."""
    return _backend("attention", x, module.training).attention(module, x, layout)


def convolution(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Sublayer b, both LayerNorms and the residual included: rows (N, D) to rows (N, D)."""
    return _backend("convolution", x, module.training).convolution(module, x, layout)


def feed_forward(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Sublayer c, residual and LayerNorm included: rows (N, D) to rows (N, D)."""
    return _backend("feed_forward", x, module.training).feed_forward(module, x, layout)


def mix_pool(module: nn.Module, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """The layer mix, rows (N, D), and its mean over real points, (B, D).

    `states` yields x(0) .. x(L) as they are computed, so that no layer's output has to be kept for the mix.
    """
    parameter = next(module.parameters(), None)
    like = parameter if parameter is not None else layout.lengths.new_empty(0, dtype=torch.float32)
    return _backend("mix_pool", like, module.training).mix_pool(module, states, layout)


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error at probed points, sums and counts (B, 3) by role; see `reference.loss.masked_loss`."""
    return _backend("masked_loss", prediction, prediction.requires_grad).masked_loss(prediction, target, role)


def _backend(op: str, like: Tensor, training: bool) -> ModuleType:
    device = like.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else like.dtype
    return BACKENDS[select(op, device, dtype, training).backend]


def _known(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise UserError(f"{where}: no backend {name!r}; there are: {', '.join(BACKENDS)}")
    return name
