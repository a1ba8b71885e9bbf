"""Tables with one point a row: a light curve's points may stand anywhere, and the table may exceed the memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from astroco_fast.data.curves import CurveBatch, to_float32
from astroco_fast.data.fields import BandFilter, MappedTable, photometry
from astroco_fast.data.metadata import StarTable, TableSource
from astroco_fast.data.seen import two_labels
from astroco_fast.data.split import star_hash
from astroco_fast.data.tables import is_simulated
from astroco_fast.data.values import to_numbers, to_objects
from astroco_fast.errors import UserError

# A table of up to BUFFER_POINTS is grouped in memory. A longer one is first cut, by the hash of the id, into files of
# about PARTITION_POINTS each, so that every star lies whole in one of them.
BUFFER_POINTS = 2_000_000
PARTITION_POINTS = 1_000_000
_MOST_PARTITIONS = 512  # files open at a time
_READ_ROWS = 250_000
_DONE = "done.json"


class PointSource(TableSource):
    """Light curves of one or more tables with one point a row; one batch a partition, stars in no special order."""

    def batches(self, skip: int = 0, spill: Path | None = None, progress: bool = False) -> Iterator[CurveBatch]:
        with ExitStack() as stack:
            if spill is None:
                spill = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="astroco-")))
            simulated = any(is_simulated(mapped.table) for mapped in self._tables)
            for partition in self._partitions(spill, progress)[skip:]:
                yield replace(group_points(_load(partition), self.name), simulated=simulated)

    def _partitions(self, folder: Path, progress: bool) -> list[Path] | list[list[Any]]:
        """Files of a table that was cut, or all of a small table. A cut that was finished before is used again."""
        done = folder / _DONE
        if done.exists():
            return _files(folder, json.loads(done.read_text())["partitions"])
        wanted = BandFilter(self._band)
        waiting: list[Any] = []
        rows = 0
        with ExitStack() as stack:
            cutter: _Cutter | None = None
            shown = stack.enter_context(
                tqdm(desc="reading", unit=" points", unit_scale=True, disable=_hidden(progress))
            )
            for points in self._points(wanted):
                shown.update(points.num_rows)
                rows += points.num_rows
                waiting.append(points)
                if cutter is None and rows > BUFFER_POINTS:
                    cutter = stack.enter_context(_Cutter(folder, sum(mapped.table.rows for mapped in self._tables)))
                while cutter is not None and waiting:
                    cutter.add(waiting.pop(0))
        wanted.check(self.name)
        if cutter is None:
            return [waiting] if waiting else []
        done.write_text(json.dumps({"partitions": cutter.n}))
        return _files(folder, cutter.n)

    def _points(self, wanted: BandFilter) -> Iterator[Any]:
        for mapped in self._tables:
            for first_row, batch in mapped.table.batches(mapped.columns, _READ_ROWS):
                yield read_points(batch, first_row, mapped, wanted, self._stars)


def read_points(
    batch: Any, first_row: int, mapped: MappedTable, wanted: BandFilter, stars: StarTable | None = None
) -> Any:
    """The points of a record batch in one form: columns id, band, label (text), time (float64), mag, err (float32)."""
    ids, bands, labels = (mapped.text(role, batch, first_row) for role in ("id", "band", "label"))
    if stars is not None:
        bands, labels = stars.complete(ids, bands, labels)
    mask = wanted.mask(bands)
    rows = None
    if mask is not None:
        rows, keep = np.flatnonzero(mask), pa.array(mask)
        batch, ids, bands, labels = (a.filter(keep) for a in (batch, ids, bands, labels))
    numbers = {
        role: to_numbers(mapped.roles[role].array(batch), mapped.place(role, first_row), rows)
        for role in ("time", mapped.value, mapped.error)
    }
    mag, err = photometry(numbers[mapped.value], numbers[mapped.error], mapped.zero_point)
    return pa.RecordBatch.from_arrays(
        [ids, bands, labels, pa.array(numbers["time"]), pa.array(to_float32(mag)), pa.array(to_float32(err))],
        names=["id", "band", "label", "time", "mag", "err"],
    )


def group_points(points: Any, source: str) -> CurveBatch:
    """Group points (an Arrow table as `read_points` makes them) by (id, band).

    Stars, and the bands of a star, come in the order in which they first appear; points keep their order.

    Raises:
        UserError: the points of one id carry two different labels.
    """
    coded = {name: points[name].combine_chunks().dictionary_encode() for name in ("id", "band", "label")}
    coded = {name: a if not isinstance(a, pa.ChunkedArray) else a.combine_chunks() for name, a in coded.items()}
    words = {name: to_objects(array.dictionary) for name, array in coded.items()}
    code = {name: array.indices.to_numpy(zero_copy_only=False).astype(np.int64) for name, array in coded.items()}
    curve = code["id"] * max(len(words["band"]), 1) + code["band"]
    arrays = {name: points[name].to_numpy() for name in ("time", "mag", "err")}
    if (np.diff(curve) < 0).any():
        order = np.argsort(curve, kind="stable")
        curve = curve[order]
        arrays = {name: array[order] for name, array in arrays.items()}
        code = {name: array[order] for name, array in code.items()}
    starts = np.flatnonzero(np.diff(curve, prepend=-1)).astype(np.int64)
    star_labels = _label_of_star(code["id"], code["label"], words, source)
    return CurveBatch(
        ids=words["id"][code["id"][starts]],
        band=words["band"][code["band"][starts]],
        label=star_labels[code["id"][starts]],
        offsets=np.append(starts, len(curve)),
        source=source,
        **arrays,
    )


def _label_of_star(
    star: NDArray[np.int64], label: NDArray[np.int64], words: dict[str, NDArray[np.object_]], source: str
) -> NDArray[np.object_]:
    """(stars,) the label of each star; points without one take no part."""
    labels = np.append(words["label"], "")
    chosen = np.full(len(words["id"]), len(labels) - 1)
    given = words["label"][label] != "" if len(label) else np.zeros(0, dtype=bool)
    chosen[star[given]] = label[given]
    conflict = chosen[star[given]] != label[given]
    if conflict.any():
        i = int(np.argmax(conflict))
        name, one, other = words["id"][star[given][i]], labels[label[given][i]], labels[chosen[star[given][i]]]
        raise UserError(two_labels(source, name, one, other))
    return np.asarray(labels[chosen], dtype=object)


class _Cutter:
    """Writes points into one file a partition, chosen by the star's hash."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.n = int(min(max(-(-rows // PARTITION_POINTS), 2), _MOST_PARTITIONS))
        self._folder = folder
        self._stack = ExitStack()
        self._writers: list[Any] = []

    def __enter__(self) -> _Cutter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, points: Any) -> None:
        if not self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            for path in _files(self._folder, self.n):
                writer = pa.ipc.new_stream(str(path), points.schema, options=options)
                self._writers.append(self._stack.enter_context(writer))
        stars = points.column("id").dictionary_encode()
        partition = (star_hash(stars.dictionary.to_pylist()) % np.uint64(self.n)).astype(np.int16)
        of_point = partition[stars.indices.to_numpy(zero_copy_only=False)]
        order = np.argsort(of_point, kind="stable")
        cuts = np.searchsorted(of_point[order], np.arange(self.n + 1))
        sorted_points = points.take(pa.array(order))
        for writer, first, last in zip(self._writers, cuts[:-1], cuts[1:], strict=True):
            if last > first:
                writer.write_batch(sorted_points.slice(first, last - first))


def _files(folder: Path, n: int) -> list[Path]:
    return [folder / f"points-{i:03d}.arrow" for i in range(n)]


def _load(partition: Path | list[Any]) -> Any:
    if isinstance(partition, list):
        return pa.Table.from_batches(partition)
    with pa.OSFile(str(partition)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()


def _hidden(progress: bool) -> bool | None:
    """What tqdm's `disable` means: None hides the bar where the output is not a terminal."""
    return None if progress else True
