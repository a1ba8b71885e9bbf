"""`python -m bench.report [RUN.json]`: a saved run as Markdown, CSV and a figure.

    pytest bench --benchmark-only --benchmark-json=run.json
    python -m bench.report run.json --out report --compare older.json

Markdown goes to standard output, too. `--compare` flags what is 5 % faster or slower than in an older run.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from astroco_fast.errors import UserError
from astroco_fast.plots import drawing
from bench.chart import speeds
from bench.results import Bar, Change, Other, Results, Row, bars, compare, load, newest, rivals

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
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "run",
        nargs="*",
        type=Path,
        help=f"saved JSON; of several a later one's benchmarks take the place of an earlier one's; default: the newest "
        f"in {SAVED}",
    )
    parser.add_argument("--out", type=Path, default=SAVED / "report", help="folder for report.md, .csv and .png")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="flag changes of more than 5 %%")
    args = parser.parse_args(argv)
    try:
        results = load(*(args.run or [newest(SAVED)]))
        text = markdown(results)
        if args.compare:
            text += "\n" + comparison(load(args.compare), results)
        write(results, text, args.out)
    except UserError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"\nwritten: {', '.join(str(args.out / f'report.{kind}') for kind in ('md', 'csv', 'png'))}")
    return 0


def write(results: Results, text: str, out: Path) -> None:
    """report.md, report.csv and report.png in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text + "\n")
    (out / "report.csv").write_text(as_csv(results.rows))
    with drawing():
        speeds(results.rows, header(results)).savefig(out / "report.png")


def header(results: Results) -> str:
    """The machine in a line."""
    told = results.machine
    versions = ", ".join(f"{name} {value}" for name, value in told["versions"].items() if name.count(" ") == 0)
    return f"{told['device']}, {told['threads']} threads; {versions}"


def markdown(results: Results) -> str:
    """All tables."""
    peaks = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in results.machine["gemm_gflops"].items())
    parts = [f"# Benchmarks\n\n{header(results)}; GEMM peak: {peaks}.", NOTE]
    if not results.machine["full"]:
        parts.append(PARTIAL)
    if asked := bars(results):
        parts += ["## What is asked", _bars(asked)]
    for title, rows in (("## Models", _models(results)), ("## Ops", _ops(results))):
        if rows:
            parts.append(title)
            parts += [_group(group, rows) for group in dict.fromkeys(row.group for row in rows)]
    if results.others:
        parts += ["## Pipeline", _others(results.others)]
    return "\n\n".join(parts)


def _models(results: Results) -> list[Row]:
    return [row for row in results.rows if row.subject == "model"]


def _ops(results: Results) -> list[Row]:
    return [row for row in results.rows if row.subject != "model"]


def _bars(asked: list[Bar]) -> str:
    lines = ["| | asked | measured | rivals | |", "|---|---:|---:|---:|---|"]
    for bar in asked:
        sign, rivals_run = "≥" if bar.at_least else "≤", "" if bar.rivals is None else bar.rivals
        verdict = "met" if bar.met else "MISSED"
        lines.append(f"| {bar.text} | {sign} {bar.limit:g} | {bar.value:.3g} | {rivals_run} | {verdict} |")
    return "\n".join(lines)


def _group(group: str, rows: list[Row]) -> str:
    """One case, fastest first; the best rival in bold."""
    chosen = sorted((row for row in rows if row.group == group), key=lambda row: -row.ratio)
    best = max(rivals(rows, group), key=lambda row: row.ratio)
    memory = any(row.peak_bytes for row in chosen)
    heads = ["", "median, ms", "windows/s", "× eager bf16", "× best rival", "GFLOP/s", "of GEMM peak", "GB/s"]
    heads += ["peak memory, MB"] * memory
    lines = [f"**{group}**\n", f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for row in chosen:
        cells = [f"**{row.provider}**" if row is best else row.provider]
        cells += [_number(value) for value in (row.median_ms, row.windows_per_s)]
        cells += [f"{row.ratio:.2f}", f"{row.to_best:.2f}", _number(row.gflops)]
        cells += ["" if row.gemm_share is None else f"{row.gemm_share:.0%}", _number(row.gb_per_s)]
        cells += ["" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"] * memory
        lines.append(f"| {' | '.join(cells)} |")
    for row in chosen:
        lines += [f"\n{row.provider}: {op} ran on the reference: {reason}" for op, reason in row.fallbacks.items()]
    return "\n".join(lines)


def _others(others: list[Other]) -> str:
    lines = ["| | median, ms | |", "|---|---:|---|"]
    for other in others:
        notes = ", ".join(f"{k} {_number(v) if isinstance(v, float) else v}" for k, v in other.notes.items())
        lines.append(f"| {other.name} | {_number(other.median_ms)} | {notes} |")
    return "\n".join(lines)


def comparison(old: Results, new: Results) -> str:
    """The flagged first."""
    changes, gone = compare(old, new)
    parts = ["\n## Compared with the older run"]
    if old.machine["device"] != new.machine["device"] or old.machine["threads"] != new.machine["threads"]:
        parts.append(f"That was another machine: {header(old)}.")
    flagged = sorted((change for change in changes if change.flag), key=lambda change: change.speedup)
    parts.append(f"{len(changes)} compared, {len(flagged)} of them more than 5 % faster or slower.")
    if flagged:
        parts.append("\n".join(["| | speed, times the older | by | |", "|---|---:|---|---|", *map(_change, flagged)]))
    if gone:
        parts.append("Only in the older run: " + "; ".join(gone))
    return "\n\n".join(parts)


def _change(change: Change) -> str:
    by = "ratio to eager bf16" if change.by_ratio else "time"
    return f"| {change.name} | {change.speedup:.2f} | {by} | {change.flag} |"


def _number(value: float | None) -> str:
    """Three digits, or whole from a hundred on."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_csv(rows: list[Row]) -> str:
    """All rows, a column a field."""
    names = [name for name in Row.__dataclass_fields__ if name != "fallbacks"] + ["fallbacks"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for row in rows:
        told = "; ".join(f"{op}: {reason}" for op, reason in row.fallbacks.items())
        writer.writerow(asdict(row) | {"fallbacks": told})
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
