"""The command of the audit; see the package."""

import argparse
import csv
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from astroco_fast import ops
from astroco_fast.files import write_text
from astroco_fast.kernels import triton as triton_backend
from astroco_fast.kernels.triton.launch import ARCHITECTURES
from astroco_fast.text import rows as aligned
from bench import audit
from bench.audit.binary import Result, examine, failed
from bench.audit.launches import DTYPES, PRESETS, WAVES, Kernel, kernels


def gather(
    archs: Iterable[str], names: Iterable[str], dtypes: Iterable[str], chosen: Iterable[str]
) -> tuple[list[Kernel], list[Result]]:
    """Every kernel once, and a failed result for each op that cannot run or launches nothing."""
    found: dict[tuple[str, str], Kernel] = {}
    impossible = []
    for arch, preset, dtype, op in ((a, p, d, o) for a in archs for p in names for d in dtypes for o in chosen):
        result = Result(op, "", preset, dtype, "", arch)
        try:
            launched = kernels(arch, preset, dtype, op) + kernels(arch, preset, dtype, op, WAVES, multiprocessors=1)
        except Exception as error:  # an op that cannot run must not hide the others
            impossible.append(failed(result, error))
            continue
        if not launched:
            impossible.append(failed(result, "launches no kernel"))
        for kernel in launched:
            first = found.setdefault((arch, kernel.key), kernel)
            for what, values in kernel.users.items():
                first.users[what] |= values
    return list(found.values()), impossible


def examine_all(jobs: Sequence[Kernel], processes: int) -> Iterator[Result]:
    """The result of `examine` for each job, each in a process of its own, so that a crash costs one kernel only."""
    from triton.runtime.cache import triton_key

    triton_key()  # hashes Triton's library once, or each process would: longer than most compilations
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(jobs))
    running: dict[Any, tuple[Any, Kernel]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            kernel = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(sender, kernel))
            process.start()
            sender.close()
            running[receiver] = (process, kernel)
        ready: Any
        for ready in wait(list(running)):
            process, kernel = running.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                process.join()
                yield failed(Result(**kernel.label), f"the compiler crashed, exit status {process.exitcode}")
            process.join()


def _send(sender: Any, kernel: Kernel) -> None:
    sender.send(examine(kernel))


COLUMNS = (
    "op", "kernel", "preset", "dtype", "constants", "arch", "registers", "local", "shared KB", "of",
    "widest load", "tensor core", "a tap", "code KB", "compile s", "bars", "broken",
)  # fmt: skip


def cells(result: Result) -> list[str]:
    """A result's row of the table, under `COLUMNS`."""
    return [
        result.op, result.kernel, result.preset, result.dtype, result.constants, result.arch, str(result.registers),
        str(result.local), f"{result.shared / 1024:.1f}", f"{result.limit / 1024:.0f}",
        str(max(result.loads, default="-")), result.matrix or "-",
        f"{result.taps:.2f}" if result.taps else "-", f"{result.size / 1024:.1f}",
        f"{result.seconds:.2f}", ",".join(result.bars), "; ".join(result.broken.values()),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if no kernel breaks a bar, 1 if one does, 2 if nothing can be compiled here."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=audit.__doc__)
    for name, choices in (("arch", ARCHITECTURES), ("preset", PRESETS), ("dtype", DTYPES), ("op", ops.OPS)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(choices), default=list(choices), help="default: all")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all results to this file, as they come")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: one for each processor")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("audit: TRITON_INTERPRET=1 leaves nothing to compile; unset it", file=sys.stderr)
        return 2
    if reason := triton_backend.Triton().unsupported("attention", torch.device("meta"), torch.float32, False):
        print(f"audit: {reason}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    jobs, results = gather(args.arch, args.preset, args.dtype, args.op)
    with tempfile.TemporaryDirectory() as empty:  # an earlier compilation must not be found
        os.environ["TRITON_CACHE_DIR"] = os.environ.get("TRITON_CACHE_DIR") or empty
        progress = tqdm(examine_all(jobs, args.jobs), total=len(jobs), unit="kernel", disable=None)
        for result in progress:
            results.append(result)
            if args.json:  # a run that is stopped leaves the results so far
                write(results, args.json)
    results.sort(key=lambda r: (r.op, r.kernel, r.constants, r.preset, r.dtype, list(ARCHITECTURES).index(r.arch)))
    if args.json:
        write(results, args.json)
    return report(results, args.csv)


def write(results: Sequence[Result], path: Path) -> None:
    """Write the results as JSON."""
    write_text(path, json.dumps([asdict(result) for result in results], indent=1) + "\n")


def report(results: Sequence[Result], as_csv: bool) -> int:
    """Print the table and the broken bars; returns the exit status."""
    table = [list(COLUMNS), *map(cells, results)]
    if as_csv:
        csv.writer(sys.stdout).writerows(table)
    else:
        print(*aligned(table), sep="\n")
    broken = [result for result in results if result.broken]
    for result in broken:
        what = "; ".join(f"{bar}: {reason}" for bar, reason in result.broken.items())
        print(f"{result.arch} {result.op} {result.kernel} {result.constants}: {what}", file=sys.stderr)
    print(f"{len(results)} kernels, {len(broken)} break a bar", file=sys.stderr)
    return 1 if broken or not results else 0


if __name__ == "__main__":
    sys.exit(main())
