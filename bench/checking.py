"""Is a provider right? Before it is timed, it is held against the reference in float32; wrong is not fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bench.cases import Batch, Case, make_batch
from bench.providers import Eager, Provider, Run

WINDOWS = 8  # that are checked of a batch
# Of the largest error of a tensor to its size: several times what plain autocast gives.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
# Of each parameter's gradient; plain autocast is within 0.9998 and 1 %. One that is exactly zero but for rounding (of a
# key's bias, say) has no direction.
COSINE, NORM = 0.99, 0.05
NOTHING = 1e-6  # of the norm of all gradients


class WrongResultError(AssertionError):
    """A provider's result is off: it gets no figure."""


def check_embeddings(provider: Provider, case: Case, batch: Batch, embeddings: Tensor) -> float:
    """The relative error (in norm) of some windows' embeddings: in evaluation mode no window depends on another.

    Args:
        embeddings: (B, D), the provider's of the whole batch.
    """
    some = slice(None, None, max(1, case.batch // WINDOWS))
    few = batch.windows(some)
    with torch.no_grad():
        expected = Eager("fp32", provider.other).make(case._replace(batch=len(few.lengths)), few).call()
    return check_tensors(provider.name, [embeddings[some]], [expected], TOLERANCE[provider.dtype])


def check_tensors(name: str, found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> float:
    """The largest relative error (in norm) of tensors; raises WrongResultError if it is above the tolerance."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if not bool(torch.isfinite(ours).all()):
            raise WrongResultError(f"{name}: a result is not finite")
        scale = theirs.float().norm().clamp_min(1e-12)
        worst = max(worst, float((ours.float() - theirs.float()).norm() / scale))
    if worst > tolerance:
        raise WrongResultError(f"{name}: relative error {worst:.2g}, more than {tolerance:g}")
    return worst


def check_step(provider: Provider, case: Case, device: torch.device) -> float:
    """Hold a step of a few windows, without dropout, against the reference in float32: see `check_gradients`."""
    case = case._replace(batch=min(case.batch, WINDOWS))
    batch = make_batch(case, device)
    expected = _expected_gradients(provider.other, case, device)
    return check_gradients(provider.name, gradients(provider.make(case, batch, dropout=0.0)), expected)


def gradients(run: Run) -> dict[str, Tensor]:
    """Of one step, by parameter; zero where there is none."""
    run.call()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.detach() for n, p in run.parameters.items()}


def check_gradients(name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest 1 - cosine of a gradient to what it should be; raises WrongResultError if one is off."""
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
