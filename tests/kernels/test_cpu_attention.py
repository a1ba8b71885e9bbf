"""The CPU's attention: windows shared by threads, widths and heads at the limits, long windows, concurrent callers."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.kernels import cpu as backend
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward
from tests.kernels import harness

WIDTH = 36
HALF = torch.bfloat16
SUBLAYERS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Attention(WIDTH, 3, 0.0),
    "convolution": lambda: Convolution(WIDTH, 32, 0.0),
    "feed_forward": lambda: FeedForward(WIDTH, 4, 0.0),
}


def in_dtype(dtype: torch.dtype) -> torch.autocast:
    """A context that computes in this dtype; the test is skipped if this CPU has no kernels for it."""
    if backend.lacking(dtype) is not None:
        pytest.skip(f"no kernels for {dtype} here")
    return torch.autocast("cpu", dtype=HALF, enabled=dtype == HALF)


def results(op: str, module: nn.Module, x: Tensor, layout: Layout, count: int) -> list[Tensor]:
    """The output in inference, then training's gradients of x and of all parameters, computed by `count` threads."""
    torch.set_num_threads(count)
    module = copy.deepcopy(module)  # BatchNorm's statistics change
    with torch.no_grad():
        found = [getattr(ops, op)(module.eval(), x, layout)]
    inputs = [x.detach().requires_grad_(), *module.parameters()]
    out = getattr(ops, op)(module.train(), inputs[0], layout)
    return found + list(torch.autograd.grad(out.square().sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("lengths", [[150], [150, 7, 0, 33], [5] * 9 + [150]], ids=["one", "few", "many"])
def test_threads_that_share_windows_give_what_one_gives(
    cpu: str, threads: None, lengths: list[int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module, layout = Attention(WIDTH, 3, 0.0), Layout.packed(torch.tensor(lengths), 150)
    x = torch.randn(layout.rows, WIDTH)
    close = 1e-4 if dtype == torch.float32 else 0.02
    with af.backend(cpu), in_dtype(dtype):
        alone = results("attention", module, x, layout, 1)
        for count in (2, 3, 7):
            for one, several in zip(alone, results("attention", module, x, layout, count), strict=True):
                torch.testing.assert_close(several, one, rtol=close, atol=close * one.abs().max().item())


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("width", "heads", "lengths"),
    [(20, 5, [300, 41]), (20, 1, [1300, 97]), (1024, 4, [49, 3]), (512, 2, [300]), (64, 4, [1300])],
)
def test_widths_and_lengths_at_the_limits(
    cpu: str, width: int, heads: int, lengths: list[int], dtype: torch.dtype, gradients: bool
) -> None:
    in_dtype(dtype)
    torch.manual_seed(width)
    module = Attention(width, heads, 0.0).train(gradients)
    layout = Layout.packed(torch.tensor(lengths), max(lengths))
    real = harness.real_rows(layout)[:, None]
    x = torch.randn(layout.rows, width) * real
    found = harness.variants(
        lambda module, x: ops.attention(module, x, layout),
        module,
        [x.requires_grad_(gradients)],
        [torch.randn_like(x) * real] if gradients else None,
        dtype,
        cpu,
    )
    harness.assert_close(found, real=harness.real_rows(layout))


@pytest.mark.parametrize("op", SUBLAYERS)
def test_results_are_bitwise_reproducible(cpu: str, threads: None, op: str) -> None:
    """The result does not depend on which thread computes which part."""
    torch.manual_seed(0)
    module, layout = SUBLAYERS[op](), Layout.packed(torch.tensor([150, 7, 0, 33, 101]), 150)
    x = torch.randn(layout.rows, WIDTH)
    with af.backend(cpu):
        first = results(op, module, x, layout, 2)
        for _ in range(5):
            for before, after in zip(first, results(op, module, x, layout, 2), strict=True):
                assert torch.equal(before, after)


@pytest.mark.parametrize("op", SUBLAYERS)
def test_concurrent_callers(cpu: str, threads: None, op: str) -> None:
    """Each caller has its own threads, and batches of another size."""
    torch.manual_seed(0)
    module = SUBLAYERS[op]().eval()
    layouts = [Layout.packed(torch.tensor(lengths), 150) for lengths in ([150], [7, 33], [101, 0, 5], [64] * 4)]
    inputs = [torch.randn(layout.rows, WIDTH) for layout in layouts]

    def run(number: int) -> Tensor:
        torch.set_num_threads(2)  # a setting of the calling thread alone
        with torch.no_grad():
            return getattr(ops, op)(module, inputs[number % 4], layouts[number % 4])

    with af.backend(cpu):
        expected = [run(number) for number in range(4)]
        with ThreadPoolExecutor(4) as pool:
            for number, found in enumerate(pool.map(run, range(80))):
                assert torch.equal(found, expected[number % 4])
