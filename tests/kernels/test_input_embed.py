"""Every backend's input embedding against the reference."""

from zlib import crc32

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.reference.sublayers import InputEmbed
from tests.kernels import harness
from tests.kernels.harness import Case

FIELDS = ("time", "magnitude", "uncertainty")
HIDE = ((), ("magnitude", "time"), ("uncertainty",), FIELDS)


def embed(width: int, hide: tuple[str, ...], device: torch.device) -> InputEmbed:
    """An input embedding with random parameters, where initialisation has ones and zeros."""
    module = InputEmbed(width, 10000.0, hide).to(device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def points(layout: Layout, device: torch.device) -> list[Tensor]:
    """Time, magnitude, uncertainty and the mask of hidden points."""
    n = layout.rows
    time, mag, err = 300 * torch.randn(n, device=device), torch.randn(n, device=device), torch.rand(n, device=device)
    return [time, mag, err, torch.rand(n, device=device) < 0.3]


def drawn(case: Case, fused: str, device: torch.device, number: int) -> tuple[harness.Draw, Tensor]:
    """The results of one draw, and the rows that are real points, (N,) bool."""
    case = harness.fitting(case, fused)
    torch.manual_seed(crc32(repr(case).encode()) + number)
    hide = HIDE[crc32(repr(case).encode()) % len(HIDE)]
    layout = harness.layout_of(case, device)
    real = harness.real_rows(layout)
    inputs = points(layout, device)
    poisoned = [x.masked_fill(~real, float("nan")) for x in inputs[:3]] + [inputs[3] | ~real]
    if case.strides == "sliced":
        poisoned = [harness.sliced(x) for x in poisoned[:3]] + [poisoned[3].repeat_interleave(2)[::2]]
    gradients = case.mode != "inference"
    up = harness.upstream(case, layout.rows, device)
    poisoned_up = up if case.strides == "expanded" else up.masked_fill(~real[:, None], float("nan"))
    results = harness.variants(
        lambda module, *given: ops.input_embed(module, *given, layout),
        embed(case.width, hide, device).train(case.mode == "training"),
        inputs,
        [up * real[:, None]] if gradients else None,
        case.dtype,
        fused,
        fused_inputs=poisoned,
        fused_upstream=[poisoned_up] if gradients else None,
    )
    return results, real


def check(case: Case, fused: str, device: torch.device) -> None:
    harness.check(lambda number: drawn(case, fused, device, number))


@pytest.mark.parametrize(("fused", "case"), harness.cases(), indirect=["fused"])
def test_input_embed(case: Case, fused: str, device: torch.device) -> None:
    check(case, fused, device)


@pytest.mark.slow
@pytest.mark.parametrize("shape", harness.SHAPES, ids=str)
def test_input_embed_everywhere(shape: tuple[int, int], fused: str, device: torch.device) -> None:
    harness.check_shape(shape, lambda case: check(case, fused, device))


def test_input_embed_without_hidden_points(fused: str, device: torch.device) -> None:
    layout = Layout.packed(torch.tensor([7, 3]), 7, device)
    module, (time, mag, err, _) = embed(64, FIELDS, device), points(layout, device)
    with af.backend("reference"):
        expected = ops.input_embed(module, time, mag, err, None, layout)
    with af.backend(fused):
        got = ops.input_embed(module, time, mag, err, None, layout)
    torch.testing.assert_close(layout.leave(got), layout.leave(expected))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_sinusoids_of_large_times(scale: float, fused: str, device: torch.device) -> None:
    """In float32 the angles are the same numbers, however large, so only their sines and cosines can differ."""
    torch.manual_seed(0)
    layout = Layout.packed(torch.tensor([64]), 64, device)
    module, (_, mag, err, _) = embed(64, (), device), points(layout, device)
    near_zeros = torch.pi * torch.arange(-16, 16, device=device) * round(scale / 50 + 1)
    time = torch.cat([near_zeros, scale * (2 * torch.rand(32, device=device) - 1)])
    with af.backend("reference"):
        expected = ops.input_embed(module, time, mag, err, None, layout)
    with af.backend(fused):
        got = ops.input_embed(module, time, mag, err, None, layout)
    torch.testing.assert_close(got, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("rows", [0, 40])
def test_no_real_point_at_all(rows: int, fused: str, device: torch.device) -> None:
    layout = Layout.packed(torch.tensor([0, 0]), 20, device, capacity=rows)
    nothing = torch.full((rows,), float("nan"), device=device)
    module = embed(64, FIELDS, device)
    with af.backend(fused):
        y = ops.input_embed(module, nothing, nothing, nothing, None, layout)
    y.sum().backward()
    assert y.shape == (rows, 64)
    assert not y.any()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_gradients_of_the_points(fused: str, device: torch.device) -> None:
    layout = Layout.packed(torch.tensor([9, 4]), 9, device)
    module, (time, mag, err, hidden) = embed(64, ("magnitude",), device), points(layout, device)
    found = []
    for name in ("reference", fused):
        inputs = [x.clone().requires_grad_() for x in (time, mag, err)]
        with af.backend(name):
            ops.input_embed(module, *inputs, hidden, layout)[harness.real_rows(layout)].square().sum().backward()
        found.append([x.grad for x in inputs])
    for expected, got in zip(*found, strict=True):
        assert expected is not None
        torch.testing.assert_close(got, expected)
