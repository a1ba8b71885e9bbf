"""The self-check: is an op of a fused backend right on this machine?

Nobody has run the kernels on every GPU, so the first use of an op on a GPU type, in a dtype and a configuration (width,
heads, taps ...) compares it with the reference in float64, on random ragged windows, forward and backward, by

    max |fused - exact| <= 2 max |plain - exact| + 1e-6

where `plain` is the reference in the dtype in question. An op that is off, raises or does not compile runs on the
reference from then on, with one warning. Verdicts are kept on disk, by whatever could change them.

The check has a thread of its own: whether gradients are wanted, inference mode, autocast, torch.compile's tracing and
other modes belong to a thread, so that the caller's neither reach the check nor are touched by it. Thus it may run even
while torch.compile traces, where its verdict is a constant. While a CUDA graph is being captured nothing may run, and
an op without a verdict counts as right: capturing comes after a warm-up anyway, and `warmup` is one.
"""

import copy
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from subprocess import SubprocessError
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from astroco_fast.reference import backend as _reference
from astroco_fast.reference.dropout import Dropout
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
    """A way that an op runs. Packed rows have filler after them, padded ones have it in every window."""

    name: str
    training: bool
    gradients: bool
    packed: bool


MODES = (
    Mode("inference", training=False, gradients=False, packed=False),
    Mode("training", training=True, gradients=True, packed=True),
    Mode("evaluation with gradients", training=False, gradients=True, packed=True),
)
# Real points of the windows: one as long as the presets', an empty one, and tiles that end within a window.
LENGTHS = (200, 0, 67, 131, 1)
# Plain PyTorch takes longest on CPUs: seconds for a whole model at the lengths above. Tiles there are of 96 rows.
CPU_LENGTHS = (101, 0, 33, 1)
FILLER = 9
DROPOUT, SALT = 0.1, 3
# A tensor of few numbers may be exact in plain PyTorch by luck; only what is off in all draws together is off.
DRAWS = 3

_MODULES: dict[str, Callable[..., nn.Module]] = {
    "input_embed": InputEmbed,
    "attention": Attention,
    "convolution": Convolution,
    "feed_forward": FeedForward,
}
_verdicts: dict[Key, str | None] = {}
_warned: set[tuple[str, str, str]] = set()
_lock = threading.Lock()


def configuration(op: str, module: Any, width: int) -> Configuration | None:
    """What `_fresh` makes a module like `module` from; None: an unknown kind of module, which can't be checked.

    Args:
        module: None for `masked_loss`.
        width: D, which `mix_pool`'s module does not know.
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
    backend: str, op: str, device: torch.device, dtype: torch.dtype, configuration: Configuration
) -> str | None:
    """Why the op failed its self-check, which runs if there is no verdict yet; None: it passed.

    Args:
        backend: a name from `ops.BACKENDS`.
        op: a name from `ops.OPS`.
        dtype: what is computed in: float32, or autocast's dtype.
        configuration: of the module, see `configuration`.
    """
    if torch.compiler.is_compiling():
        return _while_tracing(backend, op, device, dtype, configuration)
    return _known(backend, op, device, dtype, configuration)


def _known(backend: str, op: str, device: torch.device, dtype: torch.dtype, configuration: Configuration) -> str | None:
    key = Key(backend, op, device, dtype, configuration)
    if key in _verdicts:
        return _verdicts[key]
    if not may_run(device):
        return None
    with _lock:
        if key not in _verdicts:
            told = stored(key, _backend(key))
            if told is None:
                _run_and_store(key)
            else:
                _verdicts[key] = told or None
    if (reason := _verdicts[key]) is not None:
        _warn(key, reason)
    return reason


def may_run(device: torch.device) -> bool:
    """Not on a device that is not there (tensors without data may be on any), nor while a CUDA graph is captured."""
    if device.type == "cuda":
        return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()
    return device.type != "meta"


# The function runs for real while torch.compile traces its caller, and its result becomes a constant of the graph.
_while_tracing = torch.compiler.assume_constant_result(_known)


def rerun(backend: str, op: str, device: torch.device, dtype: torch.dtype, configuration: Configuration) -> str | None:
    """Run the self-check whatever was known, and keep its verdict; gives what `failure` gives."""
    with _lock:
        return _run_and_store(Key(backend, op, device, dtype, configuration))


def _run_and_store(key: Key) -> str | None:
    backend = _backend(key)

    def run() -> tuple[str | None, bool]:
        with torch.cuda.device(key.device) if key.device.type == "cuda" else nullcontext():
            try:
                return _check(backend, key.op, key.device, key.dtype, dict(key.configuration)), True
            except Exception as error:  # compilers and drivers raise many kinds; each means that the op can't be used
                told = " ".join(str(error).split())
                return f"{type(error).__name__}: {told[:300]}", not _is_passing(error)

    if key.device.type == "cuda":  # an error of what was launched before is raised here, to its owner
        torch.cuda.synchronize(key.device)
    with ThreadPoolExecutor(1) as pool:
        reason, lasting = pool.submit(run).result()
    _verdicts[key] = reason
    if lasting:
        store(key, backend, reason)
    return reason


# What libraries and drivers say, in plain RuntimeErrors too, where a GPU is full or in a bad state.
_PASSING = ("out of memory", "ALLOC_FAILED", "NOT_INITIALIZED", "CUDA error", "HIP error", "C compiler")


def _is_passing(error: Exception) -> bool:
    """Whether it tells of what the machine lacks at present (memory, a C compiler) or of its state, not of the op."""
    kinds = (torch.OutOfMemoryError, MemoryError, OSError, ImportError, SubprocessError)
    state = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)  # older ones have no such kind
    return isinstance(error, (*kinds, state)) or any(words in str(error) for words in _PASSING)


def _backend(key: Key) -> ModuleType:
    from astroco_fast import ops  # which imports this module

    return ops.BACKENDS[key.backend]


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


class _GivenDropout(nn.Module):
    """Dropout whose draws are given, so that the reference drops what the backend drops."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


class _Subject(NamedTuple):
    """An op with inputs.

    Attributes:
        module: with parameters of its own; for the loss, which has none, an empty one.
        inputs: float32.
        differentiable: whether gradients of the inputs are compared.
        real: True where inputs count: (N,) rows, or (B, T) points.
        call: the op as (backend, module, inputs) to outputs.
    """

    module: nn.Module
    inputs: list[Tensor]
    differentiable: bool
    real: Tensor
    call: Callable[[ModuleType, nn.Module, Sequence[Tensor]], Any]


def _check(
    backend: ModuleType, op: str, device: torch.device, dtype: torch.dtype, values: dict[str, Any]
) -> str | None:
    """Why the backend's op is not right, in any mode that the backend runs it in."""
    for mode in MODES:
        errors: dict[str, float] = {}
        allowed: dict[str, float] = {}
        off: list[str] = []
        for draw in range(DRAWS):
            with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
                torch.default_generator.manual_seed(draw)
                layout = _layout(mode, device)
                subject = _subject(op, values, layout, device, mode.training)
                if backend.unsupported(op, device, dtype, mode.training, subject.module) is not None:
                    break
                exact, plain, fused = _variants(backend, subject, layout, mode, dtype)
            if fused.keys() != exact.keys():
                return f"{', '.join(sorted(fused.keys() ^ exact.keys()))}: there in one of the two only, in {mode.name}"
            for key, truth in exact.items():
                errors[key] = max(errors.get(key, 0.0), _furthest(fused[key], truth))
                allowed[key] = max(allowed.get(key, 0.0), 2 * _furthest(plain[key], truth) + 1e-6)
            off = [key for key in errors if not errors[key] <= allowed[key]]
            if not off:
                break
        if off:
            first = off[0]  # outputs come before gradients, which are off wherever outputs are
            return f"{first} is off by {errors[first]:.2g}, {allowed[first]:.2g} allowed, in {mode.name}"
    return None


def _furthest(found: Tensor, truth: Tensor) -> float:
    if found.shape != truth.shape:
        return float("inf")
    return (found - truth).abs().nan_to_num(nan=float("inf")).amax().item() if truth.numel() else 0.0


def _layout(mode: Mode, device: torch.device) -> Layout:
    given = CPU_LENGTHS if device.type == "cpu" else LENGTHS
    lengths, length = torch.tensor(given), max(given)
    if mode.packed:
        return Layout.packed(lengths, length, device, capacity=sum(given) + FILLER)
    return Layout.padded(lengths.to(device), length)


def _subject(op: str, values: dict[str, Any], layout: Layout, device: torch.device, training: bool) -> _Subject:
    rows = layout.rows
    real = layout.valid if layout.valid is not None else torch.ones(rows, dtype=torch.bool, device=device)
    if op == "masked_loss":
        shape = (layout.batch, layout.length)
        target, role = torch.randn(shape).to(device), torch.randint(4, shape).to(device)
        inputs = [torch.randn(shape).to(device)]
        return _Subject(nn.Module(), inputs, True, role != 0, lambda b, m, ins: b.masked_loss(ins[0], target, role))
    module = _fresh(op, values).to(device).train(training)
    if op == "input_embed":
        hidden = (torch.rand(rows) < 0.3).to(device)
        inputs = [scale * torch.randn(rows).to(device) for scale in (300.0, 1.0, 0.1)]
        return _Subject(module, inputs, False, real, lambda b, m, ins: b.input_embed(m, *ins, hidden, layout))
    if op == "mix_pool":
        states = [torch.randn(rows, values["width"]).to(device) for _ in range(values.get("layers", 1) + 1)]
        return _Subject(module, states, True, real, lambda b, m, ins: b.mix_pool(m, iter(ins), layout))
    x = torch.randn(rows, values["width"]).to(device)
    return _Subject(module, [x], True, real, lambda b, m, ins: getattr(b, op)(m, *ins, layout))


def _fresh(op: str, values: dict[str, Any]) -> nn.Module:
    """A module of this configuration, away from the ones and zeros of initialisation."""
    values = dict(values)
    if op == "mix_pool":
        module: nn.Module = LayerMix(values["layers"]) if values.get("mix", True) else LastLayer()
    else:
        make = _MODULES[op] if values.pop("gate", True) else PlainFeedForward
        module = make(**values) if op == "input_embed" else make(**values, dropout=DROPOUT)
    module = module.float()  # whatever torch's default dtype is
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return module


Results = dict[str, Tensor]


def _variants(
    backend: ModuleType, subject: _Subject, layout: Layout, mode: Mode, dtype: torch.dtype
) -> tuple[Results, Results, Results]:
    """What the op gives in float64, in plain PyTorch and on the backend, by name, float64."""
    fused_module, plain_module = copy.deepcopy(subject.module), copy.deepcopy(subject.module)
    if isinstance(dropout := getattr(fused_module, "dropout", None), Dropout):
        dropout.salt = SALT
        if mode.training and hasattr(backend, "dropout_scale"):
            scale = backend.dropout_scale(layout, SALT, DROPOUT, subject.inputs[0].shape[1])
            plain_module.dropout = _GivenDropout(scale)
        else:  # a backend that does not tell its draws is checked without
            fused_module.dropout.p = plain_module.dropout.p = 0.0  # type: ignore[union-attr]
    exact_module = copy.deepcopy(plain_module).double()

    real = subject.real
    clean = [x.masked_fill(~_over(real, x), 0) for x in subject.inputs]
    with torch.no_grad():
        outputs = _tuple(subject.call(_reference, copy.deepcopy(plain_module), clean))
    upstream = [torch.randn(out.shape).to(out.device) for out in outputs] if mode.gradients else None

    def run(module: nn.Module, runner: ModuleType, fill: float, to: torch.dtype) -> Results:
        half = to not in (torch.float32, torch.float64)
        inputs = [x.masked_fill(~_over(real, x), fill).to(torch.float32 if half else to) for x in subject.inputs]
        if mode.gradients and subject.differentiable:
            inputs = [x.requires_grad_() for x in inputs]
        ups = upstream
        if ups is not None:
            ups = [up.masked_fill(~_over(real, up), fill) if _is_over(real, up) else up for up in ups]
        with torch.autocast(real.device.type, dtype=to) if half else nullcontext():
            return _results(lambda m, ins: subject.call(runner, m, ins), module, inputs, ups)

    exact = run(exact_module, _reference, 0.0, torch.float64)
    plain = run(plain_module, _reference, 0.0, dtype)
    fused = run(fused_module, backend, float("nan"), dtype)
    for found in (exact, plain):  # the reference leaves rows that are not real undefined; a backend's are zero
        for key, value in found.items():
            if key.startswith(("output", "the gradient of input")) and _is_over(real, value):
                found[key] = value.masked_fill(~_over(real, value), 0)
    return exact, plain, fused


def _is_over(real: Tensor, x: Tensor) -> bool:
    return x.shape[: real.dim()] == real.shape


def _over(real: Tensor, x: Tensor) -> Tensor:
    return real.view(*real.shape, *[1] * (x.dim() - real.dim()))


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _results(
    call: Callable[[nn.Module, Sequence[Tensor]], Any],
    module: nn.Module,
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor] | None,
) -> Results:
    with torch.set_grad_enabled(upstream is not None):
        outputs = _tuple(call(module, inputs))
    found = {f"output {i}": output for i, output in enumerate(outputs)}
    if upstream is not None:
        wanted = {f"the gradient of input {i}": x for i, x in enumerate(inputs) if x.requires_grad}
        wanted |= {f"the gradient of {name}": parameter for name, parameter in module.named_parameters()}
        ends = [(out, up.to(out.dtype)) for out, up in zip(outputs, upstream, strict=True) if out.requires_grad]
        gradients = torch.autograd.grad([out for out, _ in ends], list(wanted.values()), [up for _, up in ends])
        found |= dict(zip(wanted, gradients, strict=True))
    found |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return {key: value.detach().double() for key, value in found.items()}
