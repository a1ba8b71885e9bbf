"""Products of BFloat16 on the CPU, by each instruction set that has them: AMX's tiles, and AVX-512's vectors."""

import copy

import pytest
import torch
from torch import Tensor

import astroco_fast as af
from astroco_fast import Layout, ops
from astroco_fast.kernels.cpu import build
from astroco_fast.kernels.tensors import pitch
from astroco_fast.reference.sublayers import Attention, Convolution, FeedForward
from tests.kernels import harness
from tests.kernels.harness import Case
from tests.kernels.test_sublayers import SUBLAYERS, check

HALF = torch.bfloat16


def half_rows(rows: int, width: int) -> Tensor:
    """Random half rows (rows, pitch(width))."""
    x = torch.zeros(rows, pitch(width), dtype=HALF)
    x[:, :width] = torch.randn(rows, width)
    return x


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 65, 290])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 33), (70, 64), (276, 100)])
def test_gradients_of_matrices(isa: str, rows: int, n: int, k: int) -> None:
    """Products of bfloat16 numbers are exact in float32, so that only the sums are rounded."""
    from astroco_fast.kernels.cpu.weights import cpu_weight_gradient

    torch.manual_seed(rows)
    y, x = half_rows(rows, n), half_rows(rows, k)
    exact = y[:, :n].double().t() @ x[:, :k].double()
    found = cpu_weight_gradient(y, x, n, k, torch.tensor([[0], [rows]]))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * rows)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp32"])
@pytest.mark.parametrize("width", [36, 64, 100])
def test_a_row_has_the_same_bits_wherever_it_lies(isa: str, width: int, precision: str) -> None:
    """The last rows of a batch, which do not fill a tile or a micro-kernel, are computed as the others are."""
    torch.manual_seed(0)
    module, x = FeedForward(width, 4, 0.0).eval(), torch.randn(70, width)
    cast = torch.autocast("cpu", HALF, enabled=precision != "fp32")

    def of(part: Tensor) -> Tensor:
        return ops.feed_forward(module, part, Layout.packed(torch.tensor([len(part)]), len(part)))

    with torch.no_grad(), af.backend("cpu"), cast, af.int8(precision == "int8"):
        whole = of(x)
        for n in range(1, 70):
            assert torch.equal(of(x[:n]), whole[:n])
            assert torch.equal(of(x[n:]), whole[n:])


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp32"])
@pytest.mark.parametrize("width", [36, 100])
def test_a_window_has_the_same_bits_whatever_lies_beside_it(isa: str, width: int, precision: str) -> None:
    """Above all the scale of a row in int8, beside rows of a hundred times its size."""
    torch.manual_seed(0)
    lengths = [1, 3, 33, 1, 50, 17]
    x = torch.randn(sum(lengths), width) * torch.logspace(-1, 1, sum(lengths))[:, None]
    cast = torch.autocast("cpu", HALF, enabled=precision != "fp32")

    def layout(*lengths: int) -> Layout:
        return Layout.packed(torch.tensor(lengths), max(lengths), capacity=sum(lengths))

    for op, module in (ops.attention, Attention(width, 4, 0.0)), (ops.convolution, Convolution(width, 5, 0.0)):
        with torch.no_grad(), af.backend("cpu"), cast, af.int8(precision == "int8"):
            whole = op(module.eval(), x, layout(*lengths)).split(lengths)
            for part, found in zip(x.split(lengths), whole, strict=True):
                assert torch.equal(op(module, part, layout(len(part))), found)


@pytest.mark.parametrize("size", [30.0, 3e3, 3e37])
def test_gates_far_from_zero(isa: str, size: float) -> None:
    """Exponentials of float32 that overflow or vanish leave gates that are open or shut, as PyTorch's."""
    torch.manual_seed(0)
    module, x = FeedForward(36, 4, 0.0).eval(), torch.randn(70, 36)
    with torch.no_grad(), af.backend("cpu"):
        module.w_gate.weight *= size
        module.w_val.weight *= min(size, 1e4)
        layout = Layout.packed(torch.tensor([70]), 70)
        found, exact = ops.feed_forward(module, x, layout), copy.deepcopy(module).double()(x.double(), layout)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_beside_products_of_pytorch(isa: str, threads: None, count: int) -> None:
    """Both set up the same tile registers in the same threads, and neither may count on what the other left in them."""
    torch.manual_seed(0)
    torch.set_num_threads(count)
    factors = [torch.randn(size, 96, dtype=HALF) for size in (33, 256)]
    module, layout = FeedForward(100, 4, 0.0), Layout.packed(torch.tensor([150, 7]), 150)
    inputs = [torch.randn(layout.rows, 100).requires_grad_(), *module.parameters()]

    def ours() -> list[Tensor]:
        with af.backend("cpu"), torch.autocast("cpu", HALF):
            y = ops.feed_forward(module, inputs[0], layout)
        return [y, *torch.autograd.grad(y.square().sum(), inputs)]

    def theirs() -> list[Tensor]:
        return [a @ b.t() for a in factors for b in factors]

    calls = (ours, theirs)
    alone = [call() for call in calls]
    for _ in range(5):
        for call, expected in zip(calls, alone, strict=True):
            for one, other in zip(call(), expected, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("case", [case for case in harness.pairwise() if case.dtype == HALF], ids=harness.name)
@pytest.mark.parametrize("op", SUBLAYERS)
@pytest.mark.parametrize("isa", [name for name in build.isas()[1:] if name.endswith("bf16")], indirect=True)
def test_sublayers(isa: str, op: str, case: Case) -> None:
    """`test_sublayer` has the best instruction set only."""
    check(op, case, "cpu", torch.device("cpu"))
