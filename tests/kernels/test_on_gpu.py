"""What neither Triton's interpreter nor its compiler shows: races, waits, streams, graphs and offsets beyond 2^31.

The other tests of this folder run on a GPU too, where there is one. These do nothing without it.
"""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from astroco_fast import AstroCo, ops
from tests.kernels.conftest import DEVICE
from tests.kernels.test_depthwise import bands_of
from tests.kernels.test_model import shortened

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU"),
    pytest.mark.usefixtures("triton"),
]

FULL = [200] * 32
RAGGED = [37 * i % 201 for i in range(64)]  # 0 to 200
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


class Step:
    """Forward and backward pass of a batch of windows, with the same draws of dropout at every call."""

    def __init__(self, model: AstroCo, lengths: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> None:
        drawn = torch.Generator().manual_seed(0)
        shape = (len(lengths), 200)
        self.points = [torch.randn(shape, generator=drawn).to(DEVICE) for _ in range(3)]
        self.hidden = (torch.rand(shape, generator=drawn) < 0.3).to(DEVICE)
        self.model, self.lengths, self.dtype = model, torch.tensor(lengths), dtype

    def encode(self) -> Tensor:
        with torch.no_grad(), torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(*self.points, lengths=self.lengths, centered=True).embedding

    def gradients(self) -> dict[str, Tensor]:
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.model(*self.points, lengths=self.lengths, hidden=self.hidden, centered=True)
            error, count = ops.masked_loss(out.reconstruction, self.points[1], self.hidden.to(torch.uint8))
        (error.sum() / count.sum() + out.embedding.float().square().mean()).backward()
        return {name: parameter.grad for name, parameter in self.model.named_parameters() if parameter.grad is not None}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@DTYPES
@pytest.mark.parametrize("preset", ["S", "L"])
@pytest.mark.parametrize("lengths", [FULL, RAGGED], ids=["full", "ragged"])
def test_a_step_has_the_same_bits_every_time(lengths: Sequence[int], preset: str, dtype: torch.dtype) -> None:
    model = shortened(preset).to(DEVICE).train()
    state, step = copied(model.state_dict()), Step(model, lengths, dtype)
    found = []
    for _ in range(4):
        model.load_state_dict(state)
        torch.manual_seed(0)
        found.append(copied(step.gradients()))
    for again in found[1:]:
        assert not [name for name, value in again.items() if not torch.equal(value, found[0][name])]


def test_nothing_waits_for_the_gpu() -> None:
    """With given lengths. `test_graphs.py` shows it for what PyTorch dispatches, this for all that calls CUDA."""
    step = Step(shortened("S").to(DEVICE), RAGGED)
    step.model.train()
    step.gradients()
    step.model.eval()
    step.encode()  # kernels are compiled and weights prepared by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.encode()
        step.model.train()
        step.gradients()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def capture() -> Iterator[Callable[[Callable[[], object]], torch.cuda.CUDAGraph]]:
    """A function that warms a call up on another stream and then captures it, as PyTorch's documentation asks."""

    def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph

    yield captured
    torch.cuda.synchronize()


def test_a_captured_step_gives_the_same_gradients(capture: Callable[..., torch.cuda.CUDAGraph]) -> None:
    model = shortened("S", dropout=0.0).to(DEVICE).train()
    state, step = copied(model.state_dict()), Step(model, FULL)
    expected = copied(step.gradients())
    found: dict[str, Tensor] = {}
    graph = capture(lambda: found.update(step.gradients()))
    model.load_state_dict(state)
    graph.replay()
    torch.cuda.synchronize()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_every_replay_draws_its_own_dropout(capture: Callable[..., torch.cuda.CUDAGraph]) -> None:
    step = Step(shortened("tiny", dropout=0.5).to(DEVICE).train(), FULL)
    made: list[Tensor] = []
    graph = capture(lambda: made.append(step.encode()))
    graph.replay()
    first = made[-1].clone()
    graph.replay()
    assert not torch.equal(first, made[-1])


def test_another_stream_waits_for_prepared_weights() -> None:
    step, side = Step(shortened("S").to(DEVICE).eval(), RAGGED), torch.cuda.Stream()
    step.encode()
    for _ in range(5):
        with torch.no_grad():
            for parameter in step.model.parameters():
                parameter.mul_(1.01)
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # the first stream's weights are prepared after it, in 10 ms
        first = step.encode()
        with torch.cuda.stream(side):
            second = step.encode()
        torch.cuda.synchronize()
        torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_rows_beyond_32_bits() -> None:
    from astroco_fast.kernels.triton.depthwise import depthwise_silu
    from astroco_fast.kernels.triton.linear import linear, rows_with_ones

    rows, width, last = 8_500_000, 256, 512  # 2.2e9 elements
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("it takes 40 GB")
    x = torch.randn(rows, width, device=DEVICE)
    end = torch.full((rows,), rows, dtype=torch.int32, device=DEVICE)
    matrix, bias = (torch.randn(width, width, device=DEVICE) / 16).bfloat16(), torch.randn(width, device=DEVICE)
    tail, _ = linear(x[-last:].contiguous(), matrix, bias, end[-last:], False)
    assert torch.equal(linear(x, matrix, bias, end, False)[0][-last:], tail)
    assert torch.equal(rows_with_ones(x, end, torch.bfloat16)[-last:, :width], x[-last:].bfloat16())
    half = x.bfloat16()
    del x

    first = torch.zeros_like(end)
    first[-last:] = rows - last  # the last window
    bands = bands_of(torch.randn(width, 32, device=DEVICE), torch.bfloat16)[0]
    alone = torch.zeros(last, dtype=torch.int32, device=DEVICE)
    tiles = torch.arange(0, rows, 16, dtype=torch.int32, device=DEVICE)
    found = depthwise_silu(half, bands, bias, bias, tiles, first, end, 32)[-last:]
    tiles = tiles[: last // 16]
    expected = depthwise_silu(half[-last:].contiguous(), bands, bias, bias, tiles, alone, alone + last, 32)
    assert torch.equal(found, expected)
