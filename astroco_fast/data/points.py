"""Light curves from tables with one row a point, in any order, which may be larger than memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from astroco_fast.data.curves import MOST_POINTS, CurveBatch, too_long, two_labels
from astroco_fast.data.extent import Extent
from astroco_fast.data.hashing import star_hash
from astroco_fast.data.rows import to_objects
from astroco_fast.errors import UserError
from astroco_fast.files import CHECKSUM, flush, read_json, sealed, sha256, write_text

# Up to BUFFER_POINTS are grouped in memory. More are first cut, by the hash of the id, into files of about
# PARTITION_POINTS each, so that all points of a star are in one of them.
BUFFER_POINTS = 2_000_000
PARTITION_POINTS = 1_000_000
_MOST_PARTITIONS = 512  # files open at a time
DONE = "done.json"  # in a folder of files that hold all points


def partitions(
    points: Iterable[Any],
    expected: int,
    source: str,
    folder: Path | None,
    extent: Extent,
    skip: int,
    progress: bool,
) -> Iterator[Any]:
    """Cut points into tables that hold all points of their stars.

    Args:
        points: Arrow record batches with the columns id, band, label, time, mag, err (`rows.Rows.points`). They are not
            read where an earlier cut into `folder` is whole.
        expected: how many points there are, about.
        source: the input's name in error messages.
        folder: the folder for the files of the cut; None: a temporary one.
        extent: its total is how many points there are, if that is known, and once they have been read; it is told how
            many of them come before a table.
        skip: leave out this many tables at the start.
        progress: show a progress bar, on a terminal.

    Yields:
        Arrow tables with the same columns.

    Raises:
        UserError: a light curve is too long to be held in memory.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="astroco-")))
        done = folder / DONE
        found = _whole(folder, done)
        if found is None:
            done.unlink(missing_ok=True)
            waiting, found = _cut(points, expected, folder, extent.total, progress)
            if waiting:
                table = pa.Table.from_batches(waiting)
                extent.total, extent.done = len(table), 0
                if not skip:
                    yield table
                extent.done = len(table)
            if found:
                for file in found:
                    flush(file)
                facts = {"files": {f.name: sha256(f) for f in found}, "points": {f.name: n for f, n in found.items()}}
                write_text(done, json.dumps(sealed(facts)))
        if found:
            extent.total, extent.done = sum(found.values()), 0
        for place, (file, count) in enumerate(found.items()):
            if place >= skip:
                yield _read(file, source)
            extent.done += count


def _read(file: Path, source: str) -> Any:
    """The points of a file, unless most of them are of one light curve that is too long."""
    batches: list[Any] = []
    read, checked = 0, MOST_POINTS
    with pa.OSFile(str(file)) as opened, pa.ipc.open_stream(opened) as stream:
        for batch in stream:
            batches.append(batch)
            read += batch.num_rows
            if read > checked:
                keys = pa.Table.from_batches(batches).select(["id", "band"])
                counts = keys.group_by(["id", "band"]).aggregate([([], "count_all")])
                longest = pc.index(counts["count_all"], pc.max(counts["count_all"])).as_py()
                if counts["count_all"][longest].as_py() > MOST_POINTS:
                    raise too_long(source, counts["id"][longest].as_py())
                checked = 2 * read
    return pa.Table.from_batches(batches, schema=stream.schema)


def _whole(folder: Path, done: Path) -> dict[Path, int] | None:
    """The files of an earlier cut, and the number of points in each, if all of them are as they were written.

    Else None, and the points are cut again.
    """
    try:
        told = read_json(done)
        digests = told["files"]
        if told[CHECKSUM] != sealed(told)[CHECKSUM]:
            return None
        files = {file: int(told["points"][file.name]) for file in _files(folder, len(digests))}
        return files if all(sha256(file) == digests[file.name] for file in files) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cut(
    points: Iterable[Any], expected: int, folder: Path, total: int | None, progress: bool
) -> tuple[list[Any], dict[Path, int]]:
    """All points, where they are few, or else the files that they were cut into, and the number of points in each."""
    waiting: list[Any] = []
    read = 0
    with ExitStack() as stack:
        cutter: _Cutter | None = None
        # tqdm takes None for "only on a terminal".
        hidden = None if progress else True
        bar = tqdm(desc="reading", unit=" points", unit_scale=True, total=total, disable=hidden)
        shown = stack.enter_context(bar)
        for batch in points:
            shown.update(batch.num_rows)
            read += batch.num_rows
            waiting.append(batch)
            if cutter is None and read > BUFFER_POINTS:
                cutter = stack.enter_context(_Cutter(folder, expected))
            while cutter is not None and waiting:
                cutter.add(waiting.pop(0))
    return waiting, {} if cutter is None else dict(zip(cutter.files, cutter.counts, strict=True))


class _Cutter:
    """Writes points into files, chosen by the star's hash."""

    def __init__(self, folder: Path, expected: int) -> None:
        n = int(min(max(-(-expected // PARTITION_POINTS), 2), _MOST_PARTITIONS))
        self.files = _files(folder, n)
        self.counts = [0] * n
        self._stack = ExitStack()
        self._writers: list[Any] = []

    def __enter__(self) -> _Cutter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, points: Any) -> None:
        if not self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            for path in self.files:
                writer = pa.ipc.new_stream(str(path), points.schema, options=options)
                self._writers.append(self._stack.enter_context(writer))
        n = len(self.files)
        stars = points.column("id").dictionary_encode()
        file = (star_hash(stars.dictionary.to_pylist()) % np.uint64(n)).astype(np.int16)
        of_point = file[stars.indices.to_numpy(zero_copy_only=False)]
        order = np.argsort(of_point, kind="stable")
        cuts = np.searchsorted(of_point[order], np.arange(n + 1))
        sorted_points = points.take(pa.array(order))
        for place, (first, last) in enumerate(pairwise(cuts.tolist())):
            if last > first:
                self._writers[place].write_batch(sorted_points.slice(first, last - first))
                self.counts[place] += last - first


def _files(folder: Path, n: int) -> list[Path]:
    return [folder / f"points-{i:03d}.arrow" for i in range(n)]


def group_points(points: Any, source: str, simulated: bool) -> CurveBatch:
    """Group points into light curves by (id, band).

    Stars, and the bands of a star, come in the order in which they first appear; points keep their order.

    Args:
        points: an Arrow table with the columns id, band, label, time, mag, err (`rows.Rows.points`).
        source: the input's name in error messages.
        simulated: whether they are simulated.

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
        simulated=simulated,
        **arrays,
    )


def _label_of_star(
    star: NDArray[np.int64], label: NDArray[np.int64], words: dict[str, NDArray[np.object_]], source: str
) -> NDArray[np.object_]:
    """(stars,) the label of each star, from those of its points that have one."""
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
