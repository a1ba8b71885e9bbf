"""Every backend's layer mix and pool against the reference."""

import weakref
from collections.abc import Iterator
from zlib import crc32

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.reference.sublayers import LastLayer, LayerMix
from tests.kernels import harness
from tests.kernels.harness import Case

LAYERS = (1, 4, 6)  # tiny has 2, S 4, L 12


def mix_of(layers: int, device: torch.device) -> LayerMix:
    module = LayerMix(layers).to(device)
    torch.nn.init.normal_(module.logits)
    return module


def drawn(case: Case, fused: str, device: torch.device, number: int) -> tuple[harness.Draw, Tensor]:
    """The results of one draw, and the rows that are real points, (N,) bool."""
    case = harness.fitting(case, fused)
    torch.manual_seed(crc32(repr(case).encode()) + number)
    layers = LAYERS[crc32(repr(case).encode()) % len(LAYERS)]
    layout = harness.layout_of(case, device)
    real = harness.real_rows(layout)[:, None]
    gradients = case.mode != "inference"
    states = [torch.randn(layout.rows, case.width, device=device) for _ in range(layers + 1)]
    ups = [harness.upstream(case, n, device) for n in (layout.rows, layout.batch)]
    poisoned = [x.masked_fill(~real, float("nan")) for x in states]
    poisoned = [harness.sliced(x) for x in poisoned] if case.strides == "sliced" else poisoned
    poisoned_ups = ups if case.strides == "expanded" else [ups[0].masked_fill(~real, float("nan")), ups[1]]
    results = harness.variants(
        lambda module, *states: ops.mix_pool(module, iter(states), layout),
        mix_of(layers, device).train(case.mode == "training"),
        [x.masked_fill(~real, 0).requires_grad_(gradients) for x in states],
        [ups[0] * real, ups[1]] if gradients else None,
        case.dtype,
        fused,
        fused_inputs=[x.requires_grad_(gradients) for x in poisoned],
        fused_upstream=poisoned_ups if gradients else None,
    )
    return results, harness.real_rows(layout)


def check(case: Case, fused: str, device: torch.device) -> None:
    harness.check(lambda number: drawn(case, fused, device, number))


@pytest.mark.parametrize(("fused", "case"), harness.cases(), indirect=["fused"])
def test_mix_pool(case: Case, fused: str, device: torch.device) -> None:
    check(case, fused, device)


@pytest.mark.slow
@pytest.mark.parametrize("shape", harness.SHAPES, ids=str)
def test_mix_pool_everywhere(shape: tuple[int, int], fused: str, device: torch.device) -> None:
    harness.check_shape(shape, lambda case: check(case, fused, device))


@pytest.mark.parametrize("used", [0, 1])
def test_gradient_of_one_output_only(used: int, fused: str, device: torch.device) -> None:
    layout = Layout.packed(torch.tensor([3, 0, 5]), 5, device, capacity=8)
    up = torch.randn((layout.rows, layout.batch)[used], 64, device=device)
    found = harness.variants(
        lambda module, *states: ops.mix_pool(module, states, layout)[used],
        mix_of(2, device),
        [torch.randn(layout.rows, 64, device=device).requires_grad_() for _ in range(3)],
        [up],
        torch.float32,
        fused,
    )
    harness.assert_close(found)


def test_gradient_of_late_states_only(fused: str, device: torch.device) -> None:
    """Only late states need gradients where the last blocks are tuned and all others are frozen."""
    layout = Layout.packed(torch.tensor([3, 5]), 5, device, capacity=8)
    module = mix_of(3, device).requires_grad_(False)
    found = harness.variants(
        lambda module, *states: ops.mix_pool(module, states, layout),
        module,
        [torch.randn(layout.rows, 64, device=device).requires_grad_(i >= 2) for i in range(4)],
        [torch.randn(n, 64, device=device) for n in (layout.rows, layout.batch)],
        torch.float32,
        fused,
    )
    harness.assert_close(found)


def test_inference_keeps_few_states(fused: str, device: torch.device) -> None:
    """While a state is computed, the one before it is there, and on GPUs those that wait for the launch of five."""
    layout = Layout.packed(torch.tensor([3, 5]), 5, device)
    made: list[weakref.ref[Tensor]] = []
    most = 4 if fused == "triton" else 1

    def states() -> Iterator[Tensor]:
        counts = []
        for _ in range(12):
            counts.append(sum(state() is not None for state in made))
            x = torch.randn(layout.rows, 64, device=device)
            made.append(weakref.ref(x))
            yield x
            del x
        assert max(counts) == most, counts

    module = mix_of(11, device)
    with af.backend(fused), torch.no_grad():
        ops.mix_pool(module, states(), layout)
    with af.backend(fused):  # also without `no_grad`, if no parameter needs a gradient
        ops.mix_pool(module.requires_grad_(False), states(), layout)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("gradients", [True, False])
def test_states_and_logits_must_agree_in_number(count: int, gradients: bool, fused: str, device: torch.device) -> None:
    layout = Layout.packed(torch.tensor([4]), 4, device)
    states = [torch.randn(layout.rows, 64, device=device)] * count
    with af.backend(fused), torch.set_grad_enabled(gradients), pytest.raises(ValueError):
        ops.mix_pool(mix_of(2, device), states, layout)


def test_last_layer(fused: str, device: torch.device) -> None:
    layout = Layout.packed(torch.tensor([3, 0]), 4, device)
    states = [torch.randn(layout.rows, 64, device=device) for _ in range(3)]
    with af.backend(fused):
        sequence, embedding = ops.mix_pool(LastLayer(), states, layout)
    assert torch.equal(sequence, states[-1])
    torch.testing.assert_close(embedding, torch.stack([states[-1][:3].mean(0), torch.zeros(64, device=device)]))
