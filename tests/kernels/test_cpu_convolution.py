"""The CPU's convolution: any number of taps, windows shared by threads, statistics joined from parts."""

import copy

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.reference.sublayers import Convolution
from tests.kernels import harness

WIDTH = 36


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 7, 9, 128])
def test_any_number_of_taps(cpu: None, taps: int, gradients: bool) -> None:
    torch.manual_seed(taps)
    module = Convolution(WIDTH, taps, 0.0).train(gradients)
    layout = Layout.packed(torch.tensor([21, 3, 70]), 70)
    x = torch.randn(layout.rows, WIDTH)
    real = harness.real_rows(layout)[:, None]
    found = harness.variants(
        lambda module, x: ops.convolution(module, x, layout),
        module,
        [x.masked_fill(~real, 0).requires_grad_(gradients)],
        [torch.randn_like(x) * real] if gradients else None,
        torch.float32,
        "cpu",
    )
    harness.assert_close(found, real=harness.real_rows(layout))


def results(module: Convolution, x: Tensor, layout: Layout, count: int) -> list[Tensor]:
    """The output in inference, then training's gradients of x and of all parameters."""
    torch.set_num_threads(count)
    module = copy.deepcopy(module)  # its statistics will change
    with af.backend("cpu"):
        with torch.no_grad():
            found = [ops.convolution(module.eval(), x, layout)]
        inputs = [x.requires_grad_(), *module.parameters()]
        out = ops.convolution(module.train(), x, layout)
        return found + list(torch.autograd.grad(out.square().sum(), inputs))


@pytest.mark.parametrize("lengths", [[150], [150, 7, 0, 33], [5] * 9 + [150]], ids=["one", "few", "many"])
def test_threads_that_share_windows_give_what_one_gives(cpu: None, threads: None, lengths: list[int]) -> None:
    torch.manual_seed(0)
    module = Convolution(WIDTH, 32, 0.0)
    layout = Layout.packed(torch.tensor(lengths), 150)
    x = torch.randn(layout.rows, WIDTH)
    alone = results(module, x, layout, 1)
    for count in (2, 3, 7):
        for one, several in zip(alone, results(module, x, layout, count), strict=True):
            torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def test_statistics_joined_from_parts(cpu: None) -> None:
    """The mean is 10,000 standard deviations from zero; parts without rows may hold any numbers."""
    from astroco_fast.kernels.cpu.convolution import cpu_batch_norm_merge

    torch.manual_seed(0)
    sizes = [50, 0, 1, 200]
    parts = [1e4 + torch.randn(size, 32, dtype=torch.float64) for size in sizes]
    partial = torch.full((4, 3, 32), float("nan"))
    for i, part in enumerate(parts):
        if len(part):
            mean = part.mean(0)
            partial[i, 0] = mean
            partial[i, 1] = mean - partial[i, 0].double()
            partial[i, 2] = (part - mean).square().sum(0)
    running = torch.zeros(20), torch.ones(20), torch.tensor(3)
    total, statistics = cpu_batch_norm_merge(torch.tensor(sizes).float(), partial, *running, 0.1, 0.0)
    rows = torch.cat(parts)
    assert total.item() == 251
    torch.testing.assert_close(statistics[0].double() + statistics[1].double(), rows.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(statistics[3], rows.std(0, correction=0).reciprocal().float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(running[0], 0.1 * rows.mean(0)[:20].float())
    torch.testing.assert_close(running[1], 0.9 + 0.1 * rows.var(0)[:20].float())
    assert running[2].item() == 4
