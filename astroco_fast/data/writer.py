"""Writing a store in steps, each of which survives a kill."""

from __future__ import annotations

import contextlib
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
    curve_schema,
    describe_file,
)
from astroco_fast.files import flush, locked, publish, write_text

# Progress is recorded after this many points (16 bytes each, so that a kill loses some dozen MB of work), or after this
# many curves, which may have no points.
STEP_POINTS = 1_000_000
STEP_CURVES = 100_000


class StoreWriter:
    """The folder `<out>.partial`, which becomes the store `out`.

    Files of points and offsets grow by appending. After each step they are flushed to disk, the step's rows of
    `curves.parquet` are put aside, and `work/progress.json` is replaced. It says how long each file is, so that what a
    killed process wrote after that is cut off. `work` holds what is not part of the finished store.

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

    @contextlib.contextmanager
    def opened(self) -> Iterator[StoreWriter]:
        """Lock the folder, and take up earlier progress or discard it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "another process is converting into it; wait for it, or choose another output"):
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
        pyarrow.parquet.write_table(self._table(), self._step_file(self.steps))
        flush(self._step_file(self.steps))
        for name in (*(name for name, _ in POINT_FILES.values()), OFFSETS[0]):
            flush(self.path / name)
        self.steps += 1
        progress = {"batches": self.batches, "curves": self.curves, "points": self.points, "steps": self.steps}
        _write_json(self._work / "progress.json", {**progress, "counts": dict(self.counts)})
        self._rows, self._hashes = [], []
        self._waiting = {"points": 0, "curves": 0}

    def recorded_rows(self) -> Iterator[Any]:
        """The rows of `curves.parquet` recorded so far, as an Arrow table for each step."""
        for step in range(self.steps):
            yield pyarrow.parquet.read_table(self._step_file(step))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Record the last step, write `curves.parquet` and the manifest (whose `files` are filled in), and publish."""
        if self._rows:
            self.record()
        with pyarrow.parquet.ParquetWriter(self.path / CURVES, curve_schema()) as writer:
            for table in self.recorded_rows():
                writer.write_table(table)
        flush(self.path / CURVES)
        manifest["files"] = {name: describe_file(self.path / name) for name in FILES}
        _write_json(self.path / MANIFEST, {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest})
        self.publish()

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
                return bool(json.loads((self.path / MANIFEST).read_text())["provenance"]["plan"] == self._plan)
            if json.loads((self._work / "plan.json").read_text()) != self._plan:
                return False
            progress = json.loads((self._work / "progress.json").read_text())
            self.counts = Counter(progress.pop("counts"))
            for name, value in progress.items():
                setattr(self, name, value)
            for name, dtype in POINT_FILES.values():
                _cut(self.path / name, self.points * np.dtype(dtype).itemsize)
            _cut(self.path / OFFSETS[0], (self.curves + 1) * np.dtype(OFFSETS[1]).itemsize)
        except (OSError, ValueError, KeyError):
            return False
        return all(self._step_file(step).exists() for step in range(self.steps))

    def _start(self) -> None:
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.batches = self.curves = self.points = self.steps = 0
        self.counts = Counter()
        self.spill.mkdir(parents=True)
        for name, _ in POINT_FILES.values():
            (self.path / name).touch()
        (self.path / OFFSETS[0]).write_bytes(np.zeros(1, OFFSETS[1]).tobytes())
        _write_json(self._work / "plan.json", self._plan)
        progress = {"batches": 0, "curves": 0, "points": 0, "steps": 0, "counts": {}}
        _write_json(self._work / "progress.json", progress)

    def _step_file(self, step: int) -> Path:
        return self._work / f"curves-{step:06d}.parquet"

    def _extend(self, name: str, values: NDArray[Any]) -> None:
        with (self.path / name).open("ab") as file:
            file.write(np.ascontiguousarray(values).data)

    def _table(self) -> Any:
        columns = {
            "id": np.concatenate([batch.ids for batch in self._rows]),
            "band": np.concatenate([batch.band for batch in self._rows]),
            "label": np.concatenate([batch.label for batch in self._rows]),
            "n_points": np.concatenate([batch.lengths for batch in self._rows]),
            "star_hash": np.concatenate(self._hashes),
        }
        return pa.table(columns, schema=curve_schema())


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size < size:
        raise ValueError(f"{path} is shorter than recorded")
    os.truncate(path, size)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, sort_keys=True))
