"""The encoder on a GPU: encoding and a training step, by fused ops, plain PyTorch and `torch.compile`, all in bf16.

    pytest bench/bench_encoder.py --benchmark-only

Each benchmark interleaves its rounds with rounds of eager PyTorch in the same process and records the ratio of medians;
a provider whose result is off is not timed. Skipped without a GPU.
"""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import astroco_fast as af

BATCH, LENGTH, ROUNDS = 256, 200, 20
DEVICE = torch.device("cuda")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def windows(kind: str) -> Inputs:
    """time, mag, err (B, T) on the GPU, and lengths on the CPU: full windows, or half of all points padding."""
    torch.manual_seed(0)
    values = [torch.randn(BATCH, LENGTH, device=DEVICE) for _ in range(3)]
    lengths = torch.full((BATCH,), LENGTH) if kind == "full" else torch.randint(1, LENGTH, (BATCH,))
    return values[0] * 300, values[1], values[2].abs() * 0.1, lengths


def step(model: Any, inputs: Inputs, training: bool) -> Tensor:
    """One forward pass, and the backward pass of a sum of squares if training."""
    time, mag, err, lengths = inputs
    with torch.set_grad_enabled(training), torch.autocast("cuda", dtype=torch.bfloat16):
        out = model(time, mag, err, lengths=lengths, centered=True)
    if training:
        model.zero_grad(set_to_none=True)
        out.reconstruction.square().mean().backward()
    return out.embedding.detach()


def milliseconds(run: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


@pytest.mark.parametrize("provider", ["astroco_fast", "compiled reference"])
@pytest.mark.parametrize("kind", ["full", "ragged"])
@pytest.mark.parametrize("training", [False, True], ids=["encode", "training step"])
@pytest.mark.parametrize("preset", ["S", "L"])
def test_encoder(benchmark: BenchmarkFixture, preset: str, training: bool, kind: str, provider: str) -> None:
    benchmark.group = f"{preset} {'training step' if training else 'encode'}, {kind} windows"
    torch.manual_seed(0)
    model = af.AstroCo.from_preset(preset, dropout=0.0).to(DEVICE).train(training)
    compiled = torch.compile(model) if provider != "astroco_fast" else model
    inputs = windows(kind)

    def eager() -> Tensor:
        with af.backend("reference"):
            return step(model, inputs, training)

    def ours() -> Tensor:
        with af.backend("reference" if provider != "astroco_fast" else "triton"):
            return step(compiled, inputs, training)

    expected = eager()
    torch.testing.assert_close(ours(), expected, rtol=0.1, atol=0.1)  # wrong is not fast
    for run in (eager, ours) * 3:
        run()
    torch.cuda.reset_peak_memory_stats()
    ours()
    peak = torch.cuda.max_memory_allocated() / 1e9
    rounds = [(milliseconds(eager), milliseconds(ours)) for _ in range(ROUNDS)]
    rival, own = (statistics.median(times) for times in zip(*rounds, strict=True))
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(), torch=torch.__version__, dtype="bf16", batch=BATCH, length=LENGTH,
        windows_per_s=BATCH / own * 1e3, ratio_to_eager=rival / own, peak_GB=peak,
    )  # fmt: skip

    def timed() -> None:
        ours()
        torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=1)
