"""The self-check: whether an op of a fused backend computes right results on this machine.

Most types of GPU have never run the kernels. So the first use of an op on a type of GPU or CPU, in a dtype and a
configuration (width, heads, taps ...), compares it with the reference in float64, on random ragged windows, forward and
backward, by the rule in `comparison`. An op that is off, raises or does not compile runs on the reference from then on,
with one warning. Verdicts are cached on disk, see `verdicts`.

The check runs in its own thread, because grad mode, inference mode, autocast and torch.compile's tracing belong to a
thread: the caller's modes do not affect the check, and the check does not change them. So it can run even while
torch.compile traces; its verdict is then a constant of the graph. It cannot run while a CUDA graph is captured, and an
op without a verdict then counts as right: a capture needs a warm-up before it anyway, and `warmup` runs the checks.
"""

import copy
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from subprocess import SubprocessError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from astroco_fast.comparison import Comparison, GivenDropout, Results, results, zero_filler
from astroco_fast.kernels.backend import Backend, Reference
from astroco_fast.reference.dropout import Dropout
from astroco_fast.reference.int8 import int8_of
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.sublayers import (
    Attention,
    Convolution,
    FeedForward,
    InputEmbed,
    LastLayer,
    LayerMix,
    PlainFeedForward,
)
from astroco_fast.verdicts import Configuration, Key, device_name, store, stored

# ASTROCO_SELFCHECK=0 trusts every kernel.
enabled = os.environ.get("ASTROCO_SELFCHECK", "1") != "0"


class Mode(NamedTuple):
    """A mode in which an op is checked.

    Attributes:
        name: the mode in words, for messages.
        training: whether the module is in training mode.
        gradients: whether gradients are compared, too.
        packed: whether filler rows follow the packed rows (True) or are in every window (False).
    """

    name: str
    training: bool
    gradients: bool
    packed: bool


MODES = (
    Mode("inference", training=False, gradients=False, packed=False),
    Mode("training", training=True, gradients=True, packed=True),
    Mode("evaluation with gradients", training=False, gradients=True, packed=True),
)
# Real points of the windows: one window is as long as the presets', one is empty, and tiles end within the others.
LENGTHS = (200, 0, 67, 131, 1)
# A CPU has shorter windows, because the reference would take seconds. The CPU kernels' tiles have 96 rows.
CPU_LENGTHS = (101, 0, 33, 1)
FILLER = 9
DROPOUT, SALT = 0.1, 3
# The most draws of the inputs. Another draw follows while the draws so far together are off: see `Comparison`.
DRAWS = 3

_MODULES: dict[str, Callable[..., nn.Module]] = {
    "input_embed": InputEmbed,
    "attention": Attention,
    "convolution": Convolution,
    "feed_forward": FeedForward,
}
_REFERENCE = Reference()
_verdicts: dict[Key, str | None] = {}
_warned: set[tuple[str, str, str]] = set()
_lock = threading.Lock()


def configuration(op: str, module: Any, width: int) -> Configuration | None:
    """The arguments from which `_fresh` builds a module like this one, as the key of its verdict.

    Args:
        op: a name from `OPS`.
        module: the op's module; None for `masked_loss`.
        width: D, which `mix_pool`'s module does not know.

    Returns:
        Pairs of a name and a value; None for a module of an unknown kind, which cannot be checked.
    """
    kind = type(module)
    if kind is Attention:
        return (("width", width), ("heads", module.heads))
    if kind is Convolution:
        return (("width", width), ("kernel", module.depthwise.shape[1]))
    if kind is FeedForward:
        return (("width", width), ("expansion", module.w_val.out_features // width))
    if kind is PlainFeedForward:
        return (("width", width), ("expansion", module.w_in.out_features // width), ("gate", False))
    if kind is InputEmbed:
        return (("width", width), ("time_base", module.time_base), ("hide", module.hide))
    if kind is LayerMix:
        return (("width", width), ("layers", module.logits.shape[0] - 1))
    if kind is LastLayer:
        return (("width", width), ("mix", False))
    return () if op == "masked_loss" else None


def failure(
    backend: Backend, op: str, device: torch.device, dtype: torch.dtype, configuration: Configuration
) -> str | None:
    """The reason why the op failed its self-check; None: it passed. Without a verdict the check runs now.

    Args:
        backend: the backend to check.
        op: a name from `OPS`.
        device: the device of the op's tensors.
        dtype: the dtype of the computation: float32, or autocast's dtype.
        configuration: the module's, see `configuration`.
    """
    key = Key(backend.name, op, device, dtype, configuration)
    if key in _verdicts:
        return _verdicts[key]
    if not may_run(device):
        return None
    with _lock:
        if key not in _verdicts:
            verdict = stored(key, backend)
            if verdict is None:
                _run_and_store(key, backend)
            else:
                _verdicts[key] = verdict or None
    if (reason := _verdicts[key]) is not None:
        _warn(key, reason)
    return reason


def may_run(device: torch.device) -> bool:
    """Whether an op can run on the device now: not while a CUDA graph is captured, nor on a device that is absent.

    Tensors without data may claim to be on an absent device.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()
    return device.type != "meta"


def rerun(
    backend: Backend, op: str, device: torch.device, dtype: torch.dtype, configuration: Configuration
) -> str | None:
    """Run the self-check even if there is a verdict, and replace the verdict; see `failure`."""
    with _lock:
        return _run_and_store(Key(backend.name, op, device, dtype, configuration), backend)


def _run_and_store(key: Key, backend: Backend) -> str | None:
    def run() -> tuple[str | None, bool]:
        with torch.cuda.device(key.device) if key.device.type == "cuda" else nullcontext():
            try:
                return _check(backend, key.op, key.device, key.dtype, dict(key.configuration)), True
            except Exception as error:  # compilers and drivers raise many types; each means that the op is unusable
                message = " ".join(str(error).split())
                return f"{type(error).__name__}: {message[:300]}", not _is_passing(error)

    if key.device.type == "cuda":  # so that errors of the caller's earlier launches reach the caller
        torch.cuda.synchronize(key.device)
    with ThreadPoolExecutor(1) as pool:
        reason, lasting = pool.submit(run).result()
    _verdicts[key] = reason
    if lasting:
        store(key, backend, reason)
    return reason


# Words in libraries' and drivers' messages, often plain RuntimeErrors, about a machine's passing state: a GPU that is
# full or broken, or a missing C compiler.
_PASSING = ("out of memory", "ALLOC_FAILED", "NOT_INITIALIZED", "CUDA error", "HIP error", "C compiler")


def _is_passing(error: Exception) -> bool:
    """Whether the machine's present state causes the error (no memory, no C compiler, a broken GPU), not the op."""
    kinds = (torch.OutOfMemoryError, MemoryError, OSError, ImportError, SubprocessError)
    state = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)  # new in torch 2.8
    return isinstance(error, (*kinds, state)) or any(words in str(error) for words in _PASSING)


def _warn(key: Key, reason: str) -> None:
    where = device_name(key.device)
    if (key.backend, key.op, where) not in _warned:
        _warned.add((key.backend, key.op, where))
        warnings.warn(
            f"{key.op} runs in plain PyTorch: {key.backend}'s self-check on {where} failed for {key.name} ({reason}); "
            "`astroco doctor` runs it again",
            RuntimeWarning,
            stacklevel=2,
        )


# --- The comparison -----------------------------------------------------------------------------------------------


class _Subject(NamedTuple):
    """An op with inputs.

    Attributes:
        module: the op's module; an empty one for the loss, which has no parameters.
        inputs: float32; they require gradients where gradients are compared.
        real: bool, True at real points: (N,) rows, or (B, T) points.
        call: computes the outputs from a backend's function of the op, the module and the inputs.
    """

    module: nn.Module
    inputs: list[Tensor]
    real: Tensor
    call: Callable[..., Any]


def _check(backend: Backend, op: str, device: torch.device, dtype: torch.dtype, values: dict[str, Any]) -> str | None:
    """The first fault of the backend's op, over all modes in which the backend runs it; None: there is no fault."""
    for mode in MODES:
        if dtype is torch.int8 and mode.gradients:
            continue
        comparison = Comparison()
        for draw in range(DRAWS):
            with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
                torch.default_generator.manual_seed(draw)
                layout = _layout(mode, device)
                subject = _subject(op, values, layout, device, mode)
                if backend.unsupported(op, device, dtype, mode.training, subject.module) is not None:
                    break
                comparison.add(*_runs(backend, op, subject, layout, mode, dtype))
            if not comparison.off():
                break
        if off := comparison.off():
            name, wrong = next(iter(off.items()))  # outputs come first: if one is off, gradients are off too
            return f"{name} {wrong}, in {mode.name}"
    return None


def _layout(mode: Mode, device: torch.device) -> Layout:
    given = CPU_LENGTHS if device.type == "cpu" else LENGTHS
    lengths, length = torch.tensor(given), max(given)
    if mode.packed:
        return Layout.packed(lengths, length, device, capacity=sum(given) + FILLER)
    return Layout.padded(lengths.to(device), length)


def _subject(op: str, values: dict[str, Any], layout: Layout, device: torch.device, mode: Mode) -> _Subject:
    rows = layout.rows
    real = layout.valid if layout.valid is not None else torch.ones(rows, dtype=torch.bool, device=device)
    if op == "masked_loss":
        shape = (layout.batch, layout.length)
        target, role = torch.randn(shape).to(device), torch.randint(4, shape).to(device)
        prediction = torch.randn(shape).to(device).requires_grad_(mode.gradients)
        return _Subject(nn.Module(), [prediction], role != 0, lambda f, m, x: f(x, target, role))
    module = _fresh(op, values).to(device).train(mode.training)
    if op == "input_embed":
        hidden = (torch.rand(rows) < 0.3).to(device)
        inputs = [scale * torch.randn(rows).to(device) for scale in (300.0, 1.0, 0.1)]
        return _Subject(module, inputs, real, lambda f, m, *points: f(m, *points, hidden, layout))
    count = values.get("layers", 1) + 1 if op == "mix_pool" else 1
    inputs = [torch.randn(rows, values["width"]).to(device).requires_grad_(mode.gradients) for _ in range(count)]
    if op == "mix_pool":
        return _Subject(module, inputs, real, lambda f, m, *states: f(m, iter(states), layout))
    return _Subject(module, inputs, real, lambda f, m, x: f(m, x, layout))


def _fresh(op: str, values: dict[str, Any]) -> nn.Module:
    """A module of this configuration with random parameters and statistics, where initialisation has ones and zeros."""
    values = dict(values)
    if op == "mix_pool":
        module: nn.Module = LayerMix(values["layers"]) if values.get("mix", True) else LastLayer()
    else:
        make = _MODULES[op] if values.pop("gate", True) else PlainFeedForward
        module = make(**values) if op == "input_embed" else make(**values, dropout=DROPOUT)
    module = module.float()  # torch's default dtype may be another
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return module


def _runs(
    backend: Backend, op: str, subject: _Subject, layout: Layout, mode: Mode, dtype: torch.dtype
) -> tuple[Results, Results, Results]:
    """The op's results in float64, in plain PyTorch and on the backend."""
    fused_module, plain_module = copy.deepcopy(subject.module), copy.deepcopy(subject.module)
    if dtype is torch.int8:
        plain_module = int8_of(plain_module)
    if isinstance(dropout := getattr(fused_module, "dropout", None), Dropout):
        dropout.salt = SALT
        scale = None
        if mode.training:
            scale = backend.dropout_mask(layout, SALT, DROPOUT, subject.inputs[0].shape[1])
        if scale is None:
            dropout.p = plain_module.dropout.p = 0.0  # type: ignore[union-attr]
        else:
            plain_module.dropout = GivenDropout(scale)

    upstream: list[Tensor] | None = None

    def run(runner: Backend, module: nn.Module, fill: float, to: torch.dtype) -> Results:
        """Run the op with `fill` in rows that are not real."""
        function = runner.function(op)
        inputs = [_filled(x, subject.real, fill) for x in subject.inputs]
        ups = None if upstream is None else [_filled(up, subject.real, fill) for up in upstream]
        return results(lambda *arguments: subject.call(function, *arguments), module, inputs, ups, to)

    outputs = run(_REFERENCE, plain_module, 0.0, torch.float32)
    if mode.gradients:
        upstream = [torch.randn(x.shape).to(x.device) for name, x in outputs.items() if name.startswith("output")]
    exact = run(_REFERENCE, plain_module, 0.0, torch.float64)
    plain = run(_REFERENCE, plain_module, 0.0, dtype)
    fused = run(backend, fused_module, float("nan"), dtype)
    return zero_filler(exact, subject.real), zero_filler(plain, subject.real), fused


def _filled(x: Tensor, real: Tensor, value: float) -> Tensor:
    """x with `value` where it is not real; a tensor without an axis of rows is returned as it is."""
    if x.shape[: real.dim()] != real.shape:
        return x
    over = real.view(*real.shape, *[1] * (x.dim() - real.dim()))
    return x.detach().masked_fill(~over, value).requires_grad_(x.requires_grad)
