"""Sources: light curves in files or objects of any kind, opened so that they can be read in batches.

Only `open_source` distinguishes kinds of input. Each kind has one adapter, which yields `CurveBatch`es: `TableSource`
for tables (files of any kind, folders and patterns of them, and table-like objects), and `BatchSource` for lists of
arrays, stores and batches. A new kind of file is added in `tables`; a new kind of object that is a table, in
`objects.object_table`; any other, here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from astroco_fast.data.arrays import is_array
from astroco_fast.data.batch_sources import SINGLE_PRECISION, ArraySource, BatchSource, NamedArrays
from astroco_fast.data.columns import Columns, MappedTable, find, listed, map_tables
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.extent import Extent
from astroco_fast.data.formats import format_of, open_table
from astroco_fast.data.formats.handed import is_file, table_of_file
from astroco_fast.data.items import is_pair, items_table, named
from astroco_fast.data.metadata import METADATA, StarTable
from astroco_fast.data.notes import Notes
from astroco_fast.data.objects import columns_table, object_table
from astroco_fast.data.paths import find_files, identity, is_path, is_url, to_path
from astroco_fast.data.points import group_points, partitions
from astroco_fast.data.rows import BandFilter, Rows, read_rows
from astroco_fast.data.seen import SharedStars
from astroco_fast.data.store import Store
from astroco_fast.data.tables import Table
from astroco_fast.data.words import to_objects
from astroco_fast.errors import UserError

_READ_ROWS = 250_000  # rows read at a time from a table with a point a row
# Points in a batch of a table with a light curve a row. Each takes 16 bytes, times a few for copies and decoding.
BATCH_POINTS = 500_000
_MOST_ROWS = 16_384  # rows of such a batch, however short the light curves are


class Source(Protocol):
    """Light curves that can be read from the start, in batches that are the same each time.

    Attributes:
        name: the input's name in error messages.
        identity: plain data that identify the input, so that an interrupted conversion is resumed with the same input
            only; None: unknown.
        notes: remarks for the user about the input. All are known once it has been read.
        inputs: the files and folders that are read, which no output may replace.
        extent: how much there is to read, and has been read.
    """

    name: str
    identity: Any
    notes: Notes
    extent: Extent
    inputs: Sequence[Path]

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        """Read the light curves.

        Args:
            skip: leave out this many batches at the start.
            spill: folder for temporary files; those of an earlier reading of the same source are used again. None: a
                temporary folder.
            progress: show a progress bar, on a terminal, if all of the input must be read first.
        """


def open_source(source: Any, columns: Columns | None = None, band: str | None = None) -> Source:
    """Open light curves of any kind, to be read uncleaned and in bounded memory.

    Args:
        source: path or URL of a table (a row a point, or a row a light curve with list columns; `formats` lists the
            kinds of files), of a folder of such tables, of a HATS catalogue, or of a folder with Astromer's
            `metadata.parquet`; a pattern with `*`; a list of paths; an open file; the path of a store, or a `Store`;
            (L, 3) arrays or tensors with columns time (days), magnitude, error, one, or several in a list, a generator
            or a dict, or in pairs with their names; tables of other libraries (`objects.object_table`), one or several;
            batches of curves. Masked
            values become NaN, and units are converted (`units`). Docs: docs/data.md, "Objects in Python".
        columns: the user's choice of columns; the rest is found by `columns.ALIASES`.
        band: read only this band.

    Raises:
        UserError: the input cannot be used; names the file, column, row or id, and what to do. Reading the source may
            raise it, too.
    """
    columns = columns or Columns()
    if is_file(source):
        opened = table_of_file(source)
        return _of_tables([opened], columns, band, opened.name)
    if is_path(source):
        if source == "":
            raise UserError("the path of the light curves is empty; name a file or a folder")
        source = [source]
    if isinstance(source, Store):
        return _store_source(source, band)
    if isinstance(source, CurveBatch):
        return BatchSource(lambda: iter([source]), band)
    if isinstance(source, list | tuple) and source and all(map(is_path, source)):
        return _open_paths([to_path(item) for item in source], columns, band)
    table = object_table(source, called="0")
    if table is not None:
        return _of_tables([table], columns, band, table.name)
    if is_array(source):
        return _open_list(_curves_of(source), columns, band)
    if isinstance(source, Mapping):
        return _open_dict(source, columns, band)
    if isinstance(source, Sequence):
        return _open_list(source, columns, band)
    if isinstance(source, Iterable) or hasattr(source, "__getitem__"):  # lightkurve's collections have only this
        return _open_iterable(source, columns, band)
    raise UserError(f"light curves cannot be read from a {type(source).__name__}")


def _open_paths(paths: list[Path], columns: Columns, band: str | None) -> Source:
    if len(paths) == 1 and not is_url(paths[0]) and Store.is_store(paths[0]):
        return _store_source(Store.open(paths[0]), band)
    name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    files = find_files(paths)
    folders = [path for path in paths if not (is_url(path) and format_of(path))]
    metadata = [path / METADATA for path in folders if (path / METADATA).is_file()]
    tables = [mapped for file, root in files for mapped in map_tables(open_table(file, root), columns)]
    if len(metadata) > 1:
        raise UserError(f"{metadata[1]}: only one folder with {METADATA} can be read at a time; read them one by one")
    id_column = tables[0].fields["id"].name if "id" in tables[0].fields else "id"
    stars = StarTable(metadata[0], id_column, columns) if metadata else None
    known = [identity(file) for file in [*(file for file, _ in files), *metadata]]
    source = TableSource(tables, band, name, known, stars)
    here = [path for path in paths if not is_url(path) and path.is_dir()]
    source.inputs = [*here, *(file for file, _ in files if not is_url(file))]
    return source


def _curves_of(array: Any) -> Any:
    """The light curves of an array: one of shape (L, 3), n of one length (n, L, 3), or n that are objects (n,)."""
    if array.ndim == 2:
        return [array]
    if array.ndim == 3 or (array.ndim == 1 and getattr(array.dtype, "kind", "") == "O"):
        return array
    raise UserError(
        f"an array of shape {tuple(array.shape)} holds no light curves; give it the shape (L, 3), with columns time, "
        "magnitude, error, or (n, L, 3)"
    )


def _open_list(items: Any, columns: Columns, band: str | None) -> Source:
    if len(items) and isinstance(items[0], CurveBatch):
        return BatchSource(lambda: iter(items), band)
    if len(items) and is_pair(items[0]):
        return _open_iterable(items, columns, band)
    tables = [table for i, item in enumerate(items) if (table := object_table(item, called=str(i))) is not None]
    if tables and len(tables) == len(items):
        return _of_tables(tables, columns, band, f"list of {len(items)} tables")
    if tables:
        raise UserError("a list of light curves must hold one kind of object, not arrays and tables together")
    return _of_arrays(ArraySource(lambda: items), band)


def _open_dict(source: Mapping[Any, Any], columns: Columns, band: str | None) -> Source:
    """A dict of columns, or of light curves by the ids of their stars."""
    names = [str(key) for key in source]
    if columns.time in names or (find("time", names, None) and (find("mag", names, None) or find("flux", names, None))):
        return _of_tables([columns_table(source, called="0")], columns, band, "dict")
    tables = [object_table(curve, called=name) for name, curve in zip(names, source.values(), strict=True)]
    if not any(table is not None for table in tables):
        return _of_arrays(NamedArrays(lambda: zip(names, source.values(), strict=True), "dict of arrays"), band)
    found = [table for table in tables if table is not None]
    if len(found) < len(tables):
        raise UserError("a dict of light curves must hold one kind of object, not arrays and tables together")
    for name, table in zip(names, found, strict=True):
        table.star = name
    return _of_tables(found, columns, band, f"dict of {len(found)} tables")


def _open_iterable(source: Iterable[Any], columns: Columns, band: str | None) -> Source:
    """Batches, arrays, tables, pairs of a name and one of these, or paths, that come one by one; those of a generator
    can be read once."""
    items = iter(source)
    first = next(items, None)
    once = iter(source) is items
    rest = chain([] if first is None else [first], items)

    def start() -> Iterator[Any]:
        return rest if once else iter(source)

    if is_path(first):
        return _open_paths([to_path(item) for item in start()], columns, band)
    if first is None or isinstance(first, CurveBatch):
        return BatchSource(start, band)
    table = items_table(first, start, once, columns)
    if table is not None:
        return _of_tables([table], columns, band, table.name)
    if is_pair(first):
        return _of_arrays(NamedArrays(lambda: named(start()), "pairs of name and array"), band)
    if is_array(first) or isinstance(first, list | tuple):
        return _of_arrays(ArraySource(start), band)
    raise UserError(f"light curves cannot be read from an iterable of {type(first).__name__}")


def _of_tables(tables: Sequence[Table], columns: Columns, band: str | None, name: str) -> TableSource:
    return TableSource([mapped for table in tables for mapped in map_tables(table, columns)], band, name)


def _of_arrays(source: NamedArrays, band: str | None) -> NamedArrays:
    if band is not None:
        raise UserError(f"band {band!r} is asked for, but arrays have no bands; leave the band out")
    return source


class TableSource:
    """Light curves of one or more tables, which all have a point a row, or all a light curve a row.

    In tables with a light curve a row, a batch is a piece of a table. Points are first grouped into light curves, if
    need be through files on disk (`points`).

    Args:
        tables: the tables, with the roles of their columns.
        band: read only this band.
        name: the input's name in error messages.
        identity: plain data that identify the input.
        stars: bands and labels by star, for those that the tables lack.

    Raises:
        UserError: the tables have rows of both kinds, or no band column where a band is asked for.
    """

    def __init__(
        self,
        tables: Sequence[MappedTable],
        band: str | None,
        name: str,
        identity: Any = None,
        stars: StarTable | None = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.notes = Notes()
        self.inputs: Sequence[Path] = ()
        self._tables = tables
        self._band = band
        self._stars = stars
        self._complete = stars.complete if stars else None
        self._star_a_row = tables[0].star_a_row
        # A text file estimates its rows; of points, those of other bands are not counted.
        known = (self._star_a_row or band is None) and all(mapped.table.pieces(1) is not None for mapped in tables)
        total = sum(mapped.table.rows for mapped in tables) if known else None
        self.extent = Extent(" curves" if self._star_a_row else " points", total)
        for mapped in tables:
            if mapped.star_a_row != self._star_a_row:
                one, other = (tables[0], mapped) if self._star_a_row else (mapped, tables[0])
                raise UserError(
                    f"{one.table.name} has a light curve a row but {other.table.name} has a point a row; "
                    "convert them apart"
                )
            for remark in _remarks(mapped, has_bands=stars is not None):
                self.notes.add(mapped.table.name, remark)
            if band is not None and not mapped.has_bands and stars is None:
                raise UserError(
                    f"{mapped.table.name}: band {band!r} is asked for, but there is no band column; "
                    "name it with --columns.band, or leave the band out"
                )

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = BandFilter(self._band)
        if self._star_a_row:
            yield from self._rows(wanted, skip)
            return
        simulated = any(mapped.table.is_simulated() for mapped in self._tables)
        expected = sum(mapped.table.rows for mapped in self._tables)
        for points in partitions(self._points(wanted), expected, self.name, spill, self.extent, skip, progress):
            yield group_points(points, self.name, simulated)

    def _rows(self, wanted: BandFilter, skip: int) -> Iterator[CurveBatch]:
        read_all = skip == 0
        before = 0  # rows of earlier tables
        for mapped in self._tables:
            table = mapped.table
            self.extent.done = before
            before += table.rows
            per_row = max(table.points_per_row(mapped.fields["time"].column), 1.0)
            n_rows = int(min(max(BATCH_POINTS / per_row, 1), _MOST_ROWS))
            # If only reading the table tells how many pieces it has, its pieces are read and counted off `skip`.
            pieces = table.pieces(n_rows)
            jump = 0 if pieces is None else min(skip, pieces)
            skip -= jump
            if jump == pieces:
                continue
            simulated = table.is_simulated()
            for first_row, batch in table.batches(mapped.columns, n_rows, jump):
                if skip:
                    skip -= 1
                    continue
                rows = read_rows(batch, first_row, mapped, wanted, self._complete)
                self.extent.done = before - table.rows + first_row
                if rows.lengths is None:
                    yield group_points(pa.Table.from_batches([rows.points()]), table.name, simulated)
                else:
                    yield rows.curves(table.name, simulated)
        self.extent.done = before
        if read_all:
            self._check_all(wanted)

    def _points(self, wanted: BandFilter) -> Iterator[Any]:
        single: dict[tuple[str, str], MappedTable] = {}
        stars = SharedStars()
        for number, mapped in enumerate(self._tables):
            for first_row, batch in mapped.table.batches(mapped.columns, _READ_ROWS):
                rows = read_rows(batch, first_row, mapped, wanted, self._complete)
                if len(self._tables) > 1 and not mapped.has_bands and self._stars is None:
                    stars.add(to_objects(pc.unique(rows.ids)), number)
                if mapped.is_one_star:
                    self._check_single(mapped, rows, single)
                yield rows.points()
        if stars.shared is not None:
            self.notes.add(
                self.name,
                f"no band is known, and stars, such as {stars.shared!r}, have points in several tables, which are "
                "joined to one light curve; if the tables are of several bands, give each a band column",
            )
        self._check_all(wanted)

    def _check_single(self, mapped: MappedTable, rows: Rows, seen: dict[tuple[str, str], MappedTable]) -> None:
        """Refuse a table of one star with several labels, or whose light curve another table has."""
        star = mapped.constants["id"]
        labels = [label for label in pc.unique(rows.labels).to_pylist() if label]
        if len(labels) > 1:
            raise UserError(
                f"{mapped.table.name}: no column of ids is known, but the rows have several labels, such as "
                f"{labels[0]!r} and {labels[1]!r}, and so are of several stars; name the ids by --columns.id"
            )
        for band in pc.unique(rows.bands).to_pylist():
            if seen.setdefault((star, band), mapped) is not mapped:
                raise UserError(
                    f"{self.name}: two tables are of a star {star!r}{f' in band {band!r}' if band else ''}: give each "
                    "an id column, or a name of its own in its metadata, or join them to one table"
                )

    def _check_all(self, wanted: BandFilter) -> None:
        """Check, after all rows have been read, what was found."""
        wanted.check(self.name)
        if self._stars is not None and (remark := self._stars.unmatched()):
            self.notes.add(self.name, remark)


def _remarks(mapped: MappedTable, has_bands: bool) -> Iterator[str]:
    """What the user should know of a table; `has_bands`: its bands are known otherwise."""
    yield from mapped.table.remarks
    time = mapped.fields["time"]
    if time.kind in (pa.float32(), pa.float16()):
        yield f"times in {time.name!r} are {SINGLE_PRECISION}"
    for role, factor in mapped.factors.items():
        if factor != 1.0:
            yield f"{mapped.fields[role].name!r} is in {mapped.fields[role].unit!r} and was converted"
    if mapped.is_ab:
        flux = mapped.fields["flux"]
        yield f"fluxes in {flux.name!r}, in {flux.unit!r}, became AB magnitudes (zero point {mapped.zero_point:.4f})"
    named = mapped.table.star is not None or mapped.constants.get("id") != mapped.table.called
    if mapped.is_one_star and not named and mapped.perhaps_bands():
        yield "no column of ids is known: all points of a table are one star; if they are not, give --columns.id"
    perhaps = [] if has_bands or mapped.has_bands else mapped.perhaps_bands()
    if perhaps:
        yield (
            f"no band column is known: all points of an id are one light curve; if bands are in "
            f"{listed(map(repr, perhaps))}, give its name as --columns.band"
        )


def _store_source(store: Store, band: str | None) -> BatchSource:
    identity = [{"path": str(store.path.resolve()), "digest": store.digest}]
    source = BatchSource(lambda: store.batches(with_periods=True), band, str(store.path), identity, store.n_curves)
    source.inputs = [store.path]
    return source
