"""`python -m bench.roofline`: prints tables in Markdown, and writes all numbers as JSON if asked to."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astroco_fast import presets
from bench.roofline import block
from bench.roofline.model import DEVICES, EAGER, FULL, HALF, OURS, STEP, Bar, Row, bars, rows
from bench.roofline.subject import DTYPES

TITLES = {EAGER: "eager PyTorch", OURS: "astroco_fast"}
NOTE = """\
*Modelled*, not measured: the real code ran on tensors without data. Every op counts as one launch that moves each of
its distinct inputs and outputs once; operations are those of matrix products and convolutions. The bound of a pass is
the sum over its launches of the longer of operations / peak and bytes / bandwidth, by data sheet
(half precision: {devices}).
A launch adds nothing to the bound, and no kernel reaches its bound. "Kept" is what the forward pass keeps for the
backward pass, without parameters and their casts. Eager PyTorch casts the weights for every batch, astroco_fast for
every training step. The optimiser is left out."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__)
    parser.add_argument("--preset", default="L", choices=presets.names())
    parser.add_argument("--batch", type=int, default=256, help="windows")
    parser.add_argument("--length", type=int, default=200, help="positions of a window")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=DEVICES)
    parser.add_argument("--ops", action="store_true", help="also print what each op of astroco_fast moves")
    parser.add_argument(
        "--kernels", action="store_true",
        help="also print the expected time of a block's kernels, by their machine code (compiles them: minutes)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all numbers to this file")
    args = parser.parse_args()
    devices = [DEVICES[name] for name in args.devices]
    config = presets.preset(args.preset).config
    found = rows(config, args.batch, args.length, args.dtype, devices)
    limits = bars(found)
    print(markdown(args, found, limits))
    if args.kernels:
        print("\n" + block.markdown(config, args.batch, args.length, args.dtype, devices))
    if args.json:
        args.json.write_text(json.dumps(as_json(args, found, limits), indent=2) + "\n")


def markdown(args: argparse.Namespace, found: list[Row], limits: list[Bar]) -> str:
    """The page: the batch, a note on the method, tables by kind of windows, the limits."""
    sheets = "; ".join(
        f"{device.name} {device.half / 1e12:g} TFLOP/s, {device.bandwidth / 1e12:g} TB/s"
        for device in map(DEVICES.__getitem__, args.devices)
    )
    parts = [
        f"AstroCo-{args.preset}, {args.batch} windows of {args.length}, {args.dtype}.",
        NOTE.format(devices=sheets),
    ]
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
    """A table of the launches and bytes of a pass, by op."""
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
