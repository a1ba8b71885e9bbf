"""The expected cost of a budget, stated before anything is trained."""

from collections.abc import Iterator

import numpy as np

from astroco_fast import presets, registry
from astroco_fast.data.store import Store
from astroco_fast.data.training import TrainingData
from astroco_fast.flops import training_flops
from astroco_fast.reproduce.plan import TIME, Budget

# Operations a second that a GPU is assumed to reach in training: a third of the 312e12 that an A100's data sheet gives
# for bfloat16.
GPU_RATE = 100e12


def expected(budget: Budget, store: Store, band: str | None, seed: int) -> Iterator[str]:
    """Lines of text for the user: the windows that each model sees and, on GPUs, the modelled time.

    Raises:
        UserError: the store has no training or validation windows.
    """
    window = max(presets.configure(row.preset, row.model).window for row in budget.rows)
    data = TrainingData(store, size=window, seed=seed, global_batch=budget.global_batch, micro_batch=None, band=band)
    epochs = budget.epochs if budget.windows is None else budget.windows / len(data.train)
    then = "; then each trains for as long as the slowest took for that" if TIME in budget.stages else ""
    yield (
        f"Budget {budget.name}: each model sees {epochs * len(data.train):,.0f} windows ({epochs:.3g} times the "
        f"survey's {len(data.train):,} for training), {budget.global_batch} a step{then}."
    )
    if budget.gpus:
        lengths = data.table.length[data.train].astype(np.float64)
        points, pairs = epochs * lengths.sum(), epochs * np.square(lengths).sum()
        largest = max(
            training_flops(registry.build(row.preset, **row.model), points, pairs) / budget.gpus / GPU_RATE / 3600
            for row in budget.rows
        )
        yield (
            f"Expected on {budget.gpus} GPUs: {largest:.2g} h for the largest model, so up to "
            f"{largest * len(budget.rows):.2g} h for {len(budget.rows)} models. Modelled, not measured: "
            f"{GPU_RATE / 1e12:.0f} TFLOP/s a GPU, without evaluations and probes, no model slower than the largest."
        )
