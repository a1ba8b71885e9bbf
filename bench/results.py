"""What a saved run of the suite says: rows, ratios to the best rival, what is asked of them, and what has changed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from astroco_fast.errors import UserError

CHANGE = 0.05  # a smaller change is no change


@dataclass(frozen=True)
class Row:
    """A provider's figures on one case; None: not measured.

    Attributes:
        group: names the case: preset, task or op, batch, kind of windows.
        subject: "model", or the op's name.
        role: "ours", "rival", "baseline" (eager in bf16), or "other" (another model, no rival).
        ratio: how many times as fast as the baseline, by medians of interleaved rounds.
        beside, beside_ratio: who else this provider's rounds alternated with, and how many times as fast that one was.
        to_best: how many times as fast as the group's best rival, baseline included: by rounds that alternated, where
            there are any, else by their ratios.
        gflops, gb_per_s, gemm_share: of the useful work, see bench/work.py; the share is of the GEMM peak in `dtype`.
        peak_bytes: of a training step, above what was there before.
        fallbacks: ops that ran on the reference, and why.
    """

    group: str
    subject: str
    preset: str
    task: str
    batch: int
    kind: str
    provider: str
    role: str
    dtype: str
    median_ms: float
    ratio: float
    rounds: int
    windows_per_s: float
    gflops: float | None
    gb_per_s: float | None
    gemm_share: float | None
    peak_bytes: int | None
    fallbacks: dict[str, str]
    beside: str | None = None
    beside_ratio: float | None = None
    to_best: float | None = None


class Other(NamedTuple):
    """A benchmark without a baseline: its median, and what it notes."""

    name: str
    median_ms: float
    notes: dict[str, Any]


class Results(NamedTuple):
    """A saved run. `machine`: device, threads, versions, GEMM peaks."""

    machine: dict[str, Any]
    rows: list[Row]
    others: list[Other]


class Bar(NamedTuple):
    """What is asked, and what was measured; `at_least`, or else at most. `rivals`: how many the ratio is taken over."""

    text: str
    limit: float
    value: float
    at_least: bool
    rivals: int | None = None

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Change(NamedTuple):
    """How many times as fast as before: by the ratio to the baseline where there is one, else by the time."""

    name: str
    speedup: float
    by_ratio: bool

    @property
    def flag(self) -> str:
        if abs(self.speedup - 1) <= CHANGE:
            return ""
        return "FASTER" if self.speedup > 1 else "SLOWER"


def load(*paths: Path) -> Results:
    """Read what pytest-benchmark saved, in one run or in several parts.

    Args:
        paths: benchmarks of a later one take the place of an earlier one's of the same name.

    Raises:
        UserError: no such file, not of this suite, or not of the same machine as the first.
    """
    saved = [_read(path) for path in paths]
    machine = saved[0][0]
    for path, (other, _) in zip(paths, saved, strict=True):
        if (other["device"], other["threads"]) != (machine["device"], machine["threads"]):
            raise UserError(f"{path}: of another machine, or other threads, than {paths[0]}; report them apart")
    benchmarks = list({entry["fullname"]: entry for _, entries in saved for entry in entries}.values())
    rows = [_row(entry["group"], entry["extra_info"]) for entry in benchmarks if "ratio" in entry["extra_info"]]
    rows += _baselines([entry for entry in benchmarks if "ratio" in entry["extra_info"]], machine)
    others = [
        Other(entry["fullname"], entry["stats"]["median"] * 1e3, _notes(entry["extra_info"]))
        for entry in benchmarks
        if "ratio" not in entry["extra_info"]
    ]
    return Results(machine, _with_best(rows), others)


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine of a saved run, and its benchmarks."""
    try:
        saved = json.loads(path.read_text())
        machine, benchmarks = saved["machine_info"]["astroco"], saved["benchmarks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a saved run of this suite ({error!r}); make one with: make bench") from error
    return machine, benchmarks


def newest(folder: Path) -> Path:
    """The last saved run in a folder of pytest-benchmark's.

    Raises:
        UserError: there is none.
    """
    if not (found := sorted(folder.rglob("*.json"), key=lambda path: path.stat().st_mtime)):
        raise UserError(f"{folder}: no saved run; make one with: make bench")
    return found[-1]


def _row(group: str, told: dict[str, Any]) -> Row:
    names = [name for name in Row.__dataclass_fields__ if name not in ("group", "to_best")]
    return Row(group=group, **{name: told.get(name) for name in names})


def _baselines(entries: list[dict[str, Any]], machine: dict[str, Any]) -> list[Row]:
    """A row a group: the baseline's rounds beside all the others."""
    found = []
    for group in dict.fromkeys(entry["group"] for entry in entries):
        told = [entry["extra_info"] for entry in entries if entry["group"] == group]
        median = statistics.median(info["baseline_ms"] for info in told)
        per_gflops = [i["baseline_gflops"] * i["baseline_ms"] for i in told if i.get("baseline_gflops") is not None]
        gflops = per_gflops[0] / median if per_gflops else None
        traffic = [i["gb_per_s"] * i["median_ms"] for i in told if i["role"] != "other"]
        row = _row(group, told[0] | {"provider": told[0]["baseline"], "role": "baseline", "dtype": "bf16"})
        found.append(
            replace(
                row, median_ms=median, ratio=1.0, rounds=sum(info["rounds"] for info in told),
                windows_per_s=row.batch / median * 1e3, gflops=gflops,
                gb_per_s=traffic[0] / median if traffic else None,
                gemm_share=gflops / machine["gemm_gflops"]["bf16"] if gflops is not None else None, fallbacks={},
                peak_bytes=next((i["baseline_peak_bytes"] for i in told if i.get("baseline_peak_bytes")), None),
            )
        )  # fmt: skip
    return found


def _with_best(rows: list[Row]) -> list[Row]:
    return [replace(row, to_best=min(_times(row, rival) for rival in rivals(rows, row.group))) for row in rows]


def _times(row: Row, rival: Row) -> float:
    """How many times as fast as a rival of its group."""
    if rival.beside == row.provider and rival.beside_ratio is not None:
        return rival.beside_ratio
    return row.ratio / rival.ratio


def rivals(rows: Iterable[Row], group: str) -> list[Row]:
    """A group's, the baseline among them."""
    return [row for row in rows if row.group == group and row.role in ("rival", "baseline")]


def _notes(told: dict[str, Any]) -> dict[str, Any]:
    """What a benchmark notes of itself, but for the machine."""
    return {name: value for name, value in told.items() if name not in ("device", "threads", "versions", "subject")}


def bars(results: Results) -> list[Bar]:
    """What is asked of this package, as far as it was measured."""
    found = []
    models = [row for row in results.rows if row.subject == "model"]
    for group in dict.fromkeys(row.group for row in models):
        rows = [row for row in models if row.group == group]
        ours = max((row for row in rows if row.role == "ours"), key=lambda row: row.ratio, default=None)
        if ours is not None:
            found += _bars_of(ours, rows)
    for other in results.others:
        if "embed_share" in other.notes:
            share = other.notes["embed_share"] + other.notes["assembly_share"]
            found.append(Bar("embed() and batches with masks, share of the encoder's time", 0.05, share, False))
    return found


def _bars_of(ours: Row, rows: list[Row]) -> list[Bar]:
    """Of one group."""
    assert ours.to_best is not None
    of, training = ours.group, ours.task != "encode"
    count = len(rivals(rows, of))
    limit = 1.3 if training else 1.5 if ours.batch == 1 else 2.0 if ours.kind == "ragged" else 1.25
    found = [Bar(f"{of}: times the best rival", limit, ours.to_best, True, count)]
    named = {row.provider: row for row in rows}
    if not training and ours.batch > 1 and ours.kind == "full" and "eager fp32" in named:
        found.append(Bar(f"{of}: times eager fp32", 2.3, ours.ratio / named["eager fp32"].ratio, True))
    eager = next(row for row in rows if row.role == "baseline")
    if ours.peak_bytes and eager.peak_bytes:
        found.append(Bar(f"{of}: peak memory to eager's", 0.6, ours.peak_bytes / eager.peak_bytes, False))
    if others := [_times(ours, row) for row in rows if row.role == "other"]:
        limit = 1.2 if training else 1.3
        found.append(Bar(f"{of}: windows/s, times Astromer v2's best", limit, min(others), True, len(others)))
    return found


def compare(old: Results, new: Results) -> tuple[list[Change], list[str]]:
    """What is in both runs, and the names of what is only in the old one."""
    before, after = _speeds(old), _speeds(new)
    changes = [
        Change(name, after[name][0] / speed, by_ratio) for name, (speed, by_ratio) in before.items() if name in after
    ]
    return changes, [name for name in before if name not in after]


def _speeds(results: Results) -> dict[str, tuple[float, bool]]:
    rows = {f"{r.group}: {r.provider}": (r.ratio, True) for r in results.rows if r.role != "baseline"}
    eager = {f"{r.group}: {r.provider}": (1 / r.median_ms, False) for r in results.rows if r.role == "baseline"}
    return rows | eager | {other.name: (1 / other.median_ms, False) for other in results.others}
