"""`python -m bench.roofline`: tables in Markdown to standard output, and all numbers as JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astroco_fast import presets
from bench.roofline.model import DEVICES, EAGER, FULL, HALF, INDUCTOR, OURS, STEP, Bar, Row, bars, rows
from bench.roofline.subject import DTYPES

TITLES = {EAGER: "eager PyTorch", INDUCTOR: "Inductor", OURS: "astroco_fast"}
NOTE = """\
*Modelled*, not measured: the real code ran on tensors without data. Every op is one launch and moves each of its
distinct inputs and outputs once; operations are those of matrix products and convolutions. The bound of a pass is the
sum over its launches of the longer of operations / peak and bytes / bandwidth, by data sheet
(half precision: {devices}).
Nothing is added for launches, and no kernel reaches its bound. Kept: what forward leaves for backward, parameters and
their casts aside. Weights are cast anew for each batch by eager and by Inductor, for each training step by
astroco_fast. The optimiser is left out."""
ON_INDUCTOR = """\
Inductor: `torch.compile`'s schedule of the plain model for an H100, by its own scheduler's count of buffers, taken for
2 and 3 blocks and extrapolated to {layers}. Not for ragged windows: under it shapes are fixed, and padding stays."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__)
    parser.add_argument("--preset", default="L", choices=presets.names())
    parser.add_argument("--batch", type=int, default=256, help="windows")
    parser.add_argument("--length", type=int, default=200, help="positions of a window")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=DEVICES)
    parser.add_argument("--no-inductor", action="store_true", help="leave Inductor out: its schedule takes minutes")
    parser.add_argument("--ops", action="store_true", help="also what each op of astroco_fast moves")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    devices = [DEVICES[name] for name in args.devices]
    config = presets.preset(args.preset).config
    found = rows(config, args.batch, args.length, args.dtype, devices, not args.no_inductor)
    limits = bars(found)
    print(markdown(args, found, limits))
    if args.json:
        args.json.write_text(json.dumps(as_json(args, found, limits), indent=2) + "\n")


def markdown(args: argparse.Namespace, found: list[Row], limits: list[Bar]) -> str:
    """The tables."""
    sheets = "; ".join(
        f"{device.name} {device.half / 1e12:g} TFLOP/s, {device.bandwidth / 1e12:g} TB/s"
        for device in map(DEVICES.__getitem__, args.devices)
    )
    parts = [
        f"AstroCo-{args.preset}, {args.batch} windows of {args.length}, {args.dtype}.",
        NOTE.format(devices=sheets),
    ]
    if any(row.implementation == INDUCTOR for row in found):
        parts.append(ON_INDUCTOR.format(layers=presets.preset(args.preset).config.layers))
    titles = {FULL: "Full windows", HALF: "Ragged windows, half of all points padding"}
    parts += [f"{title}:\n\n{_table(args, [r for r in found if r.batch == kind])}" for kind, title in titles.items()]
    lines = ["| bar | limit | modelled | |", "|---|---:|---:|---|"]
    for bar in limits:
        lines.append(f"| {bar.text} | {bar.limit:.3g} | {bar.value:.3g} | {'met' if bar.met else 'MISSED'} |")
    parts += ["Asked of preset L, 256 windows of 200, bf16:", "\n".join(lines)]
    if args.ops:
        parts += [_ops(row) for row in found if row.implementation == OURS and row.batch == FULL and row.name != STEP]
    return "\n\n".join(parts)


def _table(args: argparse.Namespace, found: list[Row]) -> str:
    heads = ["", "pass", "launches", "a block", "read, GB", "written, GB", "TFLOP", "kept, GB"]
    heads += [f"{name}, ms" for name in args.devices]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in found:
        title = TITLES[row.implementation]
        if sum((other.name, other.implementation) == (row.name, row.implementation) for other in found) > 1:
            title += f", tiled for {' and '.join(row.architectures)}"
        cells = [title, row.name, str(row.launches), str(row.block)]
        cells += [f"{row.read / 1e9:.2f}", f"{row.written / 1e9:.2f}", f"{row.flops / 1e12:.2f}"]
        cells.append(f"{row.kept / 1e9:.2f}" if row.kept else "")
        cells += [f"{row.bound[name]:.2f}" if name in row.bound else "" for name in args.devices]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ops(row: Row) -> str:
    """Where a pass's bytes go, by op."""
    lines = [f"{row.name}, {' and '.join(row.architectures)}:", "", "| op | launches | GB |", "|---|---:|---:|"]
    return "\n".join(lines + [f"| {name} | {n} | {size / 1e9:.3f} |" for name, (n, size) in row.ops.items()])


def as_json(args: argparse.Namespace, found: list[Row], limits: list[Bar]) -> dict[str, Any]:
    """All numbers, in bytes, operations and milliseconds."""
    return {
        "modelled": True,
        **{name: getattr(args, name) for name in ("preset", "batch", "length", "dtype")},
        "rows": [asdict(row) for row in found],
        "bars": [{**asdict(bar), "met": bar.met} for bar in limits],
    }


if __name__ == "__main__":
    main()
