"""Light curves as arrays and tables, and the command on a saved model, for the tests of embeddings."""

from pathlib import Path

import numpy as np
import pandas as pd

import astroco_fast as af
from astroco_fast import embed as embed_module

Curve = np.ndarray


def curve(n: int, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return np.column_stack([np.sort(58000 + 900 * rng.random(n)), 15 + rng.normal(size=n), 0.01 + 0.1 * rng.random(n)])


def periodic(n: int, period: float, seed: int) -> Curve:
    rng = np.random.default_rng(seed)
    time = np.sort(58000 + 400 * rng.random(n))
    mag = 15 + 0.4 * np.sin(2 * np.pi * time / period) + 0.02 * rng.normal(size=n)
    return np.column_stack([time, mag, 0.01 + 0.02 * rng.random(n)])


def long_table(curves: list[Curve]) -> pd.DataFrame:
    frames = [pd.DataFrame(c, columns=["mjd", "mag", "magerr"]).assign(id=f"star{i}") for i, c in enumerate(curves)]
    return pd.concat(frames).sample(frac=1, random_state=0)  # a star's rows need not be adjacent


def command(tmp_path: Path, model: af.AstroCo, *arguments: str) -> int:
    model.save_pretrained(tmp_path / "model")
    return embed_module.main([*arguments, "--model", str(tmp_path / "model")])
