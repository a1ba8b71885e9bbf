"""Convert light curves of any kind into a packed store, in bounded memory; an interrupted conversion goes on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import astroco_fast
from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.clean import clean as clean_batch
from astroco_fast.data.columns import Columns
from astroco_fast.data.curves import CurveBatch
from astroco_fast.data.partial import PartialStore
from astroco_fast.data.readers import Source, open_source
from astroco_fast.data.split import star_hash
from astroco_fast.data.store import Store, read_manifest
from astroco_fast.errors import UserError

_READ_CURVES, _READ_POINTS = "read curves", "read points"
_BAND = "band: "


@dataclass
class ConversionReport:
    """What a conversion read, dropped and kept; `str()` gives a small table.

    Attributes:
        source: what was read.
        out: the store's folder.
        read: `curves` and `points` read.
        kept: `curves` and `points` in the store.
        dropped: reason -> how many ("points: ..." or "curves: ...").
        bands: band -> curves kept ("" where unknown).
        notes: what happened on the way (resumed, earlier progress discarded, already there).
    """

    source: str
    out: str
    read: dict[str, int]
    kept: dict[str, int]
    dropped: dict[str, int]
    bands: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("read", self.read), ("kept", self.kept)]
        lines = [f"{self.source} -> {self.out}"]
        lines += [f"  {name:<42}{n['curves']:>12,} curves{n['points']:>16,} points" for name, n in rows]
        lines += [f"  dropped {reason:<34}{count:>12,}" for reason, count in sorted(self.dropped.items())]
        if set(self.bands) - {""}:
            lines += [f"  band {band or '(unknown)':<37}{n:>12,} curves" for band, n in sorted(self.bands.items())]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


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
    """Read, clean and write light curves into a new store.

    The store is written to `<out>.partial` and renamed last, so `out` is whole or absent. A conversion that was
    stopped goes on when it is called again with the same source and options, and gives the same bytes.

    Args:
        source: anything `readers.read_curves` takes, an iterable of `CurveBatch` included.
        out: folder to make. Where it is a store of the same source and options already, nothing is done.
        columns: the user's choice of columns.
        band: convert only this band.
        clean: what counts as a measurement.
        provenance: plain facts to keep in the manifest (`simulated`: True, a seed ...). For a source that is not
            files they also say which source it is; without them such a conversion cannot be resumed.
        progress: show a progress bar, on a terminal.

    Raises:
        UserError: the input cannot be used, nothing is left after cleaning, or `out` is something else.
    """
    out, columns, clean = Path(out), columns or Columns(), clean or CleanConfig()
    opened = open_source(source, columns, band)
    plan = _plan(opened, columns, band, clean, provenance)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _already_there(out, plan)
    try:
        with PartialStore(out, plan).opened() as partial:
            notes = list(opened.notes)
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
                # A step on disk may be of use yet (a file that could not be read for a moment); less is litter.
                if not partial.steps:
                    partial.discard()
                raise
            partial.finish(_manifest(report, plan, provenance))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}") from error
    report.notes = notes
    return report


class _KeySet:
    """64-bit keys seen so far, 8 bytes each: sorted runs, merged when the last has grown as long as the one before."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, keys: NDArray[np.uint64]) -> int | None:
        """Add keys; returns the position of one that was there before, or stands twice in `keys`."""
        order = np.argsort(keys, kind="stable")
        run = keys[order]
        repeated = np.zeros(len(keys), dtype=bool)
        repeated[1:] = run[1:] == run[:-1]
        for other in self._runs:
            at = np.minimum(np.searchsorted(other, run), len(other) - 1)
            repeated |= other[at] == run
        if repeated.any():
            return int(order[np.argmax(repeated)])
        if len(run):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]))
        return None


def _write(source: Source, partial: PartialStore, clean: CleanConfig, progress: bool) -> None:
    seen = _KeySet()
    for table in partial.recorded_rows():
        seen.add(_keys(table["star_hash"].to_numpy(), np.asarray(table["band"].to_numpy(), dtype=object)))
    with tqdm(desc="converting", unit=" curves", initial=partial.curves, disable=None if progress else True) as shown:
        for batch in source.batches(partial.batches, partial.spill, progress):
            hashes = star_hash(batch.ids)
            twice = seen.add(_keys(hashes, batch.band))
            if twice is not None:
                raise UserError(_conflict(batch, twice))
            kept, dropped = clean_batch(batch, clean)
            counts = Counter({_READ_CURVES: len(batch), _READ_POINTS: batch.n_points})
            bands, n = np.unique(kept.band.astype(str), return_counts=True)
            counts.update({_BAND + band: int(count) for band, count in zip(bands.tolist(), n, strict=True)})
            partial.append(kept, hashes if len(kept) == len(batch) else star_hash(kept.ids), counts + dropped)
            shown.update(len(batch))


def _keys(hashes: NDArray[np.uint64], bands: NDArray[np.object_]) -> NDArray[np.uint64]:
    """One key an (id, band)."""
    names, which = np.unique(bands.astype(str), return_inverse=True)
    with np.errstate(over="ignore"):
        return hashes * np.uint64(0x9E3779B97F4A7C15) + star_hash(names.tolist())[which]


def _conflict(batch: CurveBatch, i: int) -> str:
    return (
        f"{batch.source or 'light curves'}: id {batch.ids[i]!r} has two light curves in band {batch.band[i]!r}; a "
        "light curve is one (id, band): name the band's column with --columns.band, or remove or merge one of them"
    )


def _plan(
    source: Source, columns: Columns, band: str | None, clean: CleanConfig, provenance: dict[str, Any] | None
) -> dict[str, Any]:
    """All that decides the content of the store, as plain data; `source` is None where it cannot be told."""
    plan = {
        "source": source.identity if source.identity is not None else provenance,
        "columns": asdict(columns),
        "band": band,
        "clean": asdict(clean),
        "package_version": astroco_fast.__version__,
    }
    # As it will be read back: a plan on disk must compare equal.
    plain: dict[str, Any] = json.loads(json.dumps(plan, default=str))
    return plain


def _already_there(out: Path, plan: dict[str, Any]) -> ConversionReport:
    """The report of a store made by this plan; whatever else stands at `out` is in the way."""
    if not Store.is_store(out):
        raise UserError(f"{out}: exists and is not a store; choose another output, or remove it")
    made = {**read_manifest(out)["provenance"]["plan"], "package_version": plan["package_version"]}
    if plan["source"] is None or made != plan:
        raise UserError(
            f"{out}: exists, made from another input or with other options; choose another output, or remove it"
        )
    Store.open(out, verify=False)
    return _report_of(out, "already there, made from the same input with the same options")


def _report(name: str, out: Path, partial: PartialStore) -> ConversionReport:
    counts = partial.counts
    return ConversionReport(
        source=name,
        out=str(out),
        read={"curves": counts[_READ_CURVES], "points": counts[_READ_POINTS]},
        kept={"curves": partial.curves, "points": partial.points},
        dropped={reason: n for reason, n in counts.items() if reason.startswith(("points: ", "curves: "))},
        bands={key.removeprefix(_BAND): n for key, n in counts.items() if key.startswith(_BAND)},
    )


def _report_of(out: Path, note: str) -> ConversionReport:
    """The report that a store was made with."""
    return ConversionReport(**read_manifest(out)["report"], out=str(out), notes=[note])


def _manifest(report: ConversionReport, plan: dict[str, Any], provenance: dict[str, Any] | None) -> dict[str, Any]:
    """Without times of day or names of this machine's own, so that one input gives one manifest."""
    saved = {name: value for name, value in asdict(report).items() if name not in ("out", "notes")}
    return {
        "counts": {**report.kept, "dropped": report.dropped},
        "provenance": {"simulated": False, **(provenance or {}), "plan": plan},
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
