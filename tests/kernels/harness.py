"""A backend's op against the reference in float64, by the tolerance that plain PyTorch calibrates.

    max |fused - exact| <= 2 max |plain - exact| + 1e-6

for outputs, gradients of inputs and of every parameter, and buffers; `exact` is the reference in float64, `plain` the
reference in the dtype under test.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import Layout
from astroco_fast.kernels import cpu

Call = Callable[..., Any]


class Case(NamedTuple):
    """One combination of what an op may meet."""

    length: int  # T
    width: int  # D
    layout: str  # full, packed, padded, empty
    dtype: torch.dtype
    mode: str  # inference, evaluation (with gradients), training
    strides: str  # contiguous, sliced (inputs), expanded (gradients)


AXES: dict[str, Sequence[Any]] = {
    "length": (33, 200, 1, 31, 32, 199, 201),
    "width": (64, 276, 256),
    "layout": ("packed", "padded", "empty", "full"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "mode": ("training", "inference", "evaluation"),
    "strides": ("contiguous", "sliced", "expanded"),
}


def pairwise() -> list[Case]:
    """Cases in which every two values of different axes meet at least once."""
    names = list(AXES)
    open_pairs = {
        (a, x, b, y) for a, b in combinations(range(len(names)), 2) for x in AXES[names[a]] for y in AXES[names[b]]
    }

    def closed(case: tuple) -> set:
        return {(a, case[a], b, case[b]) for a, b in combinations(range(len(names)), 2)} & open_pairs

    cases, everything = [], list(product(*AXES.values()))
    while open_pairs:
        best = max(everything, key=lambda case: len(closed(case)))
        open_pairs -= closed(best)
        cases.append(Case(*best))
    return cases


def every_case() -> list[Case]:
    """The full product."""
    return [Case(*values) for values in product(*AXES.values())]


def fitting(case: Case, backend: str) -> Case:
    """The case in a dtype that the backend has kernels for, float32 in place of one that it has not."""
    lacks = backend == "cpu" and (case.dtype not in cpu.DTYPES or cpu.lacking(case.dtype) is not None)
    return case._replace(dtype=torch.float32) if lacks else case


def name(case: Case) -> str:
    """A test's id."""
    return "-".join(str(value).removeprefix("torch.") for value in case)


def layout_of(case: Case, device: torch.device) -> Layout:
    """A small batch: windows of all sorts, in the layout that the case asks for."""
    t = case.length
    ragged = [t, (t + 1) // 2, max(1, t // 5)] if t < 100 else [t, 7]
    if t == 1:  # with three rows, BatchNorm's gradients are little but rounding, whoever computes them
        ragged = 16 * [t]
    lengths = torch.tensor({"full": [t] if t > 100 else [t, t], "empty": [0, t, 0]}.get(case.layout, ragged))
    if case.layout == "padded":
        return Layout.padded(lengths.to(device), t)
    return Layout.packed(lengths, t, device)


def real_rows(layout: Layout) -> Tensor:
    """(N,) bool."""
    if layout.valid is not None:
        return layout.valid
    return torch.ones(layout.rows, dtype=torch.bool, device=layout.lengths.device)


def sliced(x: Tensor) -> Tensor:
    """The same values at twice the stride, NaN between them."""
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=1).flatten(0, 1)[::2]


def results(
    call: Call, module: nn.Module, inputs: Sequence[Tensor], upstream: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of `call(module, *inputs)`, by name, float64.

    Args:
        upstream: the outputs' gradients; None: run without gradients. An input that is floating point and contiguous
            or sliced gets a gradient if it has `requires_grad`.
    """
    with torch.set_grad_enabled(upstream is not None):
        outputs = call(module, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": output for i, output in enumerate(outputs)}
    if upstream is not None:
        torch.autograd.backward(outputs, [up.to(out.dtype) for up, out in zip(upstream, outputs, strict=True)])
        found |= {f"gradient of input {i}": x.grad for i, x in enumerate(inputs) if x.requires_grad}
        found |= {f"gradient of {key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
    found |= {key: value for key, value in module.named_buffers() if value.is_floating_point()}
    return {key: value.detach().double().clone() for key, value in found.items()}


def variants(
    call: Call,
    module: nn.Module,
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor] | None,
    dtype: torch.dtype,
    backend: str,
    fused_inputs: Sequence[Tensor] | None = None,
    fused_upstream: Sequence[Tensor] | None = None,
    plain_module: nn.Module | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """`results` in float64, in plain PyTorch and by the backend; the latter two in `dtype`, by autocast if half.

    Args:
        call: goes through `astroco_fast.ops`.
        fused_inputs, fused_upstream: what the backend gets in place of inputs and upstream: the same values, laid out
            otherwise or poisoned where they must not matter.
        plain_module: what the reference gets in place of module: the same, its dropout's draws given.
    """
    plain_module = module if plain_module is None else plain_module

    def run(name: str, model: nn.Module, args: Sequence[Tensor], ups: Sequence[Tensor] | None) -> dict[str, Tensor]:
        model = copy.deepcopy(model)
        kind = args[0].device.type
        half = dtype in (torch.bfloat16, torch.float16) and args[0].dtype != torch.float64
        with af.backend(name), torch.autocast(kind, dtype=dtype) if half else contextlib.nullcontext():
            return results(call, model, args, ups)

    def fresh(args: Sequence[Tensor], to: torch.dtype) -> list[Tensor]:
        return [
            x.detach().to(to).requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in args
        ]  # strides are kept: `to` makes no copy where the dtype is right

    doubled = None if upstream is None else [up.double() for up in upstream]
    exact = run("reference", copy.deepcopy(plain_module).double(), fresh(inputs, torch.float64), doubled)
    plain = run("reference", plain_module, fresh(inputs, torch.float32), upstream)
    fused = run(backend, module, fused_inputs or fresh(inputs, torch.float32), fused_upstream or upstream)
    return exact, plain, fused


def assert_close(exact: dict[str, Tensor], plain: dict[str, Tensor], fused: dict[str, Tensor]) -> None:
    """The tolerance above, for every name; a NaN fails."""
    assert fused.keys() == exact.keys(), fused.keys() ^ exact.keys()
    off = {}
    for key, truth in exact.items():
        allowed = 2 * (plain[key] - truth).abs().amax().item() + 1e-6 if truth.numel() else 0.0
        error = (fused[key] - truth).abs().amax().item() if truth.numel() else 0.0
        if not error <= allowed:
            off[key] = f"{error:.3g} > {allowed:.3g}"
    assert not off, off
