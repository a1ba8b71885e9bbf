"""The packed store: light curves on disk, memory-mapped, with checksums that show whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from tqdm import tqdm

import astroco_fast
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.periods import Periods
from astroco_fast.errors import UserError
from astroco_fast.files import CHECKSUM, locked, read_json, remove_partials, sealed, sha256, whole_file, write_text

FORMAT = "astroco-store"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CURVES = "curves.parquet"
# Little-endian on every machine, so that a store can be copied to any other.
POINT_FILES = {"time": ("time.f64", "<f8"), "mag": ("mag.f32", "<f4"), "err": ("err.f32", "<f4")}
OFFSETS = ("offsets.i64", "<i8")
FILES = (*(name for name, _ in POINT_FILES.values()), OFFSETS[0], CURVES)
# Added to a finished store by `astroco periods`, row i for curve i.
PERIODS = "periods.parquet"
_AGAIN = "remove the folder and convert again"
_SEARCH_AGAIN = "find the periods again with: astroco periods {}"
_SECTIONS = ("counts", "files", "provenance", "report")
_CURVES_A_BATCH = 2048


class Store:
    """n light curves with P points, opened by `Store.open`. Curve i owns the points `offsets[i]:offsets[i + 1]`, which
    are sorted by time.

    Attributes:
        path: the store's folder.
        manifest: the content of its manifest: `format`, `schema_version`, `counts`, `files`, `provenance`, `report`,
            and `sha256`, the checksum of these, which stores of earlier versions lack.
        digest: one hash of the contents of all files but the periods, which identifies the light curves.
        time: (P,) float64, days. This and the next three are memory-mapped and read-only.
        mag: (P,) float32, magnitudes.
        err: (P,) float32, magnitudes.
        offsets: (n + 1,) int64.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest_of({name: manifest["files"][name] for name in FILES})
        self.time: NDArray[np.float64] = self._map(*POINT_FILES["time"])
        self.mag: NDArray[np.float32] = self._map(*POINT_FILES["mag"])
        self.err: NDArray[np.float32] = self._map(*POINT_FILES["err"])
        self.offsets: NDArray[np.int64] = self._map(*OFFSETS)
        self._text: dict[str, Any] = {}  # the columns of text that were read, in Arrow's form: a tenth of objects'

    @classmethod
    def open(cls, path: str | Path, verify: bool = True, check_periods: bool = True) -> Store:
        """Open a store, and compare it with its manifest.

        Args:
            path: the store's folder.
            verify: compare the files' checksums too, which reads all of them, rather than only their sizes.
            check_periods: compare the table of periods too, if the store has one. False where they are replaced.

        Raises:
            UserError: the folder is not a store, was made by a newer version, or is not as it was written.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for name in FILES:
            _check_file(path / name, manifest["files"].get(name), verify)
        if check_periods and PERIODS in manifest["files"]:
            _check_file(path / PERIODS, manifest["files"][PERIODS], verify, _SEARCH_AGAIN.format(path))
        store = cls(path, manifest)
        counts, points = manifest["counts"], len(store.time)
        if not len(store.offsets) or len(store.offsets) != counts["curves"] + 1 or points != counts["points"]:
            raise UserError(f"{path / MANIFEST}: its counts are not those of the files; {_AGAIN}")
        whole = store.offsets[0] == 0 and store.offsets[-1] == points == len(store.mag) == len(store.err)
        if not whole or np.diff(store.offsets).min(initial=0) < 0:
            raise UserError(f"{path / OFFSETS[0]}: it does not divide the points into light curves; {_AGAIN}")
        return store

    @staticmethod
    def is_store(path: str | Path) -> bool:
        """Whether a folder is a store (of any version, whole or not), by its manifest, or else by its file of times."""
        path = Path(path)
        try:
            content = read_json(path / MANIFEST)
        except (OSError, ValueError):
            content = None
        points = path / POINT_FILES["time"][0]
        return points.is_file() or (isinstance(content, dict) and content.get("format") == FORMAT)

    @property
    def n_curves(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_points(self) -> int:
        return len(self.time)

    @property
    def simulated(self) -> bool:
        """Whether any of the curves are simulated rather than observed."""
        return bool(self.manifest["provenance"].get("simulated", False))

    @property
    def ids(self) -> NDArray[np.object_]:
        """(n,) object array of str, made anew each time: 100 bytes a curve. `words` gives those of some curves."""
        return self.words("id")

    @property
    def bands(self) -> NDArray[np.object_]:
        """(n,) object array of str, "" where unknown; made anew each time."""
        return self.words("band")

    @property
    def labels(self) -> NDArray[np.object_]:
        """(n,) object array of str, "" where unknown; made anew each time."""
        return self.words("label")

    def words(self, column: str, curves: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.object_]:
        """The text of some curves, as an object array of str.

        Args:
            column: "id", "band" or "label".
            curves: a slice of the curves, or their (k,) places.
        """
        if column not in self._text:
            self._text[column] = self._column(column).combine_chunks()
        text = self._text[column]
        chosen = text[curves] if isinstance(curves, slice) else text.take(pa.array(curves))
        return np.asarray(chosen.to_numpy(zero_copy_only=False), dtype=object)

    @cached_property
    def star_hash(self) -> NDArray[np.uint64]:
        """(n,) uint64, as `hashing.star_hash` of the ids."""
        return np.asarray(self._column("star_hash").to_numpy(), dtype=np.uint64)

    @cached_property
    def periods(self) -> Periods | None:
        """The periods of the n light curves; None if they were not searched (`astroco periods`)."""
        if PERIODS not in self.manifest["files"]:
            return None
        try:
            periods = Periods.from_table(pyarrow.parquet.read_table(self.path / PERIODS))
        except (pa.ArrowException, OSError, LookupError, ValueError) as error:
            raise UserError(f"{self.path / PERIODS}: cannot be read; {_SEARCH_AGAIN.format(self.path)}") from error
        if len(periods) != self.n_curves:
            raise UserError(f"{self.path / PERIODS}: of other light curves; {_SEARCH_AGAIN.format(self.path)}")
        return periods

    def add_periods(self, search: Callable[[CurveBatch], Periods], progress: bool) -> None:
        """Search the periods of all light curves, and add them to the store.

        Args:
            search: the periods of a batch of light curves.
            progress: show a progress bar, on a terminal.

        Raises:
            UserError: as for `write_periods`.
        """
        with tqdm(desc="periods", total=self.n_curves, unit=" curves", disable=None if progress else True) as bar:

            def parts() -> Iterator[Periods]:
                for batch in self.batches():
                    yield search(batch)
                    bar.update(len(batch))

            self.write_periods(parts())

    def write_periods(self, parts: Iterable[Periods]) -> None:
        """Add the periods of the light curves to the store, in place of those that it has.

        Until all of them are written, the store stays as it is. Its digest stays the same.

        Args:
            parts: the periods of consecutive light curves, n in all, as for `batches`.

        Raises:
            UserError: another process is writing this store's periods, or the folder cannot be written.
        """
        files = {name: self.manifest["files"][name] for name in FILES}
        with locked(self.path, "another process is writing its periods; wait for it"):
            remove_partials(self.path)
            with whole_file(self.path / PERIODS) as partial:
                rows = 0
                with pyarrow.parquet.ParquetWriter(partial, Periods.empty(0).to_table().schema) as writer:
                    for part in parts:
                        writer.write_table(part.to_table())
                        rows += len(part)
                if rows != self.n_curves:
                    raise ValueError(f"periods of {rows} light curves for a store of {self.n_curves}")
                added = {**describe_file(partial), "package_version": astroco_fast.__version__}
                # A kill must not leave a file beside the checksum of another: meanwhile, the manifest lists neither.
                self._write_manifest(files)
            self._write_manifest({**files, PERIODS: added})
        vars(self).pop("periods", None)

    def _write_manifest(self, files: dict[str, Any]) -> None:
        self.manifest = write_manifest(self.path, {**self.manifest, "files": dict(files)})

    def batches(self, with_periods: bool = False) -> Iterator[CurveBatch]:
        """The store's curves, copied into memory some at a time.

        Args:
            with_periods: give them the periods that the store has.
        """
        periods = self.periods if with_periods else None
        for first in range(0, self.n_curves, _CURVES_A_BATCH):
            last = min(first + _CURVES_A_BATCH, self.n_curves)
            curves, points = slice(first, last), (int(self.offsets[first]), int(self.offsets[last]))
            yield CurveBatch(
                ids=self.words("id", curves),
                band=self.words("band", curves),
                label=self.words("label", curves),
                time=self._points("time", *points),
                mag=self._points("mag", *points),
                err=self._points("err", *points),
                offsets=self.offsets[first : last + 1] - self.offsets[first],
                source=str(self.path),
                simulated=self.simulated,
                periods=None if periods is None else periods.select(curves),
            )

    def _map(self, name: str, dtype: str) -> Any:
        size, width = (self.path / name).stat().st_size, np.dtype(dtype).itemsize
        if size % width:
            raise UserError(f"{self.path / name}: {size} bytes are no whole number of values of {width}; {_AGAIN}")
        # An empty file cannot be mapped.
        return np.memmap(self.path / name, dtype=dtype, mode="r") if size else np.empty(0, dtype)

    def _points(self, role: str, first: int, last: int) -> NDArray[Any]:
        """Values of consecutive points. They are read rather than mapped, so that they do not stay in memory."""
        name, dtype = POINT_FILES[role]
        kind = np.dtype(dtype)
        return np.fromfile(self.path / name, kind, count=last - first, offset=first * kind.itemsize)

    def _column(self, name: str) -> Any:
        file, kind = self.path / CURVES, curve_schema().field(name).type
        try:
            column = pyarrow.parquet.read_table(file, columns=[name])[name]
            column.validate(full=True)  # text that is no UTF-8
        except (pa.ArrowException, OSError, LookupError) as error:
            raise UserError(f"{file}: column {name!r} cannot be read; {_AGAIN}") from error
        if column.type != kind or len(column) != self.n_curves or column.null_count:
            raise UserError(f"{file}: column {name!r} does not hold {self.n_curves} values of {kind}; {_AGAIN}")
        return column


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a store's manifest.

    Raises:
        UserError: there is no such folder or no manifest, or the manifest is damaged, is not a store's, or has a newer
            schema.
    """
    file = path / MANIFEST
    if not path.exists():
        raise UserError(f"{path}: no such store; make one with: astroco convert INPUT {path}")
    try:
        manifest = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        if Store.is_store(path):
            raise UserError(f"{file}: missing, so this store is not whole; {_AGAIN}") from None
        raise UserError(
            f"{file}: not there, so this is no store; make one with: astroco convert INPUT OUTPUT"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{file}: not the manifest of a store; make one with: astroco convert INPUT OUTPUT")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or not all(k in manifest for k in _SECTIONS):
        raise UserError(f"{file}: incomplete; {_AGAIN}")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{file}: made by a newer version (schema {version}, known here: {SCHEMA_VERSION}); "
            "upgrade with: pip install -U astroco_fast"
        )
    if _damaged(manifest):
        raise UserError(f"{file}: damaged; {_AGAIN}")
    if CHECKSUM in manifest and manifest[CHECKSUM] != sealed(manifest)[CHECKSUM]:
        raise UserError(f"{file}: its content has changed since it was written (checksum); {_AGAIN}")
    return manifest


def write_manifest(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of the store in a folder; returns its content with its checksum."""
    manifest = sealed(content)
    write_text(path / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    return manifest


def _damaged(manifest: dict[str, Any]) -> bool:
    """Whether a section of a manifest does not have the types with which it is written."""
    if not all(isinstance(manifest[name], dict) for name in _SECTIONS):
        return True
    counts = [manifest["counts"].get(name) for name in ("curves", "points")]
    files = [entry if isinstance(entry, dict) else {} for entry in manifest["files"].values()]
    sizes, hashes = ([entry.get(key) for entry in files] for key in ("bytes", "sha256"))
    return not (all(isinstance(n, int) for n in counts + sizes) and all(isinstance(text, str) for text in hashes))


def describe_file(path: Path) -> dict[str, Any]:
    """The size and checksum of a file, as the manifest records them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def digest_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The SHA-256, in hexadecimal, of the names and checksums of a manifest's files."""
    text = "\n".join(f"{name} {files[name]['sha256']}" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


def curve_schema() -> Any:
    """The columns of `curves.parquet`, which has one row a light curve."""
    text = [(name, pa.string()) for name in ("id", "band", "label")]
    return pa.schema([*text, ("n_points", pa.int64()), ("star_hash", pa.uint64())])


def _check_file(path: Path, recorded: Mapping[str, Any] | None, verify: bool, way_out: str = _AGAIN) -> None:
    if recorded is None:
        raise UserError(f"{path.parent / MANIFEST}: does not list {path.name}; {way_out}")
    if not path.is_file():
        raise UserError(f"{path}: missing from the store; {way_out}")
    size = path.stat().st_size
    if size != recorded["bytes"]:
        raise UserError(f"{path}: has {size} bytes, {recorded['bytes']} were written; {way_out}")
    if verify and sha256(path) != recorded["sha256"]:
        raise UserError(f"{path}: its content has changed since it was written (checksum); {way_out}")
