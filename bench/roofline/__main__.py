"""`python -m bench.roofline`: tables in Markdown to standard output, and all numbers as JSON."""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from astroco_fast import presets
from bench.roofline.model import DEVICES, EAGER, FULL, HALF, OURS, STEP, Bar, Row, bars, rows
from bench.roofline.subject import DTYPES

TITLES = {EAGER: "eager PyTorch", OURS: "astroco_fast"}
NOTE = """\
*Modelled*, not measured: the real code was run on tensors without data. Every op is one launch and moves each of its
distinct inputs and outputs once; operations are those of matrix products and convolutions. The bound of a pass is the sum
over its ops of the longer of operations / peak and bytes / bandwidth (data sheets: {devices}); nothing is
added for launches, and no kernel reaches it. Kept: what forward leaves for backward, parameters and their casts aside.
Weights are cast once a batch by eager, once a training step by astroco_fast. The optimiser is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__)
    parser.add_argument("--preset", default="L", choices=presets.names())
    parser.add_argument("--batch", type=int, default=256, help="windows")
    parser.add_argument("--length", type=int, default=200, help="positions of a window")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=DEVICES)
    parser.add_argument("--ops", action="store_true", help="also what each op of astroco_fast moves")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    # The kernels' cache of prepared weights asks for addresses; tensors without data have none, and torch says so.
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    found = rows(args.preset, args.batch, args.length, args.dtype, [DEVICES[name] for name in args.devices])
    limits = bars(found)
    print(markdown(args, found, limits))
    if args.json:
        args.json.write_text(json.dumps(as_json(args, found, limits), indent=2) + "\n")


def markdown(args: argparse.Namespace, found: list[Row], limits: list[Bar]) -> str:
    """The tables."""
    sheets = "; ".join(
        f"{device.name} {device.half / 1e12:g} TFLOP/s {args.dtype if args.dtype != 'fp32' else 'bf16'}, "
        f"{device.bandwidth / 1e12:g} TB/s"
        for device in map(DEVICES.__getitem__, args.devices)
    )
    parts = [
        f"AstroCo-{args.preset}, {args.batch} windows of {args.length}, {args.dtype}.",
        NOTE.format(devices=sheets),
    ]
    titles = {FULL: "Full windows", HALF: "Ragged windows, half of all points padding"}
    parts += [f"{title}:\n\n{_table(args, [r for r in found if r.batch == kind])}" for kind, title in titles.items()]
    lines = ["| bar | limit | modelled | |", "|---|---|---|---|"]
    lines += [
        f"| {bar.text} | {bar.limit:.3g} | {bar.value:.3g} | {'met' if bar.met else 'MISSED'} |" for bar in limits
    ]
    parts.append("\n".join(lines))
    if args.ops:
        parts += [_ops(row) for row in found if row.implementation == OURS and row.batch == FULL and row.name != STEP]
    return "\n\n".join(parts)


def _table(args: argparse.Namespace, found: list[Row]) -> str:
    heads = ["", "pass", "launches", "a block", "read, GB", "written, GB", "TFLOP", "kept, GB"]
    heads += [f"{name}, ms" for name in args.devices]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in found:
        counts = row.counts
        title = TITLES.get(row.implementation, row.implementation)
        if any(
            other.name == row.name and other.implementation == row.implementation and other is not row
            for other in found
        ):
            title += f", tiled for {' and '.join(row.architectures)}"
        cells = [title, row.name, str(counts.launches), str(row.block)]
        cells += [f"{counts.read / 1e9:.2f}", f"{counts.written / 1e9:.2f}", f"{counts.flops / 1e12:.2f}"]
        cells.append(f"{counts.kept / 1e9:.2f}" if counts.kept else "")
        cells += [f"{row.bound[name]:.2f}" if name in row.bound else "" for name in args.devices]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ops(row: Row) -> str:
    """Where a pass's bytes go, by op, most first."""
    total: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for op in row.counts.ops:
        total[op.name][0] += op.launches
        total[op.name][1] += op.bytes
    lines = [f"{row.name}, {' and '.join(row.architectures)}:", "", "| op | launches | GB |", "|---|---:|---:|"]
    ordered = sorted(total.items(), key=lambda item: -item[1][1])
    return "\n".join(lines + [f"| {name} | {launches} | {size / 1e9:.3f} |" for name, (launches, size) in ordered])


def as_json(args: argparse.Namespace, found: list[Row], limits: list[Bar]) -> dict[str, Any]:
    """All numbers, in bytes, operations and milliseconds."""
    return {
        "modelled": True,
        "preset": args.preset,
        "batch": args.batch,
        "length": args.length,
        "dtype": args.dtype,
        "rows": [
            {
                "implementation": row.implementation,
                "batch": row.batch,
                "pass": row.name,
                "architectures": row.architectures,
                "launches": row.counts.launches,
                "launches_per_block": row.block,
                "read_bytes": row.counts.read,
                "written_bytes": row.counts.written,
                "flops": row.counts.flops,
                "kept_bytes": row.counts.kept,
                "bound_ms": row.bound,
            }
            for row in found
        ],
        "bars": [{"text": bar.text, "limit": bar.limit, "value": bar.value, "met": bar.met} for bar in limits],
    }


if __name__ == "__main__":
    main()
