"""Writing a store in steps, each of which survives a kill."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.store import (
    CURVES,
    FILES,
    FORMAT,
    MANIFEST,
    OFFSETS,
    POINT_FILES,
    SCHEMA_VERSION,
    Store,
    curve_schema,
    describe_file,
    write_manifest,
)
from astroco_fast.errors import UserError
from astroco_fast.files import flush, locked, publish, read_json, remove_partials, require_here, write_text

# Progress is recorded after this many points (16 bytes each, so that a kill loses some dozen MB of work), or after this
# many curves, which may have no points.
STEP_POINTS = 1_000_000
STEP_CURVES = 100_000

_GROWING = (*(name for name, _ in POINT_FILES.values()), OFFSETS[0])
_NAMES = (*FILES, MANIFEST, "work")


class StoreWriter:
    """The folder `<out>.partial`, which becomes the store `out`.

    Files of points and offsets grow by appending. After each step they are flushed to disk, the step's rows of
    `curves.parquet` are put aside, and `work/progress.json` is replaced. It says how long each file is, so that what a
    killed process wrote after that is cut off, and its checksum, so that what the disk has changed is noticed. The
    checksums in the manifest are of what was written, too, rather than of what the disk holds. `work` holds what is not
    part of the finished store.

    Args:
        out: folder of the store to be.
        plan: plain data that says what is converted, and how. Progress under another plan is discarded.

    Attributes:
        spill: folder for the source's temporary files.
        discarded: whether earlier progress was discarded.
        batches, curves, points, steps: how many were written, earlier progress included.
        counts: what was counted on the way, earlier progress included.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        self.spill = self.path / "work" / "spill"
        self.discarded = False
        self._work = self.path / "work"
        self._plan = plan
        self._rows: list[CurveBatch] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._waiting = {"points": 0, "curves": 0}
        self.batches = self.curves = self.points = self.steps = 0
        self.counts: Counter[str] = Counter()
        self._digests = {name: hashlib.sha256() for name in _GROWING}
        self._step_digests: list[str] = []

    @contextlib.contextmanager
    def opened(self) -> Iterator[StoreWriter]:
        """Lock the folder, and take up earlier progress or discard it.

        Raises:
            UserError: the folder holds anything but a conversion, or another process is converting into it.
        """
        require_here(self.out)
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "another process is converting into it; wait for it, or choose another output"):
            remove_partials(self.path)
            if others := sorted({entry.name for entry in self.path.iterdir()} - {*_NAMES}):
                raise UserError(
                    f"{self.path}: holds {others[0]!r}, but the conversion would go on there; move it away, or choose "
                    "another output"
                )
            if not self._take_up():
                self.discarded = self.complete or (self._work / "plan.json").exists()
                self._start()
            yield self

    @property
    def complete(self) -> bool:
        """Whether everything is written, and only the folder's last renaming is missing."""
        return (self.path / MANIFEST).exists()

    def append(self, batch: CurveBatch, hashes: NDArray[np.uint64], counts: Counter[str]) -> None:
        """Add a batch of the source.

        Args:
            batch: the batch after cleaning; it may be empty.
            hashes: (n,) the `star_hash` of its ids.
            counts: the numbers to add to the attribute `counts`.
        """
        for role, (name, dtype) in POINT_FILES.items():
            self._extend(name, getattr(batch, role).astype(dtype, copy=False))
        self._extend(OFFSETS[0], (batch.offsets[1:] + self.points).astype(OFFSETS[1], copy=False))
        self.batches += 1
        self.curves += len(batch)
        self.points += batch.n_points
        self.counts += counts
        self._rows.append(batch)
        self._hashes.append(hashes)
        self._waiting["points"] += batch.n_points
        self._waiting["curves"] += len(batch)
        if self._waiting["points"] >= STEP_POINTS or self._waiting["curves"] >= STEP_CURVES:
            self.record()

    def record(self) -> None:
        """End a step: what was appended so far survives a kill."""
        content = pa.BufferOutputStream()
        pyarrow.parquet.write_table(self._table(), content)
        rows = content.getvalue().to_pybytes()
        self._step_file(self.steps).write_bytes(rows)
        flush(self._step_file(self.steps))
        for name in _GROWING:
            flush(self.path / name)
        self.steps += 1
        self._step_digests.append(hashlib.sha256(rows).hexdigest())
        self._write_progress()
        self._rows, self._hashes = [], []
        self._waiting = {"points": 0, "curves": 0}

    def recorded_rows(self) -> Iterator[Any]:
        """The rows of `curves.parquet` recorded so far, as an Arrow table for each step.

        Raises:
            UserError: they are not as they were written.
        """
        for step, digest in enumerate(self._step_digests):
            rows = self._step_file(step).read_bytes()
            if hashlib.sha256(rows).hexdigest() != digest:
                raise UserError(f"{self._step_file(step)}: not as it was written; remove {self.path} and convert again")
            yield pyarrow.parquet.read_table(pa.BufferReader(rows))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Record the last step, write `curves.parquet` and the manifest (whose `files` are filled in), and publish."""
        if self._rows:
            self.record()
        with pyarrow.parquet.ParquetWriter(self.path / CURVES, curve_schema()) as writer:
            for table in self.recorded_rows():
                writer.write_table(table)
        flush(self.path / CURVES)
        manifest["files"] = {name: self._describe(name) for name in FILES}
        write_manifest(self.path, {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest})
        self.publish()

    def _describe(self, name: str) -> dict[str, Any]:
        """The size and checksum of a finished file.

        Raises:
            UserError: the disk holds something else than what was written.
        """
        told = describe_file(self.path / name)
        if name in self._digests and told["sha256"] != self._digests[name].hexdigest():
            raise UserError(f"{self.path / name}: not as it was written; remove {self.path} and convert again")
        return told

    def publish(self) -> None:
        """The last step: the folder gets its name."""
        shutil.rmtree(self._work, ignore_errors=True)
        publish(self.path, self.out)

    def discard(self) -> None:
        """Remove everything that was written."""
        shutil.rmtree(self.path)

    def _take_up(self) -> bool:
        """Go on from earlier progress under the same plan. Returns False if there is none that can be used."""
        if self._plan["source"] is None:
            return False
        try:
            if self.complete:
                return Store.open(self.path).manifest["provenance"]["plan"] == self._plan
            if read_json(self._work / "plan.json") != self._plan:
                return False
            saved = read_json(self._work / "progress.json")
            progress = saved["progress"]
            if saved["sha256"] != _digest_of(progress):
                return False
            for name, itemsize, count in self._growing(progress["points"], progress["curves"] + 1):
                self._digests[name] = _digest_up_to(self.path / name, itemsize * count)
                if self._digests[name].hexdigest() != progress["digests"][name]:
                    return False
            self.batches, self.curves, self.points, self.steps = (
                progress[name] for name in ("batches", "curves", "points", "steps")
            )
            self.counts, self._step_digests = Counter(progress["counts"]), progress["step_digests"]
            for name, itemsize, count in self._growing(self.points, self.curves + 1):
                os.truncate(self.path / name, itemsize * count)
            for _ in self.recorded_rows():
                pass
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return False
        return True

    def _start(self) -> None:
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.batches = self.curves = self.points = self.steps = 0
        self.counts = Counter()
        self._digests, self._step_digests = {name: hashlib.sha256() for name in _GROWING}, []
        self.spill.mkdir(parents=True)
        for name in _GROWING:
            (self.path / name).touch()
        self._extend(OFFSETS[0], np.zeros(1, OFFSETS[1]))
        _write_json(self._work / "plan.json", self._plan)
        self._write_progress()

    def _write_progress(self) -> None:
        progress = {
            "batches": self.batches,
            "curves": self.curves,
            "points": self.points,
            "steps": self.steps,
            "counts": dict(self.counts),
            "digests": {name: digest.hexdigest() for name, digest in self._digests.items()},
            "step_digests": self._step_digests,
        }
        _write_json(self._work / "progress.json", {"progress": progress, "sha256": _digest_of(progress)})

    @staticmethod
    def _growing(points: int, offsets: int) -> Iterator[tuple[str, int, int]]:
        """Name, bytes of an item, and number of items of each file that grows."""
        for name, dtype in POINT_FILES.values():
            yield name, np.dtype(dtype).itemsize, points
        yield OFFSETS[0], np.dtype(OFFSETS[1]).itemsize, offsets

    def _step_file(self, step: int) -> Path:
        return self._work / f"curves-{step:06d}.parquet"

    def _extend(self, name: str, values: NDArray[Any]) -> None:
        content = np.ascontiguousarray(values).data
        with (self.path / name).open("ab") as file:
            file.write(content)
        self._digests[name].update(content)

    def _table(self) -> Any:
        columns = {
            "id": np.concatenate([batch.ids for batch in self._rows]),
            "band": np.concatenate([batch.band for batch in self._rows]),
            "label": np.concatenate([batch.label for batch in self._rows]),
            "n_points": np.concatenate([batch.lengths for batch in self._rows]),
            "star_hash": np.concatenate(self._hashes),
        }
        return pa.table(columns, schema=curve_schema())


def _digest_up_to(path: Path, size: int) -> Any:
    """The SHA-256 object of the first `size` bytes of a file."""
    digest, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if left:
        raise ValueError(f"{path} is shorter than recorded")
    return digest


def _digest_of(progress: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, sort_keys=True))
