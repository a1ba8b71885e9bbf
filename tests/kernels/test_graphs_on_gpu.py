"""CUDA graphs on a GPU, for which `test_capture.py` and `test_step_graphs.py` have fake ones. Nothing without a GPU."""

import pytest
import torch

import astroco_fast as af
from astroco_fast import capture
from astroco_fast.data.training import DeviceBatch
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.loop import accumulate, update
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Requests, Trainer
from tests.kernels.conftest import DEVICE
from tests.kernels.test_model import shortened
from tests.kernels.test_on_gpu import DTYPES, FULL, RAGGED, Step

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU"),
    pytest.mark.usefixtures("triton"),
]

# PyTorch's products of another number of rows may have sums in another order.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "enabled", True)


def plainly(step: Step) -> torch.Tensor:
    capture.enabled = False
    try:
        return step.encode()
    finally:
        capture.enabled = True


@DTYPES
def test_encodes_by_graphs(dtype: torch.dtype) -> None:
    model = shortened("S").to(DEVICE).eval()
    for _ in range(3):  # then other weights, at the same place
        for lengths in (RAGGED, RAGGED, RAGGED[::-1], FULL, FULL, FULL, [0, 3, 200], [0, 3, 200], [200, 1, 0]):
            step = Step(model, lengths, dtype)
            torch.testing.assert_close(step.encode(), plainly(step), rtol=0, atol=TOLERANCE[dtype])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
    assert capture._graphs[model].refusal is None
    assert len(capture._graphs[model].store._graphs) == 3


def test_a_replay_waits_for_nothing() -> None:
    step = Step(shortened("S").to(DEVICE).eval(), RAGGED)
    for _ in range(2):
        step.encode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.encode()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(by_graphs: bool, batches: list[DeviceBatch]) -> tuple[Trainer, list[float]]:
    """A trainer after a step a batch, and its losses."""
    capture.enabled = by_graphs
    torch.manual_seed(0)
    config = TrainConfig(learning_rate=1e-4, warmup_steps=0, precision="bf16", loss="batch", ema_decay=0.9)
    trainer, losses = Trainer(af.AstroCo.from_preset("S"), config, Ranks(0, 1, DEVICE), seed=0), []
    for i, batch in enumerate(batches):
        outcome = accumulate(trainer, [batch], i, Requests(), lambda: False)
        update(trainer, outcome, i)
        losses.append(outcome.loss)
    return trainer, losses


def test_training_by_graphs() -> None:
    """With dropout, whose draws are the same: a replay takes torch's generator as it stands."""
    drawn, batches = torch.Generator().manual_seed(0), []
    for lengths in (RAGGED, RAGGED[::-1]) * 4:
        shape = (len(lengths), 200)
        real = torch.arange(200) < torch.tensor(lengths)[:, None]
        time, mag, err = (torch.randn(shape, generator=drawn).to(DEVICE) for _ in range(3))
        role = (torch.randint(0, 4, shape, generator=drawn) * real).to(torch.uint8).to(DEVICE)
        batches.append(DeviceBatch(time, mag, err, mag, role, torch.tensor(lengths), torch.arange(len(lengths))))
    alone, expected = trained(False, batches)
    by_graphs, got = trained(True, batches)
    assert by_graphs._graphs is not None
    assert not by_graphs._graphs._refused
    assert len(by_graphs._graphs._store._graphs) == 1
    assert all(part.captured for part in by_graphs._fixed._parts.values())
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=0)
    for (name, x), y in zip(by_graphs.model.state_dict().items(), alone.model.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-3, msg=name)
