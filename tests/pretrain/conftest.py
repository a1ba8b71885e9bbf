"""Fixtures: a small store, and the flags of a small run."""

from pathlib import Path

import pytest

from tests.data.curve_factory import sine_store

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
    return sine_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture
def arguments(store: Path) -> list[str]:
    """Flags of a run of a few steps, without --out."""
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
