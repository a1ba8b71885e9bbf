"""A backend's ops in graphs and under recomputation."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import astroco_fast as af
from astroco_fast import AstroCo
from tests.kernels.test_model import LENGTHS, shortened, windows


def loss_of(model: AstroCo, inputs: Any, **options: Any) -> Tensor:
    out = model(*inputs[:3], hidden=inputs[4], **options)
    return out.sequence.square().sum() + out.embedding.sum() + out.reconstruction.square().sum()


class Ops(TorchDispatchMode):
    """The names of all ops that reach the dispatcher with a tensor on `device`."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.seen = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == self.device for tensor in tensors):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

    def waits(self) -> list[str]:
        return [name for name in self.seen if any(word in name for word in SYNCHRONISING)]


SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "aten.equal")


@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_the_device(training: bool, triton: str) -> None:
    """With given lengths, and on tensors without data, reading a value from the device would raise."""
    model = shortened("L").to("meta").train(training)
    inputs = [value.to("meta") for value in windows(torch.device("cpu"))]
    with af.backend(triton), Ops("meta") as ops, torch.set_grad_enabled(training):
        loss = loss_of(model, inputs, lengths=torch.tensor(LENGTHS))
        if training:
            loss.backward()
    assert any("astroco_fast" in name for name in ops.seen)  # the backend's own kernels ran
    assert not ops.waits()


def test_waits_for_the_device_are_recognised() -> None:
    with Ops("cpu") as ops:
        torch.ones(3).nonzero()
        torch.ones(1).item()
    assert len(ops.waits()) == 2


# The CPU's cases show by default what the shorter of Triton's interpreted ones would.
CASES = [("triton", True), pytest.param("triton", False, marks=pytest.mark.slow), ("cpu", True), ("cpu", False)]


@pytest.mark.parametrize(("fused", "training"), CASES, indirect=["fused"])
def test_compiles_whole(training: bool, fused: str, device: torch.device) -> None:
    model = shortened("tiny", layers=1, dropout=0.0).to(device).train(training)
    inputs = windows(device)
    compiled = copy.deepcopy(model)
    with af.backend(fused), torch.set_grad_enabled(training):
        eager = loss_of(model, inputs, mask=inputs[3])
        graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        traced = loss_of(graph, inputs, mask=inputs[3])
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-4)
        if training:
            eager.backward()
            traced.backward()
    for (name, a), b in zip(model.named_parameters(), compiled.parameters(), strict=True):
        if training:
            assert a.grad is not None, name
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-3 * a.grad.abs().max().item(), msg=name)
    for a, b in zip(model.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(b, a)


# The ungated feed-forward runs on the reference, whose dropout draws from torch's generator.
@pytest.mark.parametrize(("fused", "gate"), CASES, indirect=["fused"])
def test_recomputation_drops_what_was_dropped(gate: bool, fused: str, device: torch.device) -> None:
    model = shortened("tiny", layers=1, dropout=0.3, gate=gate).to(device).train()
    again = copy.deepcopy(model)
    again.recompute = True
    inputs = windows(device)
    with af.backend(fused):
        for candidate in (model, again):
            torch.manual_seed(3)
            loss_of(candidate, inputs, mask=inputs[3]).backward()
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for a, b in zip(model.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)  # the recomputation must not update the running statistics


def test_recomputation_leaves_compilers_alone(device: torch.device) -> None:
    model = shortened("tiny", layers=1, dropout=0.0).to(device).train()
    model.recompute = True
    inputs = windows(device)
    graph = torch.compile(model, fullgraph=True, backend="eager")
    with af.backend("reference"):
        torch.testing.assert_close(loss_of(graph, inputs, mask=inputs[3]), loss_of(model, inputs, mask=inputs[3]))
