"""A module's parts in another mode than the module: Monte-Carlo dropout, frozen or live BatchNorm."""

import pytest
import torch

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward

MODULES = {
    "attention": lambda: Attention(64, 4, 0.5),
    "convolution": lambda: Convolution(64, 5, 0.5),
    "feed_forward": lambda: FeedForward(64, 2, 0.5),
}


def run(op: str, module: torch.nn.Module, x: torch.Tensor, backend: str) -> torch.Tensor:
    layout = Layout.packed(torch.tensor([7]), 7, x.device)
    with af.backend(backend), torch.no_grad():
        return getattr(ops, op)(module, x, layout)


@pytest.mark.parametrize("op", MODULES)
def test_dropout_alone_in_training(op: str, fused: str, device: torch.device) -> None:
    module = MODULES[op]().to(device).eval()
    x = torch.randn(7, 64, device=device)
    still = run(op, module, x, fused)
    assert torch.equal(run(op, module, x, fused), still)
    module.dropout.train()
    assert not torch.equal(run(op, module, x, fused), run(op, module, x, fused))


@pytest.mark.parametrize("op", MODULES)
def test_dropout_alone_in_evaluation(op: str, fused: str, device: torch.device) -> None:
    module = MODULES[op]().to(device).train()
    module.dropout.eval()
    x = torch.randn(7, 64, device=device)
    assert torch.equal(run(op, module, x, fused), run(op, module, x, fused))


def test_batch_norm_alone_in_training(fused: str, device: torch.device) -> None:
    module = Convolution(64, 5, 0.5).to(device).eval()
    module.batch_norm.train()
    x = torch.randn(7, 64, device=device)
    before = module.batch_norm.running_mean.clone()
    got = run("convolution", module, x, fused)
    assert not torch.equal(module.batch_norm.running_mean, before)
    torch.testing.assert_close(got, run("convolution", module, x, "reference"), rtol=1e-4, atol=1e-4)
