"""The encoder's ops, and the choice of the backend that runs each.

An op is a piece of the paper, with the same inputs and outputs on every backend. `set_backend`, `backend(...)` or, at
start, the environment variable `ASTROCO_BACKEND` choose a backend; without a choice each op runs on the best backend
that the device and the dtype allow. An op that the chosen backend cannot run, or that fails its self-check, runs on the
reference. `astroco doctor` shows which backend runs each op, and why.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from astroco_fast import selfcheck
from astroco_fast.errors import UserError
from astroco_fast.kernels import int8
from astroco_fast.kernels.backend import OPS, Backend, Reference, constant_while_tracing
from astroco_fast.kernels.cpu import Cpu
from astroco_fast.kernels.fitness import replaced, transformed
from astroco_fast.kernels.tensors import wants_gradient
from astroco_fast.kernels.triton import Triton
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import (
    Attention,
    Convolution,
    FeedForward,
    InputEmbed,
    LayerMix,
    LayerNorm,
    PlainFeedForward,
)

__all__ = [
    "BACKENDS",
    "OPS",
    "Selection",
    "attention",
    "backend",
    "candidates",
    "choice",
    "convolution",
    "feed_forward",
    "input_embed",
    "masked_loss",
    "mix_pool",
    "select",
    "set_backend",
    "settings",
]

# The backends by name, best first.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Triton(), Cpu(), Reference())}

# The choice of `set_backend`; a plain global, so that torch.compile recompiles when it changes.
_choice: str | None = os.environ.get("ASTROCO_BACKEND") or None


class _Here(threading.local):
    """What holds in one thread: the choice of its innermost `with backend(...)`.

    An attribute of the instance, which torch.compile watches; a context variable it could not trace.
    """

    def __init__(self) -> None:
        self.choice: str | None = None


_here = _Here()

# The reference's sublayers that end in a LayerNorm.
SUBLAYERS = (InputEmbed, Attention, Convolution, FeedForward, PlainFeedForward)

# Whether every rank of a group can run a convolution, by process group, convolution, and backend with dtype.
_agreements: WeakKeyDictionary[Any, WeakKeyDictionary[nn.Module, dict[tuple[str, torch.dtype], bool]]]
_agreements = WeakKeyDictionary()


class Selection(NamedTuple):
    """The backend that runs an op, and for each better backend the reason why that one does not."""

    backend: str
    reasons: dict[str, str]


def set_backend(name: str | None) -> None:
    """Choose the backend for all threads of this process.

    Args:
        name: a key of `BACKENDS`; None: the best available, op by op.

    Raises:
        UserError: there is no backend of this name.
    """
    global _choice
    _choice = None if name is None else _known(name, "set_backend")


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Choose the backend for this thread, until the `with` block ends.

    Args:
        name: a key of `BACKENDS`; None: as `set_backend` says.

    Raises:
        UserError: there is no backend of this name.
    """
    before = _here.choice
    _here.choice = None if name is None else _known(name, "backend")
    try:
        yield
    finally:
        _here.choice = before


def choice() -> str | None:
    """The caller's choice in this thread; None: the best available backend, op by op."""
    return _here.choice or _choice


def settings() -> tuple[Any, ...]:
    """What decides, beside an op's module and tensors, which backend runs it, and whether in int8."""
    return choice(), int8.here.on, selfcheck.enabled, *BACKENDS.values()


def candidates() -> list[str]:
    """The backends to try for an op, best first: the caller's choice alone, or without a choice all of them.

    Raises:
        UserError: `ASTROCO_BACKEND` names no backend.
    """
    chosen = choice()
    return list(BACKENDS) if chosen is None else [_known(chosen, "ASTROCO_BACKEND")]


def select(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    training: bool,
    module: nn.Module | None = None,
    configuration: selfcheck.Configuration | None = None,
) -> Selection:
    """Find the backend that runs `op` on tensors of this device and dtype.

    Args:
        op: a name from `OPS`.
        device: the device of the op's tensors.
        dtype: the dtype of the computation: the tensors' own, or autocast's.
        training: whether the op's module is in training mode.
        module: the op's module; None: any that `astroco_fast` builds.
        configuration: the module's, see `selfcheck.configuration`. A backend whose self-check fails for it is skipped;
            without a verdict the check runs now. None: self-checks are ignored.
    """
    reasons: dict[str, str] = {}
    for name in candidates():
        reason = BACKENDS[name].unsupported(op, device, dtype, training, module)
        if reason is None and configuration is not None and name != "reference":
            reason = _selfcheck_failure(name, op, device, dtype, configuration)
        if op == "convolution" and module is not None and name != "reference":
            reason = _agreed(name, device, dtype, module, reason)
        if reason is None:
            return Selection(name, reasons)
        reasons[name] = reason
    return Selection("reference", reasons)


@constant_while_tracing
def _selfcheck_failure(
    name: str, op: str, device: torch.device, dtype: torch.dtype, configuration: selfcheck.Configuration
) -> str | None:
    return selfcheck.failure(BACKENDS[name], op, device, dtype, configuration)


def input_embed(
    module: nn.Module, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout
) -> Tensor:
    """Embed points (N,), zero-mean in their window, to x(0), rows (N, D); see `reference.sublayers.InputEmbed`."""
    like = _weight(module, "norm")
    if like is None:
        return module(time, mag, err, hidden, layout)
    for name, values in (("time", time), ("mag", mag), ("err", err)):
        _check("input_embed", name, values, "(N,)", (layout.rows,), like.dtype, like.device)
    if hidden is not None:
        _check("input_embed", "hidden", hidden, "(N,)", (layout.rows,), torch.bool, like.device)
    _check_layout("input_embed", layout, like.device)
    return _function("input_embed", time, module, like.shape[0])(module, time, mag, err, hidden, layout)


def attention(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Sublayer a, residual and LayerNorm included: rows (N, D) to rows (N, D)."""
    like = _weight(module, "norm")
    if like is None:
        return module(x, layout)
    _check_rows("attention", x, layout, like)
    return _function("attention", x, module, like.shape[0])(module, x, layout)


def convolution(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Sublayer b, both LayerNorms and the residual included: rows (N, D) to rows (N, D)."""
    like = _weight(module, "norm_out")
    if like is None:
        return module(x, layout)
    _check_rows("convolution", x, layout, like)
    taps, width = cast(Tensor, module.depthwise).shape, like.shape[0]
    if len(taps) != 2 or taps[0] != width or taps[1] < 1:
        raise ValueError(f"convolution: depthwise must be (D, K) = ({width}, K), K at least 1, got {tuple(taps)}")
    return _function("convolution", x, module, width)(module, x, layout)


def feed_forward(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Sublayer c, residual and LayerNorm included: rows (N, D) to rows (N, D)."""
    like = _weight(module, "norm")
    if like is None:
        return module(x, layout)
    _check_rows("feed_forward", x, layout, like)
    return _function("feed_forward", x, module, like.shape[0])(module, x, layout)


def mix_pool(module: nn.Module, states: Iterable[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """The layer mix, rows (N, D), and its mean over each window's real points, (B, D).

    `states` yields x(0) .. x(L) as they are computed, so that no layer's output need stay in memory for the mix.
    """
    states = iter(states)
    first = next(states, None)
    if first is None or first.dim() != 2:
        raise ValueError(f"mix_pool: states must be rows (N, D), got {'none' if first is None else _described(first)}")
    _check_layout("mix_pool", layout, first.device)
    function = _function("mix_pool", first, module, first.shape[1])
    checked = _checked_states(module, itertools.chain(iter([first]), states), layout.rows, first)
    del first  # so that only the iterators hold it, until the backend takes it
    return function(module, checked, layout)


def masked_loss(prediction: Tensor, target: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared error and counts, (B, 3), at probed points, by role; see `reference.loss.masked_loss`."""
    if prediction.dim() != 2 or not prediction.is_floating_point():
        raise ValueError(f"masked_loss: prediction must be (B, T), floating point, got {_described(prediction)}")
    _check("masked_loss", "target", target, "(B, T)", prediction.shape, target.dtype, prediction.device)
    _check("masked_loss", "role", role, "(B, T)", prediction.shape, role.dtype, prediction.device)
    if not target.is_floating_point():
        raise ValueError(f"masked_loss: target must be floating point, got {_described(target)}")
    if role.is_floating_point() or role.is_complex():
        raise ValueError(f"masked_loss: role must hold whole numbers, got {_described(role)}")
    return _function("masked_loss", prediction, None, 0)(prediction, target, role)


def _function(op: str, like: Tensor, module: nn.Module | None, width: int) -> Callable[..., Any]:
    """The op's function on the backend that runs it.

    Args:
        op: a name from `OPS`.
        like: one of the op's tensors, of its device and dtype.
        module: the op's module; None for `masked_loss`, which has none.
        width: D.
    """
    if transformed():
        return BACKENDS["reference"].function(op)
    device, dtype = like.device, like.dtype
    # Autocast leaves float64 as it is, and `is_autocast_enabled` raises for tensors without data.
    if dtype != torch.float64 and device.type != "meta" and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if int8.here.on and op in int8.OPS:
        dtype = torch.int8
        if wants_gradient(cast(nn.Module, module), like):
            raise UserError("int8 is for inference: encode under torch.no_grad() or torch.inference_mode()")
    training = like.requires_grad if module is None else module.training
    if dtype is torch.int8:  # a dropout that trains by itself would keep what int8 has no room for
        training = any(part.training for part in cast(nn.Module, module).modules())
    configuration = selfcheck.configuration(op, module, width) if selfcheck.enabled else None
    selection = select(op, device, dtype, training, module, configuration)
    if dtype is torch.int8 and (reason := _no_int8(op, selection)) is not None:
        raise UserError(reason)
    return BACKENDS[selection.backend].function(op)


def no_int8(device: torch.device) -> str | None:
    """The reason why no op can run in int8 on this device, in a sentence for the user; None: they can."""
    return _no_int8(int8.OPS[0], select(int8.OPS[0], device, torch.int8, training=False))


def _no_int8(op: str, selection: Selection) -> str | None:
    if selection.backend != "reference":
        return None
    reason = selection.reasons.get("cpu", "only the backend cpu computes in it")
    return f"{op} cannot run in int8: {reason}; choose bf16 or fp32"


def _agreed(name: str, device: torch.device, dtype: torch.dtype, module: nn.Module, reason: str | None) -> str | None:
    """`reason`; if it is None, the reason why another rank of BatchNorm's group cannot run the convolution, if any.

    Each backend synchronises BatchNorm by collectives of its own, so ranks on different backends would wait for one
    another forever. Hence the ranks of a group agree when a convolution first trains; a later change of the module must
    happen on every rank. The ranks cannot agree while a graph is traced or captured.
    """
    norm = module.batch_norm if isinstance(module, Convolution) else None
    if not isinstance(norm, MaskedBatchNorm1d) or norm.group is None or not norm.training:
        return reason
    if torch.compiler.is_compiling() or not selfcheck.may_run(device):
        return reason
    known = _agreements.setdefault(norm.group, WeakKeyDictionary()).setdefault(module, {})
    if (name, dtype) not in known:
        able = torch.tensor(int(reason is None), device=device)
        dist.all_reduce(able, dist.ReduceOp.MIN, group=norm.group)
        known[name, dtype] = bool(able.item())
    return reason if reason is not None or known[name, dtype] else "another rank of BatchNorm's group can't run it"


def _weight(module: nn.Module, norm: str) -> Tensor | None:
    """The weight of a sublayer's LayerNorm, which tells the D, dtype and device of the sublayer's rows.

    None: the module is another than the reference's, or its parameters come and go with its calls (offloading). It is
    then called as it is, with whatever it takes.
    """
    part = module._modules.get(norm) if type(module) in SUBLAYERS else None
    return part._parameters.get("weight") if type(part) is LayerNorm and not replaced(part) else None


def _check_rows(op: str, x: Tensor, layout: Layout, like: Tensor) -> None:
    """Raise unless `x` is rows (N, D) with the D, dtype and device of the LayerNorm's weight."""
    _check(op, "x", x, "(N, D)", (layout.rows, like.shape[0]), like.dtype, like.device)
    _check_layout(op, layout, like.device)


def _check_layout(op: str, layout: Layout, device: torch.device) -> None:
    if layout.lengths.device != device:
        raise ValueError(f"{op}: layout must be on {device}, got one on {layout.lengths.device}")


def _check(
    op: str, name: str, x: Tensor, axes: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if x.shape != shape or x.dtype != dtype or x.device != device:
        wanted = f"{axes} = {tuple(shape)}, {str(dtype).removeprefix('torch.')}, on {device}"
        raise ValueError(f"{op}: {name} must be {wanted}, got {_described(x)}")


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}, on {x.device}"


def _checked_states(module: nn.Module, states: Iterator[Tensor], rows: int, like: Tensor) -> Iterator[Tensor]:
    """Yield the states; raise if one is not (rows, D), D as in `like`, or if there are not as many as weights."""
    shape, dtype, device = (rows, like.shape[1]), like.dtype, like.device
    del like  # a state that is still referenced here could not be freed
    weights = module.logits.shape[0] if isinstance(module, LayerMix) else None
    number = 0
    for x in states:
        _check("mix_pool", f"states[{number}]", x, "(N, D)", shape, dtype, device)
        number += 1
        if weights is None or number <= weights:
            yield x
    if weights is not None and number != weights:
        raise ValueError(f"mix_pool: states must be {weights}, one for each weight of the mix, got {number}")


def _known(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise UserError(f"{where}: no backend {name!r}; there are: {', '.join(BACKENDS)}")
    return name
