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


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_scores_without_a_limit(isa: str, dtype: torch.dtype) -> None:
    """Softmax of scores of 1e12 and more chooses one value, as the reference's does."""
    torch.manual_seed(0)
    module, layout = Attention(64, 1, 0.0).eval(), Layout.packed(torch.tensor([1] * 40 + [33]), 33)
    module.qkv.weight.data[:128] *= 1e6
    with torch.no_grad(), af.backend("cpu"), in_dtype(dtype):
        assert torch.isfinite(ops.attention(module, torch.randn(layout.rows, 64), layout)).all()


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


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("width", "heads"), [(64, 1), (276, 4), (64, 2), (92, 4)], ids=["64", "69", "32", "23"])
def test_backward_for_every_size_of_heads(isa: str, width: int, heads: int, dtype: torch.dtype) -> None:
    """Ragged windows end in every part of a tile, of a vector and of a group of queries; filler may hold anything."""
    layout = Layout.packed(torch.tensor([1, 31, 0, 32, 33, 199, 200, 201, 257]), 257, capacity=960)
    real = harness.real_rows(layout)[:, None]

    def draw(number: int) -> tuple[harness.Draw, Tensor]:
        torch.manual_seed(number)
        module = Attention(width, heads, 0.0)
        x, up = (torch.randn(layout.rows, width) * real for _ in range(2))
        found = harness.variants(
            lambda module, x: ops.attention(module, x, layout),
            module,
            [x.requires_grad_()],
            [up],
            dtype,
            "cpu",
            fused_inputs=[x.detach().masked_fill(~real, float("nan")).requires_grad_()],
            fused_upstream=[up.masked_fill(~real, float("nan"))],
        )
        return found, harness.real_rows(layout)

    harness.check(draw)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_the_gradient_of_a_window_does_not_depend_on_the_others(isa: str, dtype: torch.dtype) -> None:
    """Neither on where it lies among them, nor on what they hold: it has the same bits."""
    torch.manual_seed(0)
    module, lengths = Attention(WIDTH, 3, 0.0), [33, 0, 100, 7, 31]
    windows, ups = ([torch.randn(n, WIDTH) for n in lengths] for _ in range(2))

    def gradients(which: list[int]) -> list[Tensor]:
        rows = sum(lengths[i] for i in which)
        layout = Layout.packed(torch.tensor([lengths[i] for i in which]), 100, capacity=rows)
        x = torch.cat([windows[i] for i in which]).requires_grad_()
        y = ops.attention(module, x, layout)
        (found,) = torch.autograd.grad(y, x, torch.cat([ups[i] for i in which]))
        return list(found.split([lengths[i] for i in which]))

    with af.backend("cpu"), in_dtype(dtype):
        together = gradients([0, 1, 2, 3, 4])
        for i in (0, 2, 3, 4):
            assert torch.equal(gradients([i])[0], together[i])
        windows[2].fill_(float("nan"))
        among_nan = gradients([4, 3, 2, 1, 0])[::-1]
    assert among_nan[2].isnan().all()
    for i in (0, 3, 4):
        assert torch.equal(among_nan[i], together[i])


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
