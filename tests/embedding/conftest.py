"""A model and light curves."""

from pathlib import Path

import pytest
import torch

import astroco_fast as af
from tests.embedding.curves import Curve, curve, long_table, periodic


@pytest.fixture(scope="module")
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, window=20).eval()


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    return [curve(n, seed) for seed, n in enumerate((20, 45, 7, 61))]


@pytest.fixture(scope="module")
def mixed() -> list[Curve]:
    """Two light curves with periods, 0.37 and 2.3 days, and one of noise."""
    return [periodic(70, 0.37, 1), periodic(45, 2.3, 2), curve(61, 3)]


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    long_table([curve(n, n) for n in range(9, 20)]).to_parquet(path)
    return path
