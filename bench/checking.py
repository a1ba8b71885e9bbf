"""Whether a whole model's provider gives right results; one that does not is not timed.

A single op is compared with float64 by the package's own rule (`bench.one_op.check_op`). For whole models that rule has
no use: it compares with a plain run in the same dtype, and the rivals' models differ in where they round (a compiled
graph keeps float32 where eager autocast rounds, ONNX Runtime and TF32 round elsewhere), so that over a dozen blocks the
largest error of a single run is as much luck as skill. Hence relative tolerances, in norm, against float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from bench.cases import Batch, Case, make_batch
from bench.providers import Eager, Provider, Run

WINDOWS = 8  # of a batch that are checked
# Norm of the error to norm of the tensor: several times what plain autocast gives.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.int8: 5e-2}
# Of each parameter's gradient to what it should be; plain autocast is within 0.9998 and 1 %.
COSINE, NORM = 0.99, 0.05
# A gradient below this part of all gradients' norm is zero but for rounding (a key's bias), and has no direction.
NOTHING = 1e-6


class WrongResultError(AssertionError):
    """A provider's result is off, so it gets no figure."""


def check_embeddings(provider: Provider, case: Case, batch: Batch, embeddings: Tensor) -> float:
    """The relative error (in norm) of some windows' embeddings: in evaluation mode no window depends on another.

    Args:
        embeddings: (B, D), the provider's of the whole batch.

    Raises:
        WrongResultError: it is above the tolerance, or a number is not finite.
    """
    some = slice(None, None, max(1, case.batch // WINDOWS))
    few = batch.windows(some)
    with torch.no_grad():
        expected = Eager("fp32", provider.other).make(case._replace(batch=len(few.lengths)), few).call()
    found, tolerance = embeddings[some], TOLERANCE[provider.dtype]
    if not bool(torch.isfinite(found).all()):
        raise WrongResultError(f"{provider.name}: a result is not finite")
    if (error := relative_error(found, expected)) > tolerance:
        raise WrongResultError(f"{provider.name}: relative error {error:.2g}, more than {tolerance:g}")
    return error


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the error to that of what is expected."""
    scale = expected.double().norm().clamp_min(1e-12)
    return float((found.double() - expected.double()).norm() / scale)


def check_step(provider: Provider, case: Case, device: torch.device) -> float:
    """Compare a step on a few windows, without dropout, with the reference in float32; see `check_gradients`."""
    case = case._replace(batch=min(case.batch, WINDOWS))
    batch = make_batch(case, device)
    expected = _expected_gradients(provider.other, case, device)
    return check_gradients(provider.name, gradients(provider.make(case, batch, dropout=0.0)), expected)


def gradients(run: Run) -> dict[str, Tensor]:
    """Gradients of one step by parameter, zero where there is none."""
    run.call()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.detach() for n, p in run.parameters.items()}


def check_gradients(name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest 1 - cosine between a gradient and what it should be.

    Raises:
        WrongResultError: a gradient's direction or norm is off.
    """
    whole = float(torch.stack([gradient.double().norm() for gradient in expected.values()]).norm())
    worst = 0.0
    for key, gradient in expected.items():
        if gradient.norm() <= NOTHING * whole:
            continue
        cosine, off = _cosine(found[key], gradient), float(found[key].norm() / gradient.norm()) - 1
        if not (cosine > COSINE and abs(off) < NORM):  # NaN is wrong too
            raise WrongResultError(f"{name}: gradient of {key}: cosine {cosine:.4f}, norm off by {off:.2g}")
        worst = max(worst, 1 - cosine)
    return worst


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm()))


@lru_cache(maxsize=2)
def _expected_gradients(other: str | None, case: Case, device: torch.device) -> dict[str, Tensor]:
    run = Eager("fp32", other).make(case, make_batch(case, device), dropout=0.0)
    return {name: gradient.clone() for name, gradient in gradients(run).items()}
