"""Tables with one light curve a row, their points in lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch, offsets_of, to_float32
from astroco_fast.data.layout import BandFilter, Layout, photometry
from astroco_fast.data.long import group_points
from astroco_fast.data.metadata import StarTable
from astroco_fast.data.values import to_numbers, to_objects, to_text
from astroco_fast.errors import UserError

# Points in memory at a time, about: 16 bytes each, some copies of them, and the file's own decoding.
BATCH_POINTS = 500_000
_MOST_ROWS = 16_384


class RowSource:
    """Light curves of one or more tables with one a row, in the tables' order."""

    def __init__(
        self, layouts: Sequence[Layout], band: str | None, stars: StarTable | None, name: str, identity: Any
    ) -> None:
        self.name = name
        self.identity = identity
        self._layouts = layouts
        self._band = band
        self._stars = stars

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = BandFilter(self._band)
        read_all = skip == 0
        for layout in self._layouts:
            column = layout.roles["time"].column
            per_row = max(layout.table.points_per_row(column), 1.0)
            rows = int(min(max(BATCH_POINTS / per_row, 1), _MOST_ROWS))
            pieces = layout.table.pieces(rows)
            if pieces is not None and skip >= pieces:
                skip -= pieces
                continue
            for first_row, batch in layout.table.batches(layout.columns, rows, skip):
                yield curves_of_rows(batch, first_row, layout, wanted, self._stars)
            skip = 0
        if read_all:
            wanted.check(self.name)


def curves_of_rows(
    batch: Any, first_row: int, layout: Layout, wanted: BandFilter, stars: StarTable | None = None
) -> CurveBatch:
    """The light curves of a record batch with one a row.

    Raises:
        UserError: lists of a row differ in length, or hold something other than numbers.
    """
    ids = layout.text("id", batch, first_row)
    band_in_lists = "band" in layout.roles and layout.roles["band"].listed
    bands = None if band_in_lists else layout.text("band", batch, first_row)
    labels = layout.text("label", batch, first_row)
    if stars is not None:
        bands, labels = stars.complete(ids, bands, labels)
    rows = np.arange(batch.num_rows)
    mask = wanted.mask(bands) if bands is not None else None
    if mask is not None:
        rows, keep = rows[mask], pa.array(mask)
        batch, ids, bands, labels = (a.filter(keep) for a in (batch, ids, bands, labels))
    lengths, columns = _point_columns(batch, first_row, layout, rows, ids)
    mag, err = photometry(columns[layout.value], columns[layout.error], layout.zero_point)
    name = layout.table.name
    if band_in_lists:
        bands = to_text(layout.roles["band"].lists(batch)[0], layout.place("band", first_row))
        star = pa.array(np.repeat(np.arange(len(ids)), lengths))
        points = {"id": ids.take(star), "band": bands, "label": labels.take(star)}
        points |= {
            "time": pa.array(columns["time"]),
            "mag": pa.array(to_float32(mag)),
            "err": pa.array(to_float32(err)),
        }
        table = pa.table(points)
        mask = wanted.mask(table["band"])
        return group_points(table if mask is None else table.filter(pa.array(mask)), name)
    return CurveBatch(
        ids=to_objects(ids),
        band=to_objects(bands),
        label=to_objects(labels),
        offsets=offsets_of(lengths),
        time=columns["time"],
        mag=to_float32(mag),
        err=to_float32(err),
        source=name,
    )


def _point_columns(
    batch: Any, first_row: int, layout: Layout, rows: NDArray[np.int64], ids: Any
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Points per row, and the numbers of each role end to end."""
    lists = {role: layout.roles[role].lists(batch) for role in ("time", layout.value, layout.error)}
    if "band" in layout.roles and layout.roles["band"].listed:
        lists["band"] = layout.roles["band"].lists(batch)
    lengths = lists["time"][1]
    for role, (_, other) in lists.items():
        if (lengths != other).any():
            i = int(np.argmax(lengths != other))
            raise UserError(
                f"{layout.table.name}: row {first_row + rows[i] + 1} (id {ids[i].as_py()!r}) has {lengths[i]} values in "
                f"{layout.roles['time'].name!r} but {other[i]} in {layout.roles[role].name!r}; a point needs all of them"
            )
    row_of_point = np.repeat(rows, lengths)
    numeric = ("time", layout.value, layout.error)
    return lengths, {role: to_numbers(lists[role][0], layout.place(role, first_row), row_of_point) for role in numeric}
