"""No op lets numbers of one window reach another, forward or backward, however large or undefined they are."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops

LENGTHS = [20, 9, 0, 20, 1]
HOSTILE = 1  # the window whose numbers are hostile
NUMBERS = [float("nan"), 3e38, float("inf"), -float("inf"), -1e30, 1e-45]
WIDTH, T = 64, 20  # kernels take no narrower model, the reference would run instead
ROWS_OF_OPS = ["input_embed", "attention", "convolution", "feed_forward", "mix_pool"]


@pytest.fixture(scope="module")
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo(af.AstroCoConfig(width=WIDTH, heads=4, layers=1, window=T)).eval()


def layouts(device: torch.device) -> Iterator[Layout]:
    yield Layout.padded(torch.tensor(LENGTHS, device=device), T)
    yield Layout.packed(torch.tensor(LENGTHS), T, device, capacity=56)


def windows(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N,) masks of the rows of the hostile window, and of the real rows of all others."""
    real = torch.arange(T, device=device) < torch.tensor(LENGTHS, device=device)[:, None]
    is_hostile = torch.arange(len(LENGTHS), device=device)[:, None] == HOSTILE
    return layout.enter(real & is_hostile), layout.enter(real & ~is_hostile)


def call(op: str, model: af.AstroCo, layout: Layout) -> tuple[int, Callable[..., Tensor]]:
    """How many inputs an op has, rows (N,) or (N, D), and its function of them, to rows."""
    block = model.blocks[0]
    if op == "input_embed":
        return 3, lambda *points: ops.input_embed(model.input_embed, *points, None, layout)
    if op == "mix_pool":
        return 2, lambda *states: ops.mix_pool(model.mix_pool, states, layout)[0]
    return 1, lambda x: getattr(ops, op)(getattr(block, op), x, layout)


@pytest.mark.parametrize("op", ROWS_OF_OPS)
def test_no_window_reaches_another(op: str, model: af.AstroCo, fused: str, device: torch.device) -> None:
    model = model.to(device)
    for name in ("reference", fused):
        for layout in layouts(device):
            hostile, others = windows(layout, device)
            inputs, function = call(op, model, layout)
            shape = (layout.rows,) if op == "input_embed" else (layout.rows, WIDTH)
            torch.manual_seed(1)
            tame = [torch.randn(shape, device=device) for _ in range(inputs)]
            upstream = torch.randn(layout.rows, WIDTH, device=device)
            with af.backend(name):
                expected, slopes = forward_and_backward(function, tame, upstream)
                assert all(slope[others].abs().sum() > 0 for slope in slopes)  # or the comparison would say nothing
                # Triton's interpreter is slow.
                for number in NUMBERS[:2] if fused == "triton" and device.type == "cpu" else NUMBERS:
                    wild = [spoilt(x, hostile, number) for x in tame]
                    out, _ = forward_and_backward(function, wild, upstream)
                    assert torch.equal(out[others], expected[others]), (name, number)
                    _, back = forward_and_backward(function, wild, spoilt(upstream, hostile, number))
                    for slope, before in zip(back, slopes, strict=True):
                        assert torch.equal(slope[others], before[others]), (name, number)


def forward_and_backward(
    function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor
) -> tuple[Tensor, list]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), list(torch.autograd.grad(out, leaves, upstream))


def spoilt(x: Tensor, rows: Tensor, number: float) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (x.dim() - 1)), torch.full_like(x, number), x)
