"""Conversion of light curves of any kind into a packed store, in bounded memory.

An interrupted conversion continues where it was stopped.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import astroco_fast
from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.clean import clean as clean_batch
from astroco_fast.data.columns import Columns
from astroco_fast.data.extent import progress_bar
from astroco_fast.data.formats import format_of
from astroco_fast.data.hashing import star_hash
from astroco_fast.data.seen import Seen
from astroco_fast.data.sources import Source, open_source
from astroco_fast.data.store import Store, read_manifest
from astroco_fast.data.writer import StoreWriter
from astroco_fast.errors import UserError
from astroco_fast.text import printable

_READ_CURVES, _READ_POINTS, _SIMULATED = "read curves", "read points", "simulated curves"
_BAND = "band: "


@dataclass
class ConversionReport:
    """The numbers of points and curves that a conversion read, dropped and kept; `str()` returns a small table.

    Attributes:
        source: the input's name.
        out: the store's folder.
        read: numbers of `curves` and `points` read.
        kept: numbers of `curves` and `points` in the store.
        dropped: reason -> number of points or curves ("points: ..." or "curves: ...").
        bands: band -> number of curves kept ("" where unknown).
        simulated: whether any of the curves read is simulated.
        notes: remarks for the user (resumed, earlier progress discarded, already there ...).
    """

    source: str
    out: str
    read: dict[str, int]
    kept: dict[str, int]
    dropped: dict[str, int]
    bands: dict[str, int]
    simulated: bool = False
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("read", self.read), ("kept", self.kept)]
        lines = [f"{self.source} -> {self.out}{', SIMULATED light curves' * self.simulated}"]
        lines += [f"  {name:<42}{n['curves']:>12,} curves{n['points']:>16,} points" for name, n in rows]
        lines += [f"  dropped {reason:<34}{count:>12,}" for reason, count in sorted(self.dropped.items())]
        if set(self.bands) - {""}:
            lines += [f"  band {band or '(unknown)':<37}{n:>12,} curves" for band, n in sorted(self.bands.items())]
        return "\n".join(map(printable, lines + [f"  note: {note}" for note in self.notes]))


def convert(
    source: Any,
    out: str | Path,
    *,
    columns: Columns | None = None,
    band: str | None = None,
    clean: CleanConfig | None = None,
    provenance: dict[str, Any] | None = None,
    progress: bool = False,
) -> ConversionReport:
    """Read light curves, clean them, and write them into a new store.

    The store is written to `<out>.partial` and renamed last, so that `out` is whole or absent. A stopped conversion
    continues when it is called again with the same source and options, and writes the same bytes.

    Args:
        source: anything that `open_source` takes, an iterable of `CurveBatch` included.
        out: the store's folder. If it already is a store of the same source and options, nothing is done.
        columns: the user's choice of columns.
        band: convert only this band.
        clean: the limits of the cleaning.
        provenance: plain facts for the manifest (a seed ...), to which `simulated` is added if any curve is. They also
            identify a source that is not files; without them its conversion cannot be resumed.
        progress: show a progress bar, on a terminal.

    Raises:
        UserError: the input cannot be used, nothing is left after cleaning, or `out` is something else or named like a
            table.
    """
    out, columns, clean = Path(out), columns or Columns(), clean or CleanConfig()
    if format_of(out) is not None:
        raise UserError(f"{out}: a store is a folder, not a {out.suffix} file; give another name")
    opened = open_source(source, columns, band)
    plan = _plan(opened, columns, band, clean, provenance)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _already_there(out, plan)
    try:
        with StoreWriter(out, plan).opened() as partial:
            notes = []
            if partial.discarded:
                notes.append("earlier progress was discarded: it has another input or other options, or is damaged")
            if partial.complete:
                partial.publish()
                return _report_of(out, "finished an interrupted conversion")
            if partial.batches:
                notes.append(f"resumed after {partial.curves:,} curves")
            try:
                _write(opened, partial, clean, progress)
                report = _report(opened.name, out, partial)
                if not partial.curves:
                    raise UserError(_nothing_left(report, clean))
            except UserError:
                # Recorded steps are kept for another try, since a file may be unreadable only for a moment.
                if not partial.steps:
                    partial.discard()
                raise
            partial.finish(_manifest(report, plan, {"simulated": report.simulated, **(provenance or {})}))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    report.notes = [*opened.notes, *notes]
    return report


def _write(source: Source, partial: StoreWriter, clean: CleanConfig, progress: bool) -> None:
    seen = Seen()
    for rows in partial.recorded_rows():
        seen.add_rows(rows)
    with progress_bar(source.extent, "converting", progress) as advance:
        for batch in source.batches(partial.batches, partial.spill, progress):
            hashes = seen.check(batch)
            kept, dropped = clean_batch(batch, clean)
            counts = Counter({_READ_CURVES: len(batch), _READ_POINTS: batch.n_points})
            if batch.simulated:
                counts[_SIMULATED] = len(batch)
            bands, n = np.unique(kept.band.astype(str), return_counts=True)
            counts.update({_BAND + band: int(count) for band, count in zip(bands.tolist(), n, strict=True)})
            partial.append(kept, hashes if len(kept) == len(batch) else star_hash(kept.ids), counts + dropped)
            advance(batch)


def _plan(
    source: Source, columns: Columns, band: str | None, clean: CleanConfig, provenance: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything that decides the content of the store, as plain data; `source` is None where it is unknown."""
    plan = {
        "source": source.identity if source.identity is not None else provenance,
        "columns": asdict(columns),
        "band": band,
        "clean": asdict(clean),
        "package_version": astroco_fast.__version__,
    }
    # Through JSON, because it is compared with a plan that was read from disk.
    plain: dict[str, Any] = json.loads(json.dumps(plan, default=str))
    return plain


def _already_there(out: Path, plan: dict[str, Any]) -> ConversionReport:
    """The report of the store at `out`, if this plan made it.

    Raises:
        UserError: something else is at `out`.
    """
    if not Store.is_store(out):
        raise UserError(f"{out}: exists and is not a store; choose another output, or remove it")
    made = {**read_manifest(out)["provenance"]["plan"], "package_version": plan["package_version"]}
    made["columns"] = {**asdict(Columns()), **made["columns"]}  # of an earlier version, which knew fewer
    if plan["source"] is None or made != plan:
        raise UserError(
            f"{out}: exists, made from another input or with other options; choose another output, or remove it"
        )
    Store.open(out, verify=False)
    return _report_of(out, "already there, made from the same input with the same options")


def _report(name: str, out: Path, partial: StoreWriter) -> ConversionReport:
    counts = partial.counts
    return ConversionReport(
        source=name,
        out=str(out),
        read={"curves": counts[_READ_CURVES], "points": counts[_READ_POINTS]},
        kept={"curves": partial.curves, "points": partial.points},
        dropped={reason: n for reason, n in counts.items() if reason.startswith(("points: ", "curves: "))},
        bands={key.removeprefix(_BAND): n for key, n in counts.items() if key.startswith(_BAND)},
        simulated=counts[_SIMULATED] > 0,
    )


def _report_of(out: Path, note: str) -> ConversionReport:
    """The report of a store's conversion, from its manifest, with a note."""
    return ConversionReport(**read_manifest(out)["report"], out=str(out), notes=[note])


def _manifest(report: ConversionReport, plan: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """The manifest, without times of day or names of this machine, so that one input gives one manifest."""
    saved = {name: value for name, value in asdict(report).items() if name not in ("out", "notes")}
    return {
        "counts": {**report.kept, "dropped": report.dropped},
        "provenance": {**provenance, "plan": plan},
        "report": saved,
    }


def _nothing_left(report: ConversionReport, clean: CleanConfig) -> str:
    if not report.read["curves"]:
        return f"{report.source}: no light curves in it"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.dropped.items()))
    return (
        f"{report.source}: nothing is left after cleaning {report.read['curves']:,} curves of "
        f"{report.read['points']:,} points; dropped: {reasons}; check the columns, or lower --clean.min_points "
        f"(now {clean.min_points})"
    )
