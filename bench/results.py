"""A saved run of the suite as tables: a row for each provider and case, the project's limits, changes between runs.

In `Results.rows` a figure that was not measured is missing. `role` is "ours", "rival", "baseline" (eager PyTorch in
bf16), or "other" (another model, which is no rival). `ratio` is how many times as fast as the baseline, by medians of
interleaved rounds; `beside` a provider whose rounds alternated with these, too, and `beside_ratio` how many times as
fast that one was; `to_best` how many times as fast as the closest rival, by rounds that alternated or else by the
quotient of ratios. `fallbacks` are the ops that ran on the reference, with the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from astroco_fast.errors import UserError

COLUMNS = [
    "group", "subject", "preset", "task", "batch", "kind", "provider", "role", "dtype", "median_ms", "ratio", "rounds",
    "windows_per_s", "gflops", "gb_per_s", "gemm_share", "peak_bytes", "beside", "beside_ratio", "to_best", "fallbacks",
]  # fmt: skip
BASELINE = ["baseline", "baseline_ms", "baseline_gflops", "baseline_peak_bytes"]
CHANGE = 0.05  # smaller changes are not flagged


class Results(NamedTuple):
    """A saved run: the machine's facts, `rows` (see the module), and by name (median in ms, notes) of the others."""

    machine: dict[str, Any]
    rows: pd.DataFrame
    others: dict[str, tuple[float, dict[str, Any]]]


class Bar(NamedTuple):
    """A limit and the measured value; `rivals` is the number of rivals that a ratio is the least to."""

    text: str
    limit: float
    value: float
    at_least: bool = True
    rivals: int | None = None

    @property
    def met(self) -> bool:
        return bool(self.value >= self.limit if self.at_least else self.value <= self.limit)


def load(*paths: Path) -> Results:
    """Read what pytest-benchmark saved of a run; of several parts, a later one's benchmarks replace earlier ones.

    Raises:
        UserError: no such file, not of this suite, or not of the same machine as the first.
    """
    machine: dict[str, Any] = {}
    entries = {}
    for path in paths:
        try:
            saved = json.loads(path.read_text())
            own, benchmarks = saved["machine_info"]["astroco"], saved["benchmarks"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a saved run of this suite ({error!r}); make one with: make bench") from error
        machine = machine or own
        if any(own[fact] != machine[fact] for fact in ("device", "threads")):
            raise UserError(f"{path}: of another machine, or other threads, than {paths[0]}; report them apart")
        entries |= {entry["fullname"]: entry for entry in benchmarks}
    noted = {name: {**entry["extra_info"], "group": entry["group"]} for name, entry in entries.items()}
    rows = [notes for notes in noted.values() if "ratio" in notes]
    others = {
        name: (entry["stats"]["median"] * 1e3, entry["extra_info"])
        for name, entry in entries.items()
        if "ratio" not in noted[name]
    }
    return Results(machine, _rows(pd.DataFrame(rows), machine["gemm_gflops"]["bf16"]), others)


def newest(folder: Path) -> Path:
    """The last saved run in a folder of pytest-benchmark's.

    Raises:
        UserError: there is none.
    """
    if not (found := sorted(folder.rglob("*.json"), key=lambda path: path.stat().st_mtime)):
        raise UserError(f"{folder}: no saved run; make one with: make bench")
    return found[-1]


def _rows(noted: pd.DataFrame, peak: float) -> pd.DataFrame:
    """The rows that benchmarks noted, then one for each group of the baseline, which was measured beside them all.

    Args:
        noted: the notes of each benchmark that has a baseline.
        peak: GEMM peak in bf16, GFLOP/s.
    """
    rows = noted.reindex(columns=[*COLUMNS, *BASELINE])
    rows["work"] = rows.baseline_gflops * rows.baseline_ms
    rows["traffic"] = (rows.gb_per_s * rows.median_ms).where(rows.role != "other")
    groups = rows.groupby("group", sort=False)
    base = groups.first()  # of each column the first value there is
    base = base.assign(median_ms=groups.baseline_ms.median(), rounds=groups["rounds"].sum(), ratio=1.0)
    base = base.assign(provider=base.baseline, role="baseline", dtype="bf16", peak_bytes=base.baseline_peak_bytes)
    base = base.assign(gflops=base.work / base.median_ms, gb_per_s=base.traffic / base.median_ms)
    base = base.assign(windows_per_s=base.batch / base.median_ms * 1e3, gemm_share=base.gflops / peak)
    base = base.assign(beside=None, beside_ratio=float("nan"), fallbacks=[{} for _ in range(len(base))])
    records = [*rows.to_dict("records"), *base.reset_index().to_dict("records")]
    rows = pd.DataFrame(records, columns=COLUMNS).astype({"peak_bytes": "Int64", "beside_ratio": float})
    rows["to_best"] = [_times(row, rivals(rows[rows.group == row.group])).min() for _, row in rows.iterrows()]
    return rows


def rivals(group: pd.DataFrame) -> pd.DataFrame:
    """The rivals in a group's rows, the baseline among them."""
    return group[group.role.isin(["rival", "baseline"])]


def _times(row: Any, others: pd.DataFrame) -> pd.Series:
    """How many times as fast as each of the others of its group."""
    direct = (others.beside == row.provider) & others.beside_ratio.notna()
    return (row.ratio / others.ratio).mask(direct, others.beside_ratio)


def bars(results: Results) -> list[Bar]:
    """The project's limits, as far as the run measured them."""
    models = results.rows[results.rows.subject == "model"].groupby("group", sort=False)
    found = [bar for name, group in models for bar in _bars(str(name), group)]
    for _, notes in results.others.values():
        if "embed_share" in notes:
            share = notes["embed_share"] + notes["assembly_share"]
            found.append(
                Bar("embed() and batches with masks, share of the encoder's time", 0.05, share, at_least=False)
            )
    return found


def _bars(name: str, group: pd.DataFrame) -> Iterator[Bar]:
    """The limits of one group, for its fastest row of ours but int8, which is chosen by name and less exact."""
    mine = group[(group.role == "ours") & ~group.provider.str.endswith(" int8")]
    if mine.empty:
        return
    ours = mine.loc[mine.ratio.idxmax()]
    eager = group[group.role == "baseline"].iloc[0]
    plain, others = group[group.provider == "eager fp32"], group[group.role == "other"]
    training = ours.task != "encode"
    limit = 1.3 if training else 1.5 if ours.batch == 1 else 2.0 if ours.kind == "ragged" else 1.25
    yield Bar(f"{name}: times the best rival", limit, ours.to_best, rivals=len(rivals(group)))
    if not training and ours.batch > 1 and ours.kind == "full" and len(plain):
        yield Bar(f"{name}: times eager fp32", 2.3, ours.ratio / plain.ratio.iloc[0])
    if pd.notna(ours.peak_bytes) and pd.notna(eager.peak_bytes):
        yield Bar(f"{name}: peak memory to eager's", 0.6, ours.peak_bytes / eager.peak_bytes, at_least=False)
    if len(others):
        text, limit = f"{name}: windows/s, times Astromer v2's best", 1.2 if training else 1.3
        yield Bar(text, limit, _times(ours, others).min(), rivals=len(others))


def compare(old: Results, new: Results) -> tuple[pd.DataFrame, list[str]]:
    """The changes of the benchmarks in both runs, and the names of those only in the old one.

    Returns:
        Changes by name, with the columns speedup (how many times as fast as before), by ("ratio to eager bf16" where
        there is one, since a slower machine is not a slower program, else "time") and flag ("FASTER", "SLOWER" or "").
    """
    before, after = _speeds(old), _speeds(new)
    changes = before.join(after.speed.rename("now"), how="inner")
    changes["speedup"] = changes.now / changes.speed
    changes["flag"] = ["" if abs(s - 1) <= CHANGE else "FASTER" if s > 1 else "SLOWER" for s in changes.speedup]
    return changes, [name for name in before.index if name not in after.index]


def _speeds(results: Results) -> pd.DataFrame:
    """By name the speed, as a ratio to the baseline or as 1 / ms, and what it is by."""
    found = {}
    for row in results.rows.itertuples():
        ratio = row.role != "baseline"
        found[f"{row.group}: {row.provider}"] = (
            (row.ratio, "ratio to eager bf16") if ratio else (1 / row.median_ms, "time")
        )
    found |= {name: (1 / median, "time") for name, (median, _) in results.others.items()}
    return pd.DataFrame.from_dict(found, orient="index", columns=["speed", "by"])
