"""The page: one HTML file with its code, style and data, which loads nothing and runs nothing else.

No string from data is part of the HTML but the title, which is escaped: all else is packed (`pack`), and the code puts
it on the page as text. A content security policy in the page names the hashes of its script and style, and forbids
every other, and every connection.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astroco_fast.explore.columns import Column
from astroco_fast.explore.curves import BLOCK, PageCurves, pack_block
from astroco_fast.explore.pack import pack
from astroco_fast.explore.projection import Projection
from astroco_fast.files import whole_file
from astroco_fast.text import printable
from astroco_fast.vectors import Text

_MARK = '<meta name="generator" content="astroco explore">'
_CODE = Path(__file__).parent / "page"
_SCRIPTS = ("unpack.js", "marks.js", "map.js", "curve.js", "panel.js", "app.js", "controls.js")
_HEAD_BYTES = 2000  # of a page, in which its mark is
_STEPS = 65_535


@dataclass(frozen=True)
class Page:
    """What a page of n stars shows.

    Attributes:
        title: the heading.
        ids, band: (n,) the stars' ids and bands.
        columns: by which the points can be coloured, and which are told of each star.
        projections: the views.
        neighbours: (n, k) the rows of each star's nearest neighbours.
        distances: (n, k) their distances.
        curves: the light curves.
        total: light curves in the table of which these are all, or a sample.
        notes: what the reader must know.
    """

    title: str
    ids: Text
    band: Text
    columns: Sequence[Column]
    projections: Sequence[Projection]
    neighbours: NDArray[np.int64]
    distances: NDArray[np.float32]
    curves: PageCurves
    total: int
    notes: Sequence[str]


def write_page(page: Page, out: Path) -> int:
    """Write the page. The file appears once it is whole.

    Returns:
        Its size in bytes.
    """
    with whole_file(out) as partial:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for part in _parts(page):
                file.write(part)
        return partial.stat().st_size


def is_page(path: Path) -> bool:
    """Whether a file is a page that `write_page` wrote."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(_HEAD_BYTES)


def _parts(page: Page) -> Iterator[str]:
    """The page's text. The light curves come last: the first picture does not wait for them."""
    script = '"use strict";\n' + "\n".join((_CODE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = (_CODE / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_source(script)}'; style-src '{_source(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    before, after = (_CODE / "page.html").read_text(encoding="utf-8").split("<!-- data -->")
    filled = {"mark": _MARK, "policy": policy, "title": html.escape(printable(page.title)), "style": style}
    yield re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], before)
    yield f'<script type="text/plain" id="stars">{_stars(page)}</script>\n<script>{script}</script>\n'
    for number, first in enumerate(range(0, len(page.ids), BLOCK)):
        some = slice(first, first + BLOCK)
        yield f'<script type="text/plain" id="curves-{number}">'
        yield pack_block(page.curves.points[some], page.curves.period[some])
        yield "</script>\n"
    yield after


def _source(code: str) -> str:
    """A script or style as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}"


def _stars(page: Page) -> str:
    """All but the light curves, packed."""
    arrays: dict[str, NDArray[Any]] = {
        "neighbours": page.neighbours.astype(np.uint16),
        "distances": page.distances.astype(np.float32),
        "period": page.curves.period,
        "length": page.curves.lengths.astype(np.uint32),
    }
    views = []
    for i, projection in enumerate(page.projections):
        low = projection.places.min(0).astype(float)
        step = np.maximum(np.ptp(projection.places.astype(float), axis=0), 1e-9) / _STEPS
        arrays[f"view{i}"] = np.rint((projection.places - low) / step).astype(np.uint16)
        views.append({"name": projection.name, "axes": projection.axes, "low": low.tolist(), "step": step.tolist()})
    for i, column in enumerate(page.columns):
        arrays[f"column{i}"] = column.values
    content = {
        "title": page.title,
        "ids": list(page.ids),
        "bands": list(page.band),
        "columns": [{"name": column.name, "words": column.words} for column in page.columns],
        "views": views,
        "neighbours": page.neighbours.shape[1],
        "periodFrom": page.curves.period_from,
        "block": BLOCK,
        "total": page.total,
        "notes": list(page.notes),
    }
    return pack(content, arrays)
