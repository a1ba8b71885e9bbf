"""No op lets numbers of one window reach another, forward or backward, however large or undefined they are."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops

WIDTH, T = 64, 20  # kernels take no narrower model, the reference would run instead
NUMBERS = [float("nan"), 3e38, float("inf"), -float("inf"), -1e30, 1e-45]
QUIET = [9, 0, T, 1, 3, 5, T]  # lengths of the windows that nothing may reach
ROWS_OF_OPS = ["input_embed", "attention", "convolution", "feed_forward", "mix_pool"]


@pytest.fixture(scope="module")
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo(af.AstroCoConfig(width=WIDTH, heads=4, layers=1, window=T)).eval()


def lengths_of(numbers: list[float]) -> list[int]:
    """The quiet windows, and between them a hostile one of 7 points for each number."""
    return [length for quiet in QUIET[: len(numbers)] for length in (quiet, 7)] + QUIET[len(numbers) :][:1]


def layouts(numbers: list[float], device: torch.device) -> Iterator[Layout]:
    lengths = torch.tensor(lengths_of(numbers))
    yield Layout.padded(lengths.to(device), T)
    yield Layout.packed(lengths, T, device, capacity=int(lengths.sum()) + 6)


def windows(layout: Layout, numbers: list[float], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) masks of the rows of hostile windows and of the real rows of all others, and the hostile rows' numbers."""
    real = torch.arange(T, device=device) < torch.tensor(lengths_of(numbers), device=device)[:, None]
    is_hostile = torch.arange(layout.batch, device=device)[:, None] % 2 == 1
    of_window = torch.zeros(layout.batch, T, device=device)
    of_window[1::2] = torch.tensor(numbers, device=device)[:, None]
    return layout.enter(real & is_hostile), layout.enter(real & ~is_hostile), layout.enter(of_window)


def call(op: str, model: af.AstroCo, layout: Layout) -> tuple[int, Callable[..., Tensor]]:
    """How many inputs an op has, rows (N,) or (N, D), and its function of them, to rows."""
    block = model.blocks[0]
    if op == "input_embed":
        return 3, lambda *points: ops.input_embed(model.input_embed, *points, None, layout)
    if op == "mix_pool":
        return 2, lambda *states: ops.mix_pool(model.mix_pool, states, layout)[0]
    return 1, lambda x: getattr(ops, op)(getattr(block, op), x, layout)


def check(op: str, model: af.AstroCo, name: str, device: torch.device, numbers: list[float]) -> None:
    model = model.to(device)
    for layout in layouts(numbers, device):
        hostile, others, of_row = windows(layout, numbers, device)
        inputs, function = call(op, model, layout)
        shape = (layout.rows,) if op == "input_embed" else (layout.rows, WIDTH)
        torch.manual_seed(1)
        tame = [torch.randn(shape, device=device) for _ in range(inputs)]
        upstream = torch.randn(layout.rows, WIDTH, device=device)
        with af.backend(name):
            expected, slopes = forward_and_backward(function, tame, upstream)
            assert all(slope[others].abs().sum() > 0 for slope in slopes)  # or the comparison would say nothing
            wild = [spoilt(x, hostile, of_row) for x in tame]
            out, back = forward_and_backward(function, wild, spoilt(upstream, hostile, of_row))
            assert torch.equal(out[others], expected[others])
            for slope, before in zip(back, slopes, strict=True):
                assert torch.equal(slope[others], before[others])


@pytest.mark.parametrize("op", ROWS_OF_OPS)
def test_no_window_reaches_another(op: str, model: af.AstroCo, fused: str, device: torch.device) -> None:
    interpreted = fused == "triton" and device.type == "cpu"
    check(op, model, fused, device, NUMBERS[:2] if interpreted else NUMBERS)


@pytest.mark.parametrize("op", ROWS_OF_OPS)
def test_no_window_reaches_another_in_plain_pytorch(op: str, model: af.AstroCo, device: torch.device) -> None:
    check(op, model, "reference", device, NUMBERS)


def forward_and_backward(
    function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor
) -> tuple[Tensor, list]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), list(torch.autograd.grad(out, leaves, upstream))


def spoilt(x: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    rows, numbers = (each.view(-1, *[1] * (x.dim() - 1)) for each in (rows, numbers))
    return torch.where(rows, numbers, x)
