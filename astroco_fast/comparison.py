"""Comparison of a backend's results with float64: one rule for the self-check, the tests and the benchmarks.

    max |fused - exact| <= 2 max |plain - exact| + 1e-6

must hold for each output, each gradient of an input or a parameter, and each buffer. `exact` is the reference in
float64, `plain` the reference in the dtype under test, and `fused` the backend in that dtype. So plain PyTorch's own
rounding sets the tolerance, for every op and width.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from astroco_fast.kernels.int8 import int8

# Tensors by name: "output 0", "the gradient of input 0", "the gradient of norm.weight", "batch_norm.running_mean".
Results = dict[str, Tensor]


def results(
    call: Callable[..., Any],
    module: nn.Module,
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor] | None,
    dtype: torch.dtype,
) -> Results:
    """Run `call(module, *inputs)` on copies of its arguments; return outputs, gradients and floating-point buffers.

    Args:
        call: returns a tensor or a tuple of tensors.
        module: the op's module.
        inputs: the op's tensors, copied with their strides. The results have a gradient of each that requires one.
        upstream: the outputs' gradients; None: no gradients are computed.
        dtype: the dtype of the computation. For float64, inputs, parameters and buffers are cast to it; half precision
            is autocast's, and int8 that of `astroco_fast.int8`.

    Returns:
        The results, without the gradients that autograd does not reach.
    """
    module = copy.deepcopy(module)
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    if dtype is torch.float64:
        module = module.double()
        inputs = [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs]
    with _arithmetic(inputs[0].device.type, dtype):
        with torch.set_grad_enabled(upstream is not None):
            outputs = call(module, *inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found: dict[str, Tensor | None] = {f"output {i}": output for i, output in enumerate(outputs)}
        if upstream is not None:
            found |= _gradients(outputs, upstream, module, inputs)
    found |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return {name: value.detach() for name, value in found.items() if value is not None}


def _arithmetic(device: str, dtype: torch.dtype) -> Any:
    if dtype is torch.int8:
        return int8()
    return torch.autocast(device, dtype=dtype) if dtype not in (torch.float32, torch.float64) else nullcontext()


def _gradients(
    outputs: Sequence[Tensor], upstream: Sequence[Tensor], module: nn.Module, inputs: Sequence[Tensor]
) -> dict[str, Tensor | None]:
    wanted = {f"the gradient of input {i}": x for i, x in enumerate(inputs) if x.requires_grad}
    wanted |= {f"the gradient of {name}": p for name, p in module.named_parameters() if p.requires_grad}
    ends = [(out, up.to(out.dtype)) for out, up in zip(outputs, upstream, strict=True) if out.requires_grad]
    if not wanted or not ends:
        return {}
    found = torch.autograd.grad(
        [out for out, _ in ends], list(wanted.values()), [up for _, up in ends], allow_unused=True
    )
    return dict(zip(wanted, found, strict=True))


def zero_filler(found: Results, real: Tensor) -> Results:
    """The reference's results with zeros in rows that are not real points, as a backend must return them.

    The reference leaves these rows of outputs and of inputs' gradients undefined.

    Args:
        found: the reference's results.
        real: bool, True at real points: (N,) rows, or (B, T) points. Results of another shape stay as they are.
    """

    def over_rows(name: str, value: Tensor) -> bool:
        return name.startswith(("output", "the gradient of input")) and value.shape[: real.dim()] == real.shape

    return {
        name: value.masked_fill(~real.view(*real.shape, *[1] * (value.dim() - real.dim())), 0)
        if over_rows(name, value)
        else value
        for name, value in found.items()
    }


class Comparison:
    """A backend's results compared with float64, over one draw of the inputs or several.

    A tensor of few numbers may be exact in plain PyTorch by luck, so the largest errors over all draws are compared.
    """

    def __init__(self) -> None:
        self._faults: dict[str, str | None] = {}  # by every name seen
        self._errors: dict[str, float] = {}
        self._allowed: dict[str, float] = {}

    def add(self, exact: Results, plain: Results, fused: Results) -> None:
        """Add the results of one draw: in float64, in plain PyTorch and on the backend."""
        for name, truth in exact.items():
            self._faults[name] = _fault(truth, plain[name], fused.get(name)) or self._faults.get(name)
            if self._faults[name] is None:
                error, allowed = _furthest(fused[name], truth), 2 * _furthest(plain[name], truth) + 1e-6
                self._errors[name] = max(self._errors.get(name, 0.0), error)
                self._allowed[name] = max(self._allowed.get(name, 0.0), allowed)
        for name in fused.keys() - exact.keys():
            self._faults[name] = "is not among the reference's results"

    def off(self) -> dict[str, str]:
        """The wrong results by name, outputs first, each with its fault as the rest of a sentence ("is missing")."""
        return {name: wrong for name in self._faults if (wrong := self._wrong(name)) is not None}

    def _wrong(self, name: str) -> str | None:
        if (fault := self._faults[name]) is not None:
            return fault
        error, allowed = self._errors[name], self._allowed[name]
        return None if error <= allowed else f"is off by {error:.2g}, {allowed:.2g} allowed"


def _fault(truth: Tensor, plain: Tensor, found: Tensor | None) -> str | None:
    """The fault of a result other than its numbers' errors; None: there is no such fault."""
    if found is None:
        return "is missing"
    if found.shape != truth.shape:
        return f"is of shape {tuple(found.shape)}, not {tuple(truth.shape)}"
    if found.dtype != plain.dtype:
        return f"is {found.dtype}, not {plain.dtype}"
    if not bool(torch.isfinite(found).all()):
        return "is not finite"
    if not bool(torch.isfinite(plain).all()):
        return "cannot be judged: plain PyTorch's is not finite"
    return None


def _furthest(found: Tensor, truth: Tensor) -> float:
    return (found.double() - truth.double()).abs().amax().item() if truth.numel() else 0.0


class GivenDropout(nn.Module):
    """Dropout with given factors, so that the reference drops the same elements as the backend.

    Args:
        scale: (N, D), the factors 0 or 1 / (1 - p), see `Backend.dropout_mask`.
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Rows (N, D) to rows (N, D)."""
        return x * self.scale.to(x.dtype)
