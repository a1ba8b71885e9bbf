"""Pages made for tests, and what they hold, read as the browser reads it."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from astroco_fast.explore import main
from astroco_fast.explore.pack import unpack, whole_planes
from tests.vector_tables import EVIL, light_curves, vectors, write

PERIOD = 0.7


def star_ids(n: int) -> list[str]:
    """Ids of n stars, of which the first would run code if it were HTML, and the second needs quotes in CSV."""
    return [EVIL, 'one, "two"', *(f"star{i}" for i in range(2, n))]


def make_page(folder: Path, *flags: str, n: int = 40, title: str = "stars", **columns: Any) -> Path:
    """A page of n stars."""
    ids = star_ids(n)
    source = write(folder, "vectors.parquet", vectors(n, id=ids))
    rng = np.random.default_rng(0)
    columns = {"period": [PERIOD] * n, "colour": rng.normal(size=n), "note": [EVIL, *["a"] * (n - 1)], **columns}
    curves = write(folder, "curves.parquet", light_curves(ids, days=PERIOD, **columns))
    out = folder / "page.html"
    assert (
        main([source, "--curves", curves, "--out", str(out), "--projections", "[pca]", "--title", title, *flags]) == 0
    )
    return out


def packs(page: Path) -> dict[str, Any]:
    """The packs of a page, by the ids of their elements."""
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)</script>', page.read_text(encoding="utf-8"))
    return {name: unpack(text) for name, text in found}


def light_curve(arrays: dict[str, np.ndarray], place: int) -> np.ndarray:
    """(3, L) times, magnitudes and uncertainties of a light curve of a block."""
    t0, t_step, m0, m_step, e_step, _ = arrays["head"].reshape(-1, 6)[place]
    first = int(arrays["length"][:place].sum())
    points = slice(first, first + int(arrays["length"][place]))
    time = whole_planes(arrays["time"], "<u4")[points].astype(float).cumsum()
    mag = whole_planes(arrays["mag"], "<u2")[points]
    return np.array([t0 + t_step * time, m0 + m_step * mag, e_step * arrays["err"][points]])
