"""`python -m bench.report [RUN.json ...]`: the report of a saved run, as Markdown, CSV and a chart.

    pytest bench --benchmark-only --benchmark-json=run.json
    python -m bench.report run.json --out report --compare older.json

The Markdown is also printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from astroco_fast.errors import UserError
from astroco_fast.plots import drawing
from bench.chart import speeds
from bench.results import Results, bars, compare, load, newest, rivals

SAVED = Path(".benchmarks")
NOTE = """\
Ratios are of the medians of interleaved rounds: each provider's rounds alternate with rounds of eager PyTorch in bf16,
so that both see the same machine. Rounds of `torch.compile` and ONNX Runtime alternate with ours too: "× best rival"
is ours to the closest rival, by such rounds, or against eager by the ratios. GFLOP/s and GB/s count useful work only,
on real points; the peak is that of a large matrix product in the same precision. Memory is the peak of a training step
above what was there before it. A training step is forward with dropout, loss at probed points, and backward, without
the optimiser."""
PARTIAL = "Not all rivals were run everywhere: `pytest bench --benchmark-only --full` runs the rest."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 where a run cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").split("\n")[0])
    help = f"saved JSON; later files replace benchmarks of earlier ones; default: the newest in {SAVED}"
    parser.add_argument("run", nargs="*", type=Path, help=help)
    parser.add_argument("--out", type=Path, default=SAVED / "report", help="folder for report.md, .csv and .png")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="flag changes of more than 5 %%")
    args = parser.parse_args(argv)
    try:
        results = load(*(args.run or [newest(SAVED)]))
        text = "\n\n".join(page(results)) + (f"\n{comparison(load(args.compare), results)}" if args.compare else "")
    except UserError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.md").write_text(text + "\n")
    told = results.rows.assign(
        fallbacks=["; ".join(f"{op}: {r}" for op, r in f.items()) for f in results.rows.fallbacks]
    )
    told.to_csv(args.out / "report.csv", index=False)
    with drawing():
        speeds(results.rows, header(results)).savefig(args.out / "report.png")
    print(text)
    print(f"\nwritten: {', '.join(str(args.out / f'report.{kind}') for kind in ('md', 'csv', 'png'))}")
    return 0


def header(results: Results) -> str:
    """The machine in a line."""
    told = results.machine
    versions = ", ".join(f"{name} {value}" for name, value in told["versions"].items() if " " not in name)
    return f"{told['device']}, {told['threads']} threads; {versions}"


def page(results: Results) -> Iterator[str]:
    """The paragraphs and tables of the report."""
    peaks = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in results.machine["gemm_gflops"].items())
    yield f"# Benchmarks\n\n{header(results)}; GEMM peak: {peaks}."
    yield NOTE
    if not results.machine["full"]:
        yield PARTIAL
    if asked := bars(results):
        yield "## What is asked"
        signs, verdicts = {True: "≥", False: "≤"}, {True: "met", False: "MISSED"}
        cells = [
            (bar.text, f"{signs[bar.at_least]} {bar.limit:g}", f"{bar.value:.3g}", bar.rivals or "", verdicts[bar.met])
            for bar in asked
        ]
        yield _table("| | asked | measured | rivals | |", "|---|---:|---:|---:|---|", cells)
    models = results.rows.subject == "model"
    for title, rows in (("## Models", results.rows[models]), ("## Ops", results.rows[~models])):
        if len(rows):
            yield title
            yield from (_group(str(name), group) for name, group in rows.groupby("group", sort=False))
    if results.others:
        yield "## Pipeline"
        cells = [(name, _number(median), _notes(notes)) for name, (median, notes) in results.others.items()]
        yield _table("| | median, ms | |", "|---|---:|---|", cells)


def _group(name: str, rows: pd.DataFrame) -> str:
    """A case, fastest first; the best rival in bold."""
    best = rivals(rows).sort_values("ratio", kind="stable").provider.iloc[-1]
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "median, ms": ("median_ms", _number),
        "windows/s": ("windows_per_s", _number),
        "× eager bf16": ("ratio", "{:.2f}".format),
        "× best rival": ("to_best", "{:.2f}".format),
        "GFLOP/s": ("gflops", _number),
        "of GEMM peak": ("gemm_share", "{:.0%}".format),
        "GB/s": ("gb_per_s", _number),
    }
    if rows.peak_bytes.notna().any():
        columns["peak memory, MB"] = ("peak_bytes", lambda size: f"{size / 1e6:.0f}")
    rows = rows.sort_values("ratio", ascending=False, kind="stable")
    cells, fallbacks = [], []
    for _, row in rows.iterrows():
        figures = ("" if pd.isna(row[key]) else show(row[key]) for key, show in columns.values())
        cells.append((f"**{row.provider}**" if row.provider == best else row.provider, *figures))
        fallbacks += [f"\n{row.provider}: {op} ran on the reference: {why}" for op, why in row.fallbacks.items()]
    table = _table(f"|  | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|", cells)
    return "\n".join([f"**{name}**\n", table, *fallbacks])


def comparison(old: Results, new: Results) -> str:
    """The paragraphs on what has changed, the flagged changes first."""
    changes, gone = compare(old, new)
    parts = ["\n## Compared with the older run"]
    if any(old.machine[fact] != new.machine[fact] for fact in ("device", "threads")):
        parts.append(f"That was another machine: {header(old)}.")
    flagged = changes[changes.flag != ""].sort_values("speedup", kind="stable")
    parts.append(f"{len(changes)} compared, {len(flagged)} of them more than 5 % faster or slower.")
    if len(flagged):
        cells = [(name, f"{change.speedup:.2f}", change.by, change.flag) for name, change in flagged.iterrows()]
        parts.append(_table("| | speed, times the older | by | |", "|---|---:|---|---|", cells))
    if gone:
        parts.append("Only in the older run: " + "; ".join(gone))
    return "\n\n".join(parts)


def _table(head: str, rule: str, rows: Iterable[Sequence[object]]) -> str:
    return "\n".join([head, rule, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _notes(told: dict[str, object]) -> str:
    """The notes of a benchmark, without those on the machine."""
    own = {name: value for name, value in told.items() if name not in ("device", "threads", "versions", "subject")}
    return ", ".join(f"{name} {_number(value) if isinstance(value, float) else value}" for name, value in own.items())


def _number(value: float) -> str:
    """Three digits, or a whole number from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
