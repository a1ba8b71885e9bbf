"""Metrics over a whole split are ratios of sums over all ranks and batches."""

import numpy as np
import pytest
import torch

from astroco_fast import registry
from astroco_fast.data.batches import Batch, WindowBatches
from astroco_fast.data.hashing import VALIDATION, split_of
from astroco_fast.data.masking import HIDDEN, RANDOM, UNCHANGED
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.data.windows import window_table
from astroco_fast.pretrain.config import TrainConfig
from astroco_fast.pretrain.evaluate import evaluate, metrics, target_sums, without_err
from astroco_fast.pretrain.ranks import Ranks
from astroco_fast.pretrain.step import Trainer
from tests.pretrain.processes import on_ranks

SMALL = {"width": 16, "heads": 2, "layers": 1, "kernel": 4, "window": 24}
NAMES = {"": (HIDDEN, RANDOM, UNCHANGED), "_hidden": (HIDDEN,), "_random": (RANDOM,), "_unchanged": (UNCHANGED,)}
WITHOUT_ERR = "_hidden_without_err"


def trainer_of(ranks: Ranks) -> Trainer:
    torch.manual_seed(3)
    config = TrainConfig(learning_rate=1e-3, warmup_steps=0, loss="batch", precision="fp32")
    return Trainer(registry.build("tiny", **SMALL), config, ranks, seed=0)


def evaluated(path: str, micro: int) -> dict[str, float]:
    ranks = Ranks.start("cpu")
    store = Store.open(path, verify=False)
    place = {"rank": ranks.rank, "world": ranks.world}
    data = TrainingData(store, size=24, seed=5, global_batch=8, micro_batch=micro, **place)
    found = evaluate(trainer_of(ranks), data, lambda: False)
    ranks.close()
    return found


def by_hand(path: str) -> dict[str, float]:
    """The metrics, computed window by window and point by point."""
    store = Store.open(path)
    table = window_table(store.offsets, 24)
    windows = np.flatnonzero(split_of(store.star_hash)[table.curve] == VALIDATION)
    model = trainer_of(Ranks.start("cpu")).model.eval()
    batches = WindowBatches(store, table, 24, seed=5)
    names = {**NAMES, WITHOUT_ERR: (HIDDEN,)}
    residual, total, trivial, points = (dict.fromkeys(names, 0.0) for _ in range(4))
    for window in windows:
        batch = batches.assemble([window], 0)
        tensors = [torch.from_numpy(a) for a in (batch.time, batch.mag, batch.err)]
        with torch.no_grad():
            hidden = torch.from_numpy(batch.role == HIDDEN)
            mask = torch.arange(24) < int(batch.lengths[0])
            out = model(*tensors, mask[None], hidden=hidden, centered=True).reconstruction[0].numpy()
            shown = [float(batch.err[0, i]) for i in range(int(batch.lengths[0])) if batch.role[0, i] != HIDDEN]
            tensors[2] = torch.where(hidden, float(np.median(shown)), tensors[2])
            told_less = model(*tensors, mask[None], hidden=hidden, centered=True).reconstruction[0].numpy()
        probed = [float(batch.target[0, i]) for i in range(24) if batch.role[0, i] in NAMES[""]]
        mean = sum(probed) / len(probed) if probed else 0
        for name, roles in names.items():
            where = [i for i in range(24) if batch.role[0, i] in roles]
            truth = [float(batch.target[0, i]) for i in where]
            answer = told_less if name == WITHOUT_ERR else out
            residual[name] += sum((float(answer[i]) - value) ** 2 for i, value in zip(where, truth, strict=True))
            total[name] += sum((value - mean) ** 2 for value in truth)
            trivial[name] += sum(value**2 for value in truth)
            points[name] += len(where)
    found = {"windows": len(windows)}
    for name in names:
        found[f"rmse{name}"] = (residual[name] / points[name]) ** 0.5
        found[f"r2{name}"] = 1 - residual[name] / total[name]
        found[f"trivial_rmse{name}"] = (trivial[name] / points[name]) ** 0.5
    return found


@pytest.mark.parametrize(
    ("world", "micro"), [(None, 100), (None, 3), (3, 4), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_is_the_same_as_by_hand_whatever_the_ranks_and_batches(world, micro, store, tmp_path):
    expected = by_hand(str(store))
    for rank in on_ranks(world, evaluated, str(store), micro, tmp_path=tmp_path):
        assert rank.code == 0, rank.err
        assert rank.value.keys() == expected.keys()
        assert rank.value == pytest.approx(expected, rel=1e-5)


def test_the_uncertainty_of_hidden_points_is_replaced_and_no_other():
    err = np.array([[0.1, 0.2, 0.3, 0.9, 0.0], [0.5, 0.6, 0.0, 0.0, 0.0]], dtype=np.float32)
    role = np.array([[0, HIDDEN, UNCHANGED, RANDOM, 0], [HIDDEN, HIDDEN, 0, 0, 0]], dtype=np.uint8)
    unused = np.zeros((2, 5), dtype=np.float32)
    batch = Batch(unused, unused, err, unused, role, np.array([4, 2]), np.array([0, 1]))
    replaced = without_err(batch)
    assert replaced.err.dtype == np.float32
    expected = np.array([[0.1, 0.3, 0.3, 0.9, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    assert np.array_equal(replaced.err, expected)


def test_a_model_that_hides_the_uncertainty_is_evaluated_once(store):
    ranks = Ranks.start("cpu")
    config = TrainConfig(learning_rate=1e-3, warmup_steps=0, loss="batch", precision="fp32")
    hides = registry.build("tiny", **SMALL, hide=["magnitude", "uncertainty"])
    data = TrainingData(Store.open(store), size=24, seed=5, global_batch=8, micro_batch=100)
    assert f"rmse{WITHOUT_ERR}" not in evaluate(Trainer(hides, config, ranks, seed=0), data, lambda: False)


def test_one_window_by_hand():
    target = np.array([[1.0, -1.0, 3.0, 5.0, 0.0]], dtype=np.float32)
    role = np.array([[HIDDEN, HIDDEN, UNCHANGED, 0, 0]], dtype=np.uint8)
    unused = np.zeros((1, 5), dtype=np.float32)
    batch = Batch(unused, unused, unused, target, role, np.array([4]), np.array([0]))
    total, trivial, points = target_sums(batch)
    assert total.tolist() == [8.0, 4.0, 0.0, 4.0]  # about 1, the mean of all probed points; the hidden ones' is 0
    assert trivial.tolist() == [11.0, 2.0, 0.0, 9.0]
    assert points.tolist() == [3.0, 2.0, 0.0, 1.0]
    found = metrics(np.array([[4.0, 3.0, 0.0, 1.0], total, trivial, points]))
    assert (found["r2"], found["r2_hidden"], found["r2_unchanged"]) == (0.5, 0.25, 0.75)
    assert found["rmse_hidden"] == 1.5**0.5
    assert found["rmse_random"] is found["r2_random"] is None
