"""N ranks, with accumulation and unequal shares, compute the gradient of one process with the whole batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from astroco_fast import registry
from astroco_fast.data.batches import WindowBatches
from astroco_fast.data.store import Store
from astroco_fast.data.training import micro_batches, upload
from astroco_fast.data.windows import window_table
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.loop import accumulate, update
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Requests, Trainer
from tests.pretrain.processes import on_ranks

WINDOW = 24
ELEVEN = range(3, 14)  # 2 ranks get 6 and 5 windows; 3 ranks 4, 4 and 3
SMALL = {"width": 16, "heads": 2, "layers": 2, "kernel": 4, "window": WINDOW, "dropout": 0.0}


def build(convolution: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return registry.build("tiny", **SMALL, convolution=convolution).double()


def assembler(path: Path) -> WindowBatches:
    store = Store.open(path, verify=False)
    return WindowBatches(store, window_table(store.offsets, WINDOW), WINDOW, seed=1)


def whole_batch(path: Path, loss: str, convolution: bool, windows: range) -> tuple[float, dict[str, Tensor]]:
    """The loss by its definition and its gradient, from one forward pass over all windows."""
    model = build(convolution).train()
    batch = upload(assembler(path).assemble(windows, 1), torch.device("cpu"))
    positional, keywords = batch.inputs()
    prediction = model(*positional, **keywords).reconstruction
    probed = batch.role > 0
    squared = (prediction - batch.target.double()).square().where(probed, torch.zeros(()).double())
    if loss == "batch":
        value = (squared.sum() / probed.sum()).sqrt()
    else:
        some = probed.any(1)
        value = (squared.sum(1)[some] / probed.sum(1)[some]).sqrt().mean()
    value.backward()
    return value.item(), {name: p.grad for name, p in model.named_parameters()}


def by_trainer(
    path: str, loss: str, convolution: bool, micro: int, windows: range
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss, and the gradient that the trainer passes to the optimiser on this rank."""
    ranks = Ranks.start("cpu")
    settings = {"learning_rate": 1e-3, "warmup_steps": 0, "clip_norm": None, "precision": "fp32"}
    config = TrainConfig(loss=loss, sync_batchnorm=True, **settings)
    trainer = Trainer(build(convolution), config, ranks, seed=0)
    gradients = {}

    def keep() -> None:
        gradients.update({name: p.grad.numpy().copy() for name, p in trainer.model.named_parameters()})

    trainer.optimizer.step = keep
    batches = assembler(Path(path))
    share = [batches.assemble(piece, 1) for piece in micro_batches(np.array(windows), ranks.rank, ranks.world, micro)]
    result = accumulate(trainer, [upload(batch, ranks.device) for batch in share], 0, Requests(), lambda: False)
    assert result is not None
    assert result.is_finite
    update(trainer, result, 0)
    norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients.values()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-9)
    ranks.close()
    return result.loss, gradients


@pytest.mark.parametrize(
    ("loss", "world"),
    [
        ("batch", None),
        ("batch", 3),
        ("curve", 2),
        pytest.param("batch", 2, marks=pytest.mark.slow),
        pytest.param("curve", None, marks=pytest.mark.slow),
        pytest.param("curve", 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("convolution", "micro", "windows"),
    [
        (True, 100, ELEVEN),  # one pass a rank, BatchNorm synchronised and in training mode
        (False, 3, ELEVEN),  # accumulation, without the convolution, because BatchNorm's statistics are each pass's own
        (True, 100, range(5, 6)),  # one window: the other ranks have none
    ],
)
def test_gradient_is_that_of_the_whole_batch(loss, world, convolution, micro, windows, store, tmp_path):
    value, gradient = whole_batch(store, loss, convolution, windows)
    assert all(g is not None and g.abs().max() > 0 for name, g in gradient.items() if "bias" not in name)
    ended = on_ranks(world, by_trainer, str(store), loss, convolution, micro, windows, tmp_path=tmp_path)
    for rank in ended:
        assert rank.code == 0, rank.err
        found_value, found = rank.value
        assert found_value == pytest.approx(value, rel=1e-12)
        for name, expected in gradient.items():
            scale = expected.abs().max().item() + 1e-6
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-10 * scale, err_msg=name)


def test_averaging_the_ranks_losses_is_wrong(store):
    """The usual mistake, averaging the ranks' own losses, is far off."""
    model = build(False).train()
    batches, losses = assembler(store), []
    for piece in micro_batches(np.array(ELEVEN), 0, 1, 6):
        batch = upload(batches.assemble(piece, 1), torch.device("cpu"))
        positional, keywords = batch.inputs()
        error = model(*positional, **keywords).reconstruction - batch.target
        losses.append(error[batch.role > 0].square().mean().sqrt())
    torch.stack(losses).mean().backward()
    _, gradient = whole_batch(store, "batch", False, ELEVEN)
    name, wrong = next((n, p.grad) for n, p in model.named_parameters() if n.endswith("head.weight"))
    assert (wrong - gradient[name]).abs().max() > 1e-3 * gradient[name].abs().max()
