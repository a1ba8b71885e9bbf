"""Batches are centred in float64, zero at padding, and independent of a window's neighbours; and prefetching."""

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from astroco_fast.data.batches import CYCLE_DAYS, Batch, WindowBatches, prefetch
from astroco_fast.data.masking import HIDDEN, RANDOM
from astroco_fast.data.periods import Periods
from astroco_fast.data.windows import WindowTable, folded_table, random_windows, view_table, window_table
from astroco_fast.errors import UserError
from tests.data.masks import draw_masks

FLOATS = ("time", "mag", "err", "target")


def make_store(lengths, seed=0):
    rng = np.random.default_rng(seed)
    points = int(np.sum(lengths))
    return SimpleNamespace(
        time=np.sort(rng.uniform(53500, 58000, points)),
        mag=rng.normal(17, 1, points).astype(np.float32),
        err=rng.uniform(0.01, 0.2, points).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


@pytest.fixture
def store():
    return make_store([450, 1, 0, 200, 35, 2, 640])


@pytest.fixture
def batches(store):
    return WindowBatches(store, window_table(store.offsets), 200, seed=6)


def test_windows_hold_the_centred_points_of_the_store(store, batches):
    table = window_table(store.offsets)
    batch = batches.assemble(np.arange(len(table)), epoch=1)
    for i, (start, n) in enumerate(zip(table.start, table.length, strict=True)):
        for name, got in (("time", batch.time), ("mag", batch.target)):
            values = getattr(store, name)[start : start + n].astype(np.float64)
            expected = (values - values.mean()).astype(np.float32)
            np.testing.assert_allclose(got[i, :n], expected, rtol=2e-7, atol=1e-11)
        assert np.array_equal(batch.err[i, :n], store.err[start : start + n])
        assert batch.lengths[i] == n


def test_types_shapes_and_zero_padding(batches):
    batch = batches.assemble([0, 2, -1, 4], epoch=1)
    padded = np.arange(200) >= batch.lengths[:, None]
    assert padded.any()
    for name in FLOATS:
        values = getattr(batch, name)
        assert values.shape == (4, 200)
        assert values.dtype == np.float32
        assert not values[padded].any()
        assert not np.signbit(values[padded]).any()
    assert batch.role.dtype == np.uint8
    assert not batch.role[padded].any()
    assert batch.lengths.dtype == batch.index.dtype == np.int64
    assert batch.index.tolist() == [0, 2, -1, 4]


def test_places_of_points_are_those_of_the_windows_and_padding_repeats_the_last(store, batches):
    table = window_table(store.offsets)
    for row, start, n in zip(batches.points(np.arange(len(table))), table.start, table.length, strict=True):
        assert row.tolist() == [*range(start, start + n), *[start + n - 1] * (200 - n)]


def test_centring_is_exact_where_float32_is_not():
    """Float32 would lose the minutes of an MJD, and hundredths of a magnitude on a large offset."""
    minutes = np.arange(200) / 1440
    store = SimpleNamespace(
        time=58000.3 + minutes,
        mag=(np.float32(2**20) + np.arange(200, dtype=np.float32)),
        err=np.ones(200, np.float32),
        offsets=np.array([0, 200]),
    )
    batch = WindowBatches(store, window_table(store.offsets), 200, 0).assemble([0], 1)
    np.testing.assert_allclose(batch.time[0], minutes - minutes.mean(), atol=1e-8)
    np.testing.assert_allclose(batch.target[0], np.arange(200) - 99.5, atol=1e-6)


def test_random_points_show_the_magnitude_of_their_source(batches):
    batch = batches.assemble(np.arange(len(batches)), epoch=3)
    role, source = draw_masks(batch.lengths, batch.index, 200, seed=6, epoch=3)
    assert np.array_equal(batch.role, role)
    assert np.array_equal(batch.mag, np.take_along_axis(batch.target, source, axis=1))
    assert np.array_equal(batch.mag != batch.target, role == RANDOM)


def test_evaluation_shows_no_hidden_magnitude(batches):
    """A model that does not hide the hidden points still cannot see their magnitudes."""
    batch = batches.assemble(np.arange(len(batches)), epoch=0)
    assert (batch.role == HIDDEN).any()
    assert not batch.mag[batch.role == HIDDEN].any()
    seen = ~np.isin(batch.role, (HIDDEN, RANDOM))
    assert np.array_equal(batch.mag[seen], batch.target[seen])


def test_a_window_is_the_same_in_any_batch(batches):
    alone = {i: batches.assemble([i], epoch=2) for i in range(len(batches))}
    together = batches.assemble([5, -1, 3, 0, 3], epoch=2)
    for row, i in enumerate(together.index):
        if i >= 0:
            for name in (*FLOATS, "role"):
                assert np.array_equal(getattr(together, name)[row], getattr(alone[int(i)], name)[0])


def test_batches_share_no_memory(batches):
    first = batches.assemble([0, 1], 1)
    kept = first.target.copy()
    second = batches.assemble([2, 3], 1)
    arrays = [getattr(b, n) for b in (first, second) for n in (*FLOATS, "role", "lengths")]
    for i, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[:i])
    assert np.array_equal(first.target, kept)


def test_empty_slots_and_the_empty_batch(batches):
    batch = batches.assemble([-1, -1], epoch=1)
    assert all(not getattr(batch, name).any() for name in (*FLOATS, "role", "lengths"))
    assert batches.assemble([], epoch=1).time.shape == (0, 200)


def test_memory_maps_are_read_in_place(tmp_path, store):
    for name in ("time", "mag", "err"):
        values = getattr(store, name)
        values.tofile(tmp_path / name)
        setattr(store, name, np.memmap(tmp_path / name, values.dtype, "r"))
    batch = WindowBatches(store, window_table(store.offsets), 200, seed=6).assemble([0, 3], 1)
    assert type(batch.time) is np.ndarray
    assert np.array_equal(batch.err[0], store.err[:200])


def test_random_windows_in_training_and_sequential_ones_in_evaluation(store):
    table = window_table(store.offsets)
    random = WindowBatches(store, table, 200, seed=6, random=True)
    sequential = WindowBatches(store, table, 200, seed=6)
    everything = np.arange(len(table))
    drawn = random_windows(table, store.offsets, 200, seed=6, epoch=1)
    batch = random.assemble(everything, epoch=1)
    assert np.array_equal(batch.lengths, drawn.length)
    for i, (start, n) in enumerate(zip(drawn.start, drawn.length, strict=True)):
        assert np.array_equal(batch.err[i, :n], store.err[start : start + n])
    assert np.array_equal(random.assemble(everything, 0).time, sequential.assemble(everything, 0).time)
    assert random.assemble([-1, 0], epoch=1).lengths.tolist() == [0, 200]


def test_bad_arguments(store, batches):
    with pytest.raises(IndexError, match="-1 to"):
        batches.assemble([len(batches)], 1)
    with pytest.raises(IndexError):
        batches.assemble([-2], 1)
    with pytest.raises(UserError, match="do not fit"):
        WindowBatches(store, window_table(store.offsets, 300), 200, 0)
    none = WindowTable(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert len(WindowBatches(store, none, 200, 0)) == 0


def running_prefetchers():
    return [t for t in threading.enumerate() if t.name == "astroco-prefetch"]


def test_prefetch_keeps_order_and_ends(batches):
    plan = [np.array([i, i + 1]) for i in range(5)]
    with prefetch(plan, lambda indices: batches.assemble(indices, 1)) as source:
        made: list[Batch] = list(source)
    assert [b.index.tolist() for b in made] == [p.tolist() for p in plan]
    assert list(source) == []
    assert running_prefetchers() == []


def test_prefetch_runs_ahead_no_further_than_its_depth():
    done = []
    with prefetch(range(100), done.append, depth=2) as source:
        next(source)
        deadline = time.monotonic() + 5
        while len(done) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert done == [0, 1, 2, 3]  # one returned, two in the queue, one held by the thread
    assert running_prefetchers() == []


@pytest.mark.parametrize("where", ["work", "items"])
def test_an_exception_arrives_after_the_results_before_it(where):
    def items():
        yield from (1, 2)
        if where == "items":
            raise OSError("the disk went away")
        yield 0

    source = prefetch(items(), lambda x: 10 // x)
    assert next(source) == 10
    assert next(source) == 5
    with pytest.raises(OSError if where == "items" else ZeroDivisionError):
        next(source)
    assert list(source) == []
    assert running_prefetchers() == []


def test_a_dropped_prefetcher_stops_its_thread():
    def endless():
        while True:
            yield 1

    source = prefetch(endless(), lambda x: x)
    next(source)
    thread = running_prefetchers()[0]
    del source
    gc.collect()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_the_interpreter_can_leave_with_a_full_queue():
    program = (
        "import itertools, time\n"
        "from astroco_fast.data.batches import prefetch\n"
        "source = prefetch(itertools.count(), lambda x: x, depth=2)\n"
        "next(source); time.sleep(0.1)\n"
        "print('left')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth"):
        prefetch([], lambda x: x, depth=0)


def test_without_an_epoch_nothing_is_probed(batches):
    """Embeddings are computed from such batches."""
    plain, masked = batches.assemble([0, 1, -1], epoch=None), batches.assemble([0, 1, -1], epoch=0)
    assert not plain.role.any()
    np.testing.assert_array_equal(plain.mag, plain.target)
    np.testing.assert_array_equal(plain.target, masked.target)


def folds(store, seed=0):
    """Made-up periods and epochs for the curves of a store; those of fewer than three points have none."""
    rng = np.random.default_rng(seed)
    n = len(store.offsets) - 1
    found = np.diff(store.offsets) > 2
    period = np.where(found, 10 ** rng.uniform(-1, 2, n), np.nan)
    epoch = np.where(found, rng.uniform(53500, 53600, n), np.nan)
    return replace(Periods.empty(n), period=period, fold_period=period, epoch=epoch, status=np.where(found, 0, 1))


def folded_batches(store, views="folded", **keywords):
    periods = folds(store)
    table = view_table(store.offsets, 200, views, periods.found)
    return table, periods, WindowBatches(store, table, 200, seed=6, periods=periods, **keywords)


def test_folded_windows_hold_every_point_once_in_the_order_of_phase(store):
    table, periods, batches = folded_batches(store)
    for epoch in (None, 0, 1):
        batch = batches.assemble(np.arange(len(table)), epoch)
        seen = {curve: [] for curve in table.curve.tolist()}
        for row, curve in enumerate(table.curve.tolist()):
            n, points = int(batch.lengths[row]), slice(*store.offsets[curve : curve + 2])
            seen[curve].extend(batch.err[row, :n].tolist())
            if not periods.found[curve]:
                continue
            assert (np.diff(batch.time[row, :n]) >= 0).all()
            phase = dict(
                zip(
                    store.err[points].tolist(),
                    (store.time[points] - periods.epoch[curve]) / periods.period[curve] % 1,
                    strict=True,
                )
            )
            expected = CYCLE_DAYS * np.array([phase[value] for value in batch.err[row, :n].tolist()])
            np.testing.assert_allclose(batch.time[row, :n], expected - expected.mean(), atol=2e-5)
            assert not batch.time[row, n:].any()
        for curve, errors in seen.items():
            assert sorted(errors) == sorted(store.err[slice(*store.offsets[curve : curve + 2])].tolist())


def test_folded_windows_keep_each_points_magnitude_and_uncertainty_together(store):
    table, _, batches = folded_batches(store)
    batch = batches.assemble(np.arange(len(table)), 1)
    mag = dict(zip(store.err.tolist(), store.mag.tolist(), strict=True))
    for row, n in enumerate(batch.lengths):
        expected = np.array([mag[value] for value in batch.err[row, :n].tolist()])
        np.testing.assert_allclose(batch.target[row, :n], expected - expected.mean(), atol=1e-5)


def test_folded_windows_are_dealt_anew_in_training_and_stay_in_evaluation(store):
    table, _, batches = folded_batches(store)
    rows = np.flatnonzero(table.curve == 0)
    one, two = batches.assemble(rows, 1), batches.assemble(rows, 2)
    assert not np.array_equal(np.sort(one.err), np.sort(two.err))
    assert np.array_equal(one.err, batches.assemble(rows, 1).err)
    assert np.array_equal(batches.assemble(rows, 0).err, batches.assemble(rows, None).err)


def test_a_folded_window_does_not_depend_on_its_batch_or_its_table(store):
    table, periods, batches = folded_batches(store)
    whole = batches.assemble(np.arange(len(table)), None)
    curve = int(np.flatnonzero(periods.found)[-1])
    points = slice(*store.offsets[curve : curve + 2])
    alone = SimpleNamespace(
        time=store.time[points],
        mag=store.mag[points],
        err=store.err[points],
        offsets=np.array([0, points.stop - points.start]),
    )
    table_alone = folded_table(alone.offsets)
    got = WindowBatches(alone, table_alone, 200, seed=6, periods=periods.select([curve])).assemble(
        np.arange(len(table_alone))[::-1], None
    )
    rows = np.flatnonzero(table.curve == curve)[::-1]
    for name in FLOATS:
        assert np.array_equal(getattr(got, name), getattr(whole, name)[rows])


def test_random_windows_leave_folded_ones_alone(store):
    table, _, batches = folded_batches(store, "both", random=True)
    _, _, sequential = folded_batches(store, "both")
    folded = np.flatnonzero(table.part >= 0)
    random, fixed = batches.assemble(np.arange(len(table)), 1), sequential.assemble(np.arange(len(table)), 1)
    assert np.array_equal(random.err[folded], fixed.err[folded])
    assert not np.array_equal(random.err, fixed.err)
