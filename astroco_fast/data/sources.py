"""Sources: light curves in files or objects of any kind, opened so that they can be read in batches.

Only `open_source` distinguishes kinds of input. Each kind has one adapter, which yields `CurveBatch`es: `TableSource`
for tables (files of any kind, folders and patterns of them, and table-like objects), and `BatchSource` for lists of
arrays, stores and batches. A new kind of file is added in `tables`; a new kind of object that is a table, in
`objects.object_table`; any other, here.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from astroco_fast.data.arrays import is_array
from astroco_fast.data.columns import Columns, MappedTable, map_table
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.metadata import METADATA, StarTable
from astroco_fast.data.objects import object_table
from astroco_fast.data.points import group_points, partitions
from astroco_fast.data.rows import BandFilter, Complete, read_rows
from astroco_fast.data.store import Store
from astroco_fast.data.tables import SUFFIXES, format_of, is_simulated, open_table
from astroco_fast.errors import UserError

_READ_ROWS = 250_000  # rows read at a time from a table with a point a row
_ARRAYS_A_BATCH = 2048  # arrays of a list that make one batch
# Points in a batch of a table with a light curve a row. Each takes 16 bytes, times a few for copies and decoding.
BATCH_POINTS = 500_000
_MOST_ROWS = 16_384  # rows of such a batch, however short the light curves are


class Source(Protocol):
    """Light curves that can be read from the start, in batches that are the same each time.

    Attributes:
        name: the input's name in error messages.
        identity: plain data that identify the input, so that an interrupted conversion is resumed with the same input
            only; None: unknown.
        notes: remarks for the user about the input.
        inputs: the files and folders that are read, which no output may replace.
    """

    name: str
    identity: Any
    notes: list[str]
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
        source: path of a table (CSV, Parquet, FITS, TFRecord; one row a point, or one row a light curve with list
            columns), of a folder of such tables, or of a folder with Astromer's `metadata.parquet`; a pattern with `*`;
            a list of paths; the path of a store, or a `Store`; a list of (L, 3) arrays or tensors with columns time
            (days), magnitude, error (ids "0", "1", ...), or one of them; a pandas frame, Arrow or astropy table;
            lightkurve objects; batches of curves. Masked values become NaN, and units are converted (`units`).
        columns: the user's choice of columns; the rest is found by `columns.ALIASES`.
        band: read only this band.

    Raises:
        UserError: the input cannot be used; names the file, column, row or id, and what to do. Reading the source may
            raise it, too.
    """
    columns = columns or Columns()
    if isinstance(source, str | Path):
        if source == "":
            raise UserError("the path of the light curves is empty; name a file or a folder")
        source = [source]
    if isinstance(source, Store):
        return _store_source(source, band)
    if isinstance(source, CurveBatch):
        return BatchSource(lambda: iter([source]), band)
    if is_array(source) and source.ndim == 2:
        source = [source]
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | Path) for item in source):
        return _open_paths([Path(item) for item in source], columns, band)
    table = object_table(source, star="0")
    if table is not None:
        return TableSource([map_table(table, columns)], band, table.name)
    # A sequence of arrays or tables, or an array (n, L, 3) of light curves of one length.
    is_list = source.ndim == 3 if is_array(source) else isinstance(source, Sequence)
    if is_list:
        return _open_list(source, columns, band)
    if isinstance(source, Iterable):
        return BatchSource(lambda: iter(source), band)
    raise UserError(f"light curves cannot be read from a {type(source).__name__}")


def _open_paths(paths: list[Path], columns: Columns, band: str | None) -> Source:
    if len(paths) == 1 and Store.is_store(paths[0]):
        return _store_source(Store.open(paths[0]), band)
    name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    files = [found for path in paths for found in _expand(path)]
    metadata = [path / METADATA for path in paths if (path / METADATA).is_file()]
    tables = [map_table(open_table(file, root), columns) for file, root in files]
    if len(metadata) > 1:
        raise UserError(f"{metadata[1]}: only one folder with {METADATA} can be read at a time; read them one by one")
    stars = StarTable(metadata[0], tables[0].fields["id"].name, columns) if metadata else None
    identity = [_identity(file) for file in [*(file for file, _ in files), *metadata]]
    source = TableSource(tables, band, name, identity, stars.complete if stars else None)
    source.inputs = [*(path for path in paths if path.is_dir()), *(file for file, _ in files)]
    return source


def _expand(path: Path) -> list[tuple[Path, Path]]:
    """The files that a path names (itself, a folder's tables, a pattern's matches), always in the same order.

    Each comes with the folder that it is below.
    """
    if path.is_dir():
        # A HATS catalogue keeps its rows below `dataset`, beside tables about the catalogue itself.
        root = path / "dataset" if (path / "dataset").is_dir() and list(path.glob("*properties")) else path
        found = sorted(p for p in root.rglob("*") if p.is_file() and format_of(p))
        hidden = [any(part[0] in "._" for part in p.relative_to(root).parts) or p.name == METADATA for p in found]
        files = [p for p, skip in zip(found, hidden, strict=True) if not skip]
        if not files:
            raise UserError(f"{path}: no table in this folder; light curves are read from {', '.join(SUFFIXES)}")
        hiding = [p for p in files if (kind := format_of(p)) and kind.hides_other_tables]
        return [(p, root) for p in hiding or files]
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise UserError(f"{path}: no file matches this pattern")
        return [found for match in matches for found in (_expand(match) if match.is_dir() else [(match, match.parent)])]
    return [(path, path.parent)]


def _identity(file: Path) -> dict[str, Any]:
    facts = file.stat()
    return {"path": str(file.resolve()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _open_list(items: Any, columns: Columns, band: str | None) -> Source:
    if not len(items):
        raise UserError("the list of light curves is empty")
    if isinstance(items[0], CurveBatch):
        return BatchSource(lambda: iter(items), band)
    tables = [table for i, item in enumerate(items) if (table := object_table(item, star=str(i))) is not None]
    if len(tables) == len(items):
        return TableSource([map_table(table, columns) for table in tables], band, f"list of {len(items)} tables")
    if tables:
        raise UserError("a list of light curves must hold one kind of object, not arrays and tables together")
    if band is not None:
        raise UserError(f"band {band!r} is asked for, but arrays have no bands; leave the band out")
    return ArraySource(items)


class TableSource:
    """Light curves of one or more tables, which all have a point a row, or all a light curve a row.

    In tables with a light curve a row, a batch is a piece of a table. Points are first grouped into light curves, if
    need be through files on disk (`points`).

    Args:
        tables: the tables, with the roles of their columns.
        band: read only this band.
        name: the input's name in error messages.
        identity: plain data that identify the input.
        complete: fills in bands and labels that the tables lack.

    Raises:
        UserError: the tables have rows of both kinds, or no band column where a band is asked for.
    """

    def __init__(
        self,
        tables: Sequence[MappedTable],
        band: str | None,
        name: str,
        identity: Any = None,
        complete: Complete | None = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.notes = [*_single_precision(tables), *_conversions(tables)]
        self.inputs: Sequence[Path] = ()
        self._tables = tables
        self._band = band
        self._complete = complete
        self._star_a_row = tables[0].star_a_row
        for mapped in tables:
            if mapped.star_a_row != self._star_a_row:
                one, other = (tables[0], mapped) if self._star_a_row else (mapped, tables[0])
                raise UserError(
                    f"{one.table.name} has a light curve a row but {other.table.name} has a point a row; "
                    "convert them apart"
                )
            if band is not None and "band" not in mapped.fields and complete is None:
                raise UserError(
                    f"{mapped.table.name}: band {band!r} is asked for, but there is no band column; "
                    "name it with --columns.band, or leave the band out"
                )

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = BandFilter(self._band)
        if self._star_a_row:
            yield from self._rows(wanted, skip)
            return
        simulated = any(is_simulated(mapped.table) for mapped in self._tables)
        expected = sum(mapped.table.rows for mapped in self._tables)
        for points in partitions(self._points(wanted), expected, spill, skip, progress):
            yield group_points(points, self.name, simulated)

    def _rows(self, wanted: BandFilter, skip: int) -> Iterator[CurveBatch]:
        read_all = skip == 0
        for mapped in self._tables:
            table = mapped.table
            per_row = max(table.points_per_row(mapped.fields["time"].column), 1.0)
            n_rows = int(min(max(BATCH_POINTS / per_row, 1), _MOST_ROWS))
            # If only reading the table tells how many pieces it has, its pieces are read and counted off `skip`.
            pieces = table.pieces(n_rows)
            jump = 0 if pieces is None else min(skip, pieces)
            skip -= jump
            if jump == pieces:
                continue
            simulated = is_simulated(table)
            for first_row, batch in table.batches(mapped.columns, n_rows, jump):
                if skip:
                    skip -= 1
                    continue
                rows = read_rows(batch, first_row, mapped, wanted, self._complete)
                if rows.lengths is None:
                    yield group_points(pa.Table.from_batches([rows.points()]), table.name, simulated)
                else:
                    yield rows.curves(table.name, simulated)
        if read_all:
            wanted.check(self.name)

    def _points(self, wanted: BandFilter) -> Iterator[Any]:
        for mapped in self._tables:
            for first_row, batch in mapped.table.batches(mapped.columns, _READ_ROWS):
                yield read_rows(batch, first_row, mapped, wanted, self._complete).points()
        wanted.check(self.name)


def _single_precision(tables: Sequence[MappedTable]) -> list[str]:
    """A note on tables whose times are float32, named by the first of them."""
    found = [mapped for mapped in tables if mapped.fields["time"].kind == pa.float32()]
    if not found:
        return []
    more = f" (and in {len(found) - 1} more tables)" if len(found) > 1 else ""
    return [
        f"{found[0].table.name}: times in {found[0].fields['time'].name!r}{more} are single precision: "
        "an MJD of 58000 is known to no better than 6 minutes; float64 is better"
    ]


def _conversions(tables: Sequence[MappedTable]) -> list[str]:
    """Notes on columns whose units were converted, named by the first table that has each."""
    notes: dict[str, str] = {}
    for mapped in tables:
        for role, factor in mapped.factors.items():
            field = mapped.fields[role]
            if factor != 1.0:
                notes.setdefault(role, f"{mapped.table.name}: {field.name!r} is in {field.unit!r} and was converted")
    return list(notes.values())


class BatchSource:
    """Light curves that are batches already.

    Args:
        start: returns the batches from the start.
        band: read only this band.
        name: the input's name in error messages.
        identity: plain data that identify the input.
    """

    def __init__(
        self,
        start: Callable[[], Iterator[CurveBatch]],
        band: str | None,
        name: str = "light curves",
        identity: Any = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.notes: list[str] = []
        self.inputs: Sequence[Path] = ()
        self._start = start
        self._band = band

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = None if self._band is None else BandFilter(self._band)
        for index, batch in enumerate(self._start()):
            if not isinstance(batch, CurveBatch):
                raise UserError(f"light curves cannot be read from an iterable of {type(batch).__name__}")
            if index >= skip:
                mask = None if wanted is None else wanted.mask(pa.array(batch.band, type=pa.string()))
                yield batch if mask is None else batch.select(mask)
        if wanted is not None and not skip:
            wanted.check(self.name)


class ArraySource(BatchSource):
    """A list of (L, 3) arrays, whose ids are their positions in the list."""

    def __init__(self, items: Any) -> None:
        super().__init__(self._arrays, None)
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def _arrays(self) -> Iterator[CurveBatch]:
        for first in range(0, len(self._items), _ARRAYS_A_BATCH):
            items = self._items[first : first + _ARRAYS_A_BATCH]
            yield CurveBatch.from_arrays(items, [str(first + i) for i in range(len(items))], source="list of arrays")


def _store_source(store: Store, band: str | None) -> BatchSource:
    identity = [{"path": str(store.path.resolve()), "digest": store.digest}]
    source = BatchSource(store.batches, band, str(store.path), identity)
    source.inputs = [store.path]
    return source
