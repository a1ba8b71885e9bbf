from pathlib import Path

import numpy as np
import pytest

from astroco_fast.data.convert import convert

# A model and windows so small that a step takes milliseconds.
TINY = [
    "--model.width",
    "16",
    "--model.heads",
    "2",
    "--model.layers",
    "1",
    "--model.window",
    "24",
    "--model.kernel",
    "4",
]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 sine waves of 12 to 70 points."""
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(70):
        time = np.sort(rng.uniform(0, 300, int(rng.integers(12, 70))))
        mag = 15 + rng.uniform(0.1, 1) * np.sin(2 * np.pi * time / rng.uniform(1, 20)) + rng.normal(0, 0.05, len(time))
        curves.append(np.stack([time, mag, np.full(len(time), 0.05)], axis=1))
    path = tmp_path_factory.mktemp("data") / "store"
    convert(curves, path)
    return path


@pytest.fixture
def arguments(store: Path) -> list[str]:
    """Flags of a run of a few steps; --out is still to be given."""
    train = {
        "global_batch": 40,
        "micro_batch": 12,
        "warmup_steps": 3,
        "log_every": 2,
        "epochs": 2,
        "device": "cpu",
        "plots": "false",
    }
    flags = [text for name, value in train.items() for text in (f"--train.{name}", str(value))]
    return ["--preset", "tiny", "--data", str(store), *TINY, *flags]
