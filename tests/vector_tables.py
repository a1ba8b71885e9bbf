"""Tables of vectors and of the light curves that they are of, made for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EVIL = "</script><img src=x onerror=alert(1)>"


def vectors(n: int = 40, size: int = 6, seed: int = 0, **columns: Any) -> pa.Table:
    """A table as `astroco embed` writes it: n light curves in two classes that lie apart."""
    rng = np.random.default_rng(seed)
    label = np.where(np.arange(n) % 2 == 0, "RRab", "EA")
    matrix = rng.normal(size=(n, size)).astype(np.float32) + np.where(label == "EA", 8, 0)[:, None].astype(np.float32)
    table = {
        "id": [f"star{i}" for i in range(n)],
        "band": ["V"] * n,
        "label": label.tolist(),
        "n_points": np.arange(20, 20 + n),
        **columns,
    }
    values = pa.array(matrix.reshape(-1))
    return pa.table(table).append_column("embedding", pa.FixedSizeListArray.from_arrays(values, size))


def light_curves(ids: list[str], points: int = 30, days: float = 0.7, **columns: Any) -> pa.Table:
    """A table with a light curve a row: sine waves of this period (days) with noise of 0.02 magnitudes."""
    rng = np.random.default_rng(1)
    rows = []
    for i, star in enumerate(ids):
        time = np.sort(58000 + 300 * rng.random(points))
        mag = 15 + 0.01 * i + 0.4 * np.sin(2 * np.pi * time / days) + rng.normal(0, 0.02, points)
        rows.append({"id": star, "band": "V", "mjd": time, "mag": mag, "err": np.full(points, 0.02)})
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def write(folder: Path, name: str, table: pa.Table) -> str:
    """Write a table to a Parquet file; returns its path."""
    pq.write_table(table, folder / name)
    return str(folder / name)
