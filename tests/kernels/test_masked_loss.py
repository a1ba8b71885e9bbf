"""Every backend's masked loss against the reference."""

from zlib import crc32

import pytest
import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import ops
from astroco_fast.reference.loss import masked_loss as reference
from tests.kernels import harness
from tests.kernels.harness import AXES

ROLES = (torch.uint8, torch.int8, torch.int32, torch.int64)


def batch(length: int, windows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and role; the first window has no probed point."""
    prediction, target = (torch.randn(windows, length, device=device) for _ in range(2))
    role = torch.randint(0, 4, (windows, length), device=device)
    role[0] = 0
    return prediction, target, role


def transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


@pytest.mark.parametrize("length", [*AXES["length"], 300])
@pytest.mark.parametrize("strides", AXES["strides"])
@pytest.mark.parametrize("gradients", [True, False])
def test_masked_loss(length: int, strides: str, gradients: bool, fused: str, device: torch.device) -> None:
    torch.manual_seed(crc32(repr((length, strides, gradients)).encode()))
    prediction, target, role = batch(length, 3, device)
    poisoned = [x.masked_fill(role == 0, float("nan")) for x in (prediction, target)]
    if strides == "sliced":
        poisoned = [harness.sliced(poisoned[0]), transposed(poisoned[1])]
    role = role.to(ROLES[length % len(ROLES)])
    up = torch.randn(3, 3, device=device) if strides != "expanded" else torch.randn((), device=device).expand(3, 3)

    def call(module: nn.Module, prediction: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        squared, count = ops.masked_loss(prediction, target, role if strides != "sliced" else transposed(role))
        assert not count.requires_grad
        return squared if gradients else (squared, count)

    found = harness.variants(
        call,
        nn.Module(),
        [x.requires_grad_(gradients) for x in (prediction, target)],
        [up] if gradients else None,
        torch.float32,
        fused,
        fused_inputs=[x.requires_grad_(gradients) for x in poisoned],
    )
    harness.assert_close(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [(True, False), (True, True), (False, True)])
def test_predictions_in_half_precision(
    dtype: torch.dtype, wanted: tuple[bool, bool], fused: str, device: torch.device
) -> None:
    torch.manual_seed(0)
    prediction, target, role = batch(37, 3, device)
    results = []
    for call in (reference, ops.masked_loss):
        inputs = [x.detach().requires_grad_(w) for x, w in zip((prediction.to(dtype), target), wanted, strict=True)]
        with af.backend(fused):
            squared, count = call(*inputs, role)
        assert squared.dtype == count.dtype == torch.float32
        squared.square().sum().backward()
        results.append((squared, count, *[x.grad for x in inputs if x.requires_grad]))
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_masked_loss_of_an_empty_batch(shape: tuple[int, int], fused: str, device: torch.device) -> None:
    nothing = torch.zeros(shape, device=device)
    with af.backend(fused):
        squared, count = ops.masked_loss(nothing, nothing, nothing.long())
    assert squared.shape == count.shape == (shape[0], 3)
    assert not squared.any()
    assert not count.any()


def test_float64_stays_float64(fused: str, device: torch.device) -> None:
    prediction, target, role = batch(5, 2, device)
    with af.backend(fused):
        squared, count = ops.masked_loss(prediction.double(), target.double(), role)
    assert squared.dtype == count.dtype == torch.float64
