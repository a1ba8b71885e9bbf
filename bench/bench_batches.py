"""Rate at which one core assembles windows into batches, masks included: gather, centre, draw, replace.

pytest bench/bench_batches.py --benchmark-only

It uses the real light curves if they lie beside the checkout, else a simulated survey. Work of one thread is timed by
its processor time, which other work on the machine changes little.
"""

from __future__ import annotations

import time
from itertools import cycle

import numpy as np
import pytest

from astroco_fast.data.batches import WindowBatches, prefetch
from astroco_fast.data.masking import draw_roles
from astroco_fast.data.simulate import simulate_survey
from astroco_fast.data.store import Store
from astroco_fast.data.windows import epoch_order, window_table

SIZE, BATCH = 200, 256
BATCHES_A_ROUND = 100
TARGET = 100_000


@pytest.fixture(scope="module")
def store(store_folder):
    return Store.open(store_folder, verify=False)


def plan(count, epoch=1):
    """Shuffled window indices of an epoch in whole batches, (n, 256)."""
    order = epoch_order(count, seed=0, epoch=epoch)
    return order[: count // BATCH * BATCH].reshape(-1, BATCH)


def windows_per_second(benchmark, windows):
    """The rate of the fastest round, which other work on the machine has disturbed least."""
    rate = windows / benchmark.stats.stats.min
    benchmark.extra_info["windows_per_s"] = round(rate)
    return rate


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("random", [False, True], ids=["sequential", "random"])
@pytest.mark.parametrize("full", [True, False], ids=["full windows", "all windows"])
def test_assemble(benchmark, store, full, random):
    """At least 100,000 windows/s in batches of 256, of full windows only and of all, short last ones included."""
    table = window_table(store.offsets, SIZE)
    indices = np.flatnonzero(table.length == SIZE) if full else np.arange(len(table))
    batches = WindowBatches(store, table, SIZE, seed=0, random=random)
    upcoming = cycle(indices[plan(len(indices))])

    def round_of_batches():
        for _ in range(BATCHES_A_ROUND):
            batches.assemble(next(upcoming), epoch=1)

    benchmark.extra_info["data"] = "simulated" if store.simulated else "catalina"
    benchmark.pedantic(round_of_batches, rounds=15, warmup_rounds=2)
    assert windows_per_second(benchmark, BATCHES_A_ROUND * BATCH) > TARGET


@pytest.mark.benchmark(timer=time.process_time, min_time=0.02)
def test_masks_alone(benchmark):
    """Drawing roles and sources, without data."""
    lengths, windows = np.full(BATCH, SIZE), np.arange(BATCH)
    benchmark(lambda: draw_roles(lengths, windows, SIZE, seed=0, epoch=1))
    windows_per_second(benchmark, BATCH)


def test_prefetched(benchmark, store):
    """The cost of the queue: batches through the background thread to a consumer that does nothing, by the clock."""
    batches = WindowBatches(store, window_table(store.offsets, SIZE), SIZE, seed=0)
    indices = plan(len(batches))[:BATCHES_A_ROUND]

    def consume():
        with prefetch(indices, lambda chosen: batches.assemble(chosen, 1)) as source:
            assert sum(len(batch.lengths) for batch in source) == indices.size

    benchmark.pedantic(consume, rounds=10, warmup_rounds=1)
    windows_per_second(benchmark, indices.size)


@pytest.mark.benchmark(timer=time.process_time)
def test_epoch_order(benchmark):
    """Shuffling 1.5 million windows, as is done once an epoch."""
    benchmark.pedantic(epoch_order, args=(1_500_000, 0, 1), rounds=3)
    windows_per_second(benchmark, 1_500_000)


@pytest.mark.benchmark(timer=time.process_time)
def test_simulate(benchmark):
    """Simulating a survey of 3,000 stars."""
    benchmark.pedantic(lambda: sum(len(b) for b in simulate_survey(3000, seed=0)), rounds=5)
    benchmark.extra_info["stars_per_s"] = round(3000 / benchmark.stats.stats.min)
