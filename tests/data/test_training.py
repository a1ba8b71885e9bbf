"""The order of windows, and the ranks' shares of a global batch."""

import numpy as np
import pytest
import torch

from astroco_fast.data.convert import convert
from astroco_fast.data.hashing import split_of
from astroco_fast.data.masking import HIDDEN
from astroco_fast.data.store import Store
from astroco_fast.data.training import EMPTY, TrainingData, micro_batches, upload
from astroco_fast.errors import UserError
from tests.data.curve_factory import make_batch, sine_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sine_store(tmp_path_factory.mktemp("data") / "store")


@pytest.mark.parametrize("n", [1, 5, 40, 41])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [None, 1, 4, 100])
def test_micro_batches_partition_the_windows_evenly(n, world, size):
    windows = np.arange(100, 100 + n)
    shares = [micro_batches(windows, rank, world, size) for rank in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1  # passes of the same lengths on all ranks
    assert all(len(piece) <= (size or n) for piece in shares[0])
    taken = np.concatenate([piece for share in shares for piece in share])
    assert sorted(taken[taken != EMPTY]) == windows.tolist()
    assert (taken == EMPTY).sum() < world


def training_data(store, **place: int) -> TrainingData:
    return TrainingData(Store.open(store), size=24, seed=7, global_batch=32, micro_batch=8, **place)


def steps(store, count: int, epoch: int = 1, position: int = 0, **place: int):
    data = training_data(store, **place)
    with data.steps(epoch, position) as batches:
        return data, [next(batches) for _ in range(count)]


def test_an_epoch_takes_each_training_window_once(store):
    data, taken = steps(store, training_data(store).steps_per_epoch + 1)
    epoch, after = taken[:-1], taken[-1]
    windows = np.concatenate([step.windows for step in epoch])
    assert sorted(windows) == data.train.tolist()
    assert [step.is_last for step in epoch] == [False] * (len(epoch) - 1) + [True]
    assert (after.epoch, after.position) == (2, 0)
    assert after.windows.tolist() != epoch[0].windows.tolist()
    splits = split_of(data.store.star_hash)[data.table.curve]
    assert set(splits[data.train]) == {0}
    assert set(splits[data.validation]) == {1}


def test_order_and_masks_depend_on_neither_ranks_nor_the_start(store):
    _, alone = steps(store, 7)
    _, later = steps(store, 3, alone[4].epoch, alone[4].position)
    for rank in range(2):
        _, shared = steps(store, 7, rank=rank, world=2)
        for one, other in [*zip(alone, shared, strict=True), *zip(alone[4:], later, strict=True)]:
            assert one.windows.tolist() == other.windows.tolist()
            rows = {int(index): row for batch in one.micro for index, row in zip(batch.index, batch.mag, strict=True)}
            for batch in other.micro:
                for index, row in zip(batch.index, batch.mag, strict=True):
                    assert index == EMPTY or np.array_equal(rows[int(index)], row)


def test_the_model_is_told_which_points_are_hidden(store):
    _, (step,) = steps(store, 1)
    batch = step.micro[0]
    given, keywords = upload(batch, torch.device("cpu")).inputs()
    for tensor, array in zip(given, (batch.time, batch.mag, batch.err), strict=True):
        assert np.array_equal(tensor, array)
    assert np.array_equal(keywords["hidden"], batch.role == HIDDEN)
    assert keywords["hidden"].any()
    assert np.array_equal(keywords["lengths"], batch.lengths)


def test_windows_of_the_chosen_band_alone_are_taken(tmp_path):
    convert(make_batch(80, lengths=[20] * 80, bands=("V", "I", "I")), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    data = TrainingData(store, size=24, seed=7, global_batch=8, micro_batch=None, band="V")
    curves = data.table.curve[np.concatenate([data.train, data.validation])]
    assert {np.asarray(store.bands)[curve] for curve in curves} == {"V"}
    with pytest.raises(UserError, match=r"no light curve in band 'R'; bands found: I, V"):
        TrainingData(store, size=24, seed=7, global_batch=8, micro_batch=None, band="R")


def test_too_few_stars(tmp_path):
    curve = np.stack([np.arange(20.0), np.full(20, 15.0), np.full(20, 0.1)], axis=1)
    convert([curve], tmp_path / "store")
    with pytest.raises(UserError, match="more stars"):
        TrainingData(Store.open(tmp_path / "store"), size=24, seed=0, global_batch=8, micro_batch=None)
