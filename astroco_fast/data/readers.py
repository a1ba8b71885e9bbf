"""Light curves in, whatever they come as."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.fields import BandFilter, MappedTable, map_table
from astroco_fast.data.long import PointSource
from astroco_fast.data.metadata import NAME as METADATA
from astroco_fast.data.metadata import StarTable
from astroco_fast.data.nested import RowSource
from astroco_fast.data.objects import is_curve_list, map_object
from astroco_fast.data.store import Store
from astroco_fast.data.tables import SUFFIXES, open_table
from astroco_fast.errors import UserError

_ARRAYS_A_BATCH = 2048


class Source(Protocol):
    """Light curves that can be read from the start, in batches that are the same each time.

    `name` is for messages; `notes` tell what the user should know of the input. `identity` is plain data that says
    which input this is (None: cannot be told), so that an interrupted conversion is resumed with the same input only.
    """

    name: str
    identity: Any
    notes: list[str]

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        """Read, leaving out the first `skip` batches. `spill` is a folder for temporary files: what it holds from an
        earlier reading of the same source is used again."""


def read_curves(source: Any, columns: Columns | None = None, band: str | None = None) -> Iterator[CurveBatch]:
    """Read light curves, uncleaned, in bounded memory.

    Args:
        source: path of a table (CSV, Parquet, FITS; one row a point, or one row a light curve with list columns), of
            a folder of such tables, or of a folder with Astromer's `metadata.parquet`; a pattern with `*`; a list of
            paths; the path of a store, or a `Store`; a list of (L, 3) arrays with columns time, magnitude, error (ids
            "0", "1", ...); a pandas frame, Arrow or astropy table; lightkurve objects; batches of curves.
        columns: the user's choice of columns; the rest is found by `columns.ALIASES`.
        band: read only this band.

    Raises:
        UserError: names the file, column, row or id that cannot be used, and what to do.
    """
    yield from open_source(source, columns, band).batches()


def open_source(source: Any, columns: Columns | None = None, band: str | None = None) -> Source:
    """Recognise what kind of input this is; see `read_curves` for what is taken."""
    columns = columns or Columns()
    if isinstance(source, str | Path):
        if source == "":
            raise UserError("the path of the light curves is empty; name a file or a folder")
        source = [source]
    if isinstance(source, Store):
        return _StoreSource(source, band)
    if isinstance(source, CurveBatch):
        return _BatchSource([source], band)
    if isinstance(source, np.ndarray) and source.ndim == 2:
        source = [source]
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | Path) for item in source):
        return _open_paths([Path(item) for item in source], columns, band)
    mapped = map_object(source, columns, fixed_id="0")
    if mapped is not None:
        return _table_source([mapped], band, None, mapped.table.name, None)
    if is_curve_list(source):
        return _open_list(source, columns, band)
    if isinstance(source, Iterable):
        return _BatchSource(source, band)
    raise UserError(f"light curves cannot be read from a {type(source).__name__}")


def _open_paths(paths: list[Path], columns: Columns, band: str | None) -> Source:
    name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    if len(paths) == 1 and Store.is_store(paths[0]):
        return _StoreSource(Store.open(paths[0]), band)
    files = [file for path in paths for file in _expand(path)]
    metadata = [path / METADATA for path in paths if (path / METADATA).is_file()]
    tables = [map_table(open_table(file), columns) for file in files]
    stars = StarTable(metadata[0], tables[0].roles["id"].name, columns) if metadata else None
    if len(metadata) > 1:
        raise UserError(f"{metadata[1]}: only one folder with {METADATA} can be read at a time; read them one by one")
    identity = [_identity(file) for file in [*files, *metadata]]
    return _table_source(tables, band, stars, name, identity)


def _expand(path: Path) -> list[Path]:
    """The files that a path stands for: itself, a folder's tables, or a pattern's matches; always in one order."""
    if path.is_dir():
        # A HATS catalogue keeps its rows below `dataset`, beside tables about the catalogue itself.
        root = path / "dataset" if (path / "dataset").is_dir() and list(path.glob("*properties")) else path
        found = sorted(p for p in root.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
        hidden = [any(part[0] in "._" for part in p.relative_to(root).parts) or p.name == METADATA for p in found]
        files = [p for p, skip in zip(found, hidden, strict=True) if not skip]
        if not files:
            raise UserError(f"{path}: no table in this folder; light curves are read from {', '.join(SUFFIXES)}")
        return files
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise UserError(f"{path}: no file matches this pattern")
        return [file for match in matches for file in (_expand(match) if match.is_dir() else [match])]
    return [path]


def _identity(file: Path) -> dict[str, Any]:
    facts = file.stat()
    return {"path": str(file.resolve()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _table_source(
    tables: list[MappedTable], band: str | None, stars: StarTable | None, name: str, identity: Any
) -> Source:
    first = tables[0]
    for mapped in tables:
        if mapped.star_a_row != first.star_a_row:
            one, other = (first, mapped) if first.star_a_row else (mapped, first)
            raise UserError(
                f"{one.table.name} has a light curve a row but {other.table.name} has a point a row; convert them apart"
            )
        if band is not None and "band" not in mapped.roles and stars is None:
            raise UserError(
                f"{mapped.table.name}: band {band!r} is asked for, but there is no band column; "
                "name it with --columns.band, or leave the band out"
            )
    kind = RowSource if first.star_a_row else PointSource
    return kind(tables, band, stars, name, identity)


def _open_list(items: Any, columns: Columns, band: str | None) -> Source:
    if not len(items):
        raise UserError("the list of light curves is empty")
    if isinstance(items[0], CurveBatch):
        return _BatchSource(items, band)
    mapped_items = [map_object(item, columns, fixed_id=str(i)) for i, item in enumerate(items)]
    tables = [mapped for mapped in mapped_items if mapped is not None]
    if len(tables) == len(items):
        return _table_source(tables, band, None, f"list of {len(items)} tables", None)
    if tables:
        raise UserError("a list of light curves must hold one kind of object, not arrays and tables together")
    if band is not None:
        raise UserError(f"band {band!r} is asked for, but arrays have no bands; leave the band out")
    return ArraySource(items)


class _ArrayBatches:
    """A list of (L, 3) arrays, some at a time."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[CurveBatch]:
        for first in range(0, len(self._items), _ARRAYS_A_BATCH):
            items = self._items[first : first + _ARRAYS_A_BATCH]
            yield CurveBatch.from_arrays(items, [str(first + i) for i in range(len(items))], source="list of arrays")


class _StoreBatches:
    """A store's curves, as often as they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[CurveBatch]:
        return self._store.batches()


class _BatchSource:
    """Whatever yields batches of curves."""

    name = "light curves"
    identity: Any = None

    def __init__(self, batches: Iterable[CurveBatch], band: str | None) -> None:
        self.notes: list[str] = []
        self._batches = batches
        self._band = band

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        wanted = BandFilter(self._band)
        for index, batch in enumerate(self._batches):
            if not isinstance(batch, CurveBatch):
                raise UserError(f"light curves cannot be read from an iterable of {type(batch).__name__}")
            if index >= skip:
                mask = wanted.mask(pa.array(batch.band, type=pa.string()))
                yield batch if mask is None else batch.select(mask)
        if not skip:
            wanted.check(self.name)


class ArraySource(_BatchSource):
    """A list of (L, 3) arrays; the id of each is its place in the list."""

    def __init__(self, items: Any) -> None:
        super().__init__(_ArrayBatches(items), None)


class _StoreSource(_BatchSource):
    """A store's own curves."""

    def __init__(self, store: Store, band: str | None) -> None:
        super().__init__(_StoreBatches(store), band)
        self.name = str(store.path)
        self.identity = [{"path": str(store.path.resolve()), "digest": store.digest}]
