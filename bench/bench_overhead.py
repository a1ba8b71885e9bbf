"""Overhead of embedding and of assembling batches, as a share of the encoder's time, at 256 windows of a survey.

    pytest bench/bench_overhead.py --benchmark-only

It uses the real light curves if they lie beside the checkout, else simulated ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import astroco_fast as af
from astroco_fast.data.batches import WindowBatches
from astroco_fast.data.store import Store
from astroco_fast.data.windows import window_table
from bench.measuring import device, environment
from bench.providers import build

BATCH, BATCHES, ROUNDS = 256, 2, 3
TARGET = 0.05
PRESET = "S"  # the fastest, for which an overhead counts most


@pytest.fixture(scope="module")
def store(store_folder: Path) -> Store:
    return Store.open(store_folder, verify=False)


def in_memory(store: Store, windows: int, size: int) -> list[np.ndarray]:
    """Arrays (L, 3) of the store's first light curves, about as many as give this number of windows."""
    table = window_table(store.offsets, size)
    curves = int(table.curve[min(windows, len(table) - 1)])
    points = np.stack([store.time, store.mag, store.err], axis=1)
    return [points[store.offsets[i] : store.offsets[i + 1]] for i in range(curves)]


@contextmanager
def timed_forward(model: Any) -> Iterator[list[float]]:
    """A context in which every call of the model appends its seconds to the list."""
    spent: list[float] = []
    forward = model.forward

    def timed(*args: Any, **keywords: Any) -> Any:
        before = time.perf_counter()
        out = forward(*args, **keywords)
        if device().type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - before)
        return out

    model.forward = timed
    try:
        yield spent
    finally:
        del model.forward


def test_embed(benchmark: BenchmarkFixture, store: Store) -> None:
    """`embed` of curves in memory, and the batches of a training epoch, together under 5 % of the encoder's time."""
    model: Any = build(PRESET, device(), False, None, reference=False)
    curves = in_memory(store, BATCH * BATCHES, model.config.window)
    totals, encodes = [], []

    def embed() -> None:
        with timed_forward(model) as spent, torch.autocast(device().type, torch.bfloat16):
            before = time.perf_counter()
            model.embed(curves, batch_size=BATCH)
            totals.append(time.perf_counter() - before)
            encodes.append(sum(spent))

    benchmark.pedantic(embed, rounds=ROUNDS, warmup_rounds=1)
    shares = [total / encode - 1 for total, encode in zip(totals[1:], encodes[1:], strict=True)]
    encode = float(np.median(encodes[1:])) / BATCHES
    assembly = _assembly(store, model.config.window) / encode
    benchmark.extra_info.update(
        subject="overhead", preset=PRESET, batch=BATCH, backend=_backends(), dtype="bf16",
        data="simulated" if store.simulated else "catalina", embed_share=float(np.median(shares)),
        assembly_share=assembly, encode_ms=encode * 1e3, **environment(device()),
    )  # fmt: skip
    assert float(np.median(shares)) + assembly < TARGET


def _assembly(store: Store, size: int) -> float:
    """Seconds of one core to gather and centre a batch of 256 windows and to draw its masks."""
    batches = WindowBatches(store, window_table(store.offsets, size), size, seed=0)
    order = np.random.default_rng(0).permutation(len(batches))[: len(batches) // BATCH * BATCH].reshape(-1, BATCH)
    spent = []
    for chosen in order[:20]:
        before = time.process_time()
        batches.assemble(chosen, epoch=1)
        spent.append(time.process_time() - before)
    return float(np.median(spent))


def _backends() -> str:
    """The backend that attention runs on by default, to stand for the encoder's."""
    return af.ops.select("attention", device(), torch.bfloat16, False).backend
