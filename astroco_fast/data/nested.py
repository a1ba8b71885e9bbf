"""Tables with one light curve a row, their points in lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch, offsets_of, to_float32
from astroco_fast.data.fields import BandFilter, MappedTable, photometry
from astroco_fast.data.long import group_points
from astroco_fast.data.metadata import StarTable, TableSource
from astroco_fast.data.tables import is_simulated
from astroco_fast.data.values import to_numbers, to_objects, to_text
from astroco_fast.errors import UserError

# Points in memory at a time, about: 16 bytes each, some copies of them, and the file's own decoding.
BATCH_POINTS = 500_000
_MOST_ROWS = 16_384


class RowSource(TableSource):
    """Light curves of one or more tables with one a row, in the tables' order."""

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = BandFilter(self._band)
        read_all = skip == 0
        for mapped in self._tables:
            column = mapped.roles["time"].column
            per_row = max(mapped.table.points_per_row(column), 1.0)
            rows = int(min(max(BATCH_POINTS / per_row, 1), _MOST_ROWS))
            pieces = mapped.table.pieces(rows)
            if pieces is not None and skip >= pieces:
                skip -= pieces
                continue
            simulated = is_simulated(mapped.table)
            for first_row, batch in mapped.table.batches(mapped.columns, rows, skip):
                yield replace(curves_of_rows(batch, first_row, mapped, wanted, self._stars), simulated=simulated)
            skip = 0
        if read_all:
            wanted.check(self.name)


def curves_of_rows(
    batch: Any, first_row: int, mapped: MappedTable, wanted: BandFilter, stars: StarTable | None = None
) -> CurveBatch:
    """The light curves of a record batch with one a row, or one star a row where bands are a list too.

    Raises:
        UserError: lists of a row differ in length, or hold something other than numbers.
    """
    if _band_a_point(mapped):
        return _split_by_band(batch, first_row, mapped, wanted, stars)
    ids, bands, labels = (mapped.text(role, batch, first_row) for role in ("id", "band", "label"))
    if stars is not None:
        bands, labels = stars.complete(ids, bands, labels)
    rows = np.arange(batch.num_rows)
    mask = wanted.mask(bands)
    if mask is not None:
        rows, keep = rows[mask], pa.array(mask)
        batch, ids, bands, labels = (a.filter(keep) for a in (batch, ids, bands, labels))
    lengths, points = _points(batch, first_row, mapped, rows, ids)
    return CurveBatch(
        ids=to_objects(ids),
        band=to_objects(bands),
        label=to_objects(labels),
        offsets=offsets_of(lengths),
        source=mapped.table.name,
        **points,
    )


def _split_by_band(
    batch: Any, first_row: int, mapped: MappedTable, wanted: BandFilter, stars: StarTable | None
) -> CurveBatch:
    ids, labels = (mapped.text(role, batch, first_row) for role in ("id", "label"))
    if stars is not None:
        _, labels = stars.complete(ids, None, labels)
    lengths, points = _points(batch, first_row, mapped, np.arange(batch.num_rows), ids)
    bands = to_text(mapped.roles["band"].lists(batch)[0], mapped.place("band", first_row))
    row = pa.array(np.repeat(np.arange(batch.num_rows), lengths))
    table = pa.table({"id": ids.take(row), "band": bands, "label": labels.take(row), **points})
    mask = wanted.mask(bands)
    return group_points(table if mask is None else table.filter(pa.array(mask)), mapped.table.name)


def _band_a_point(mapped: MappedTable) -> bool:
    return "band" in mapped.roles and mapped.roles["band"].listed


def _points(
    batch: Any, first_row: int, mapped: MappedTable, rows: NDArray[np.int64], ids: Any
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Points per row, and `time`, `mag`, `err` of all points end to end."""
    lists = {role: mapped.roles[role].lists(batch) for role in ("time", mapped.value, mapped.error)}
    if _band_a_point(mapped):
        lists["band"] = mapped.roles["band"].lists(batch)
    lengths = lists["time"][1]
    for role, (_, other) in lists.items():
        if (lengths != other).any():
            i = int(np.argmax(lengths != other))
            raise UserError(
                f"{mapped.table.name}: row {first_row + rows[i] + 1} (id {ids[i].as_py()!r}) has {lengths[i]} values "
                f"in {mapped.roles['time'].name!r} but {other[i]} in {mapped.roles[role].name!r}; a point needs all"
            )
    row_of_point = np.repeat(rows, lengths)
    time, value, error = (
        to_numbers(lists[role][0], mapped.place(role, first_row), row_of_point)
        for role in ("time", mapped.value, mapped.error)
    )
    mag, err = photometry(value, error, mapped.zero_point)
    return lengths, {"time": time, "mag": to_float32(mag), "err": to_float32(err)}
