"""The expected time of one block, op by op and kernel by kernel, beside the rivals'; modelled by `timing`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from astroco_fast.kernels.triton.launch import ARCHITECTURES
from astroco_fast.reference.config import AstroCoConfig
from bench.roofline.counting import Counts
from bench.roofline.model import BACKWARD, FORWARD, INFERENCE, STEP, Device
from bench.roofline.subject import DTYPES, count, window_lengths
from bench.roofline.timing import MEMORY, MULTIPROCESSORS, PRODUCTS, Line, a_block, fused, together

NOTE = """\
Expected on {device}, *modelled*: the time of one block, by the machine code of its kernels, their grids and data
sheets. No kernel was run. `issue`, `tensor`, `L2` and `memory` are the microseconds that the instructions, the tensor
cores with the shared memory that feeds them, the second-level cache and memory need by themselves; `ideal` is the
longer of arithmetic and memory. Rivals' ops are PyTorch's own kernels at {memory:.0%} of the bandwidth or
{products:.0%} of the tensor cores' rate; "compiled" has all that lies between two products in one kernel, which is
more than Inductor does."""
PASSES = {INFERENCE: (INFERENCE,), STEP: (FORWARD, BACKWARD)}
RIVALS: dict[str, tuple[bool, Callable[[Counts], Counts]]] = {
    "eager": (False, lambda counts: counts),
    "eager + SDPA": (True, lambda counts: counts),
    "compiled + SDPA": (True, fused),
}


def markdown(config: AstroCoConfig, batch: int, length: int, dtype: str, device: Device) -> str:
    """The tables of a device: ours by kernel, and all implementations in sum."""

    @cache
    def run(backend: str, sdpa: bool, layers: int) -> dict[str, Counts]:
        architecture = ARCHITECTURES[device.architecture]
        changed, lengths = replace(config, layers=layers), window_lengths(batch, length, padded=False)
        return count(backend, changed, lengths, length, DTYPES[dtype], architecture, sdpa)

    def passed(backend: str, sdpa: bool, layers: int, names: tuple[str, ...]) -> Counts:
        found = run(backend, sdpa, layers)
        return sum((found[name] for name in names[1:]), found[names[0]])

    parts = [NOTE.format(device=device.name, memory=MEMORY, products=PRODUCTS)]
    sums = ["| a block | pass | launches | GB | ideal, us | expected, us |", "|---|---|---:|---:|---:|---:|"]
    for name, names in PASSES.items():
        ours: list[Line] = []
        for one in names:
            lines = a_block(lambda layers, one=one: passed("triton", False, layers, (one,)), device)  # type: ignore[misc]
            parts.append(f"{one}:\n\n{_table(lines, device)}")
            ours += lines
        sums.append(_sum("astroco_fast", name, together(ours)))
        for rival, (sdpa, change) in RIVALS.items():

            def counted(layers: int, sdpa=sdpa, change=change, names=names) -> Counts:  # type: ignore[no-untyped-def]
                return change(passed("reference", sdpa, layers, names))

            sums.append(_sum(rival, name, together(a_block(counted, device))))
    return "\n\n".join([*parts, "\n".join(sums)])


def _sum(title: str, name: str, line: Line) -> str:
    cells = (f"{line.launches:.0f}", f"{line.bytes / 1e9:.2f}", f"{line.ideal * 1e6:.0f}", f"{line.expected * 1e6:.0f}")
    return f"| {title} | {name} | " + " | ".join(cells) + " |"


def _table(lines: list[Line], device: Device) -> str:
    """A pass of ours: each op, and below it each of its launches whose machine code was read."""
    on = MULTIPROCESSORS[device.name]
    heads = (
        "op, kernel", "launches, blocks", "registers", "shared, KB", "blocks an SM", "waves", "instructions a warp",
        "issue", "tensor", "L2", "memory", "ideal", "expected",
    )  # fmt: skip
    table = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for line in lines:
        middle = " | ".join([""] * 9)
        table.append(
            f"| {line.name} | {line.launches:.0f} | {middle} | {line.ideal * 1e6:.0f} | {line.expected * 1e6:.0f} |"
        )
        for kernel in line.kernels:
            share = kernel.blocks / on.count / on.clock * 1e6
            cells = (
                f"{kernel.blocks}", f"{kernel.registers}", f"{kernel.shared / 1024:.0f}", f"{kernel.resident(on)}",
                f"{kernel.waves(on):.2f}", f"{kernel.instructions}", f"{kernel.issue * share:.0f}",
                f"{kernel.tensor * share:.0f}", f"{kernel.cache / on.cache * 1e6:.0f}",
                f"{kernel.memory / device.bandwidth * 1e6:.0f}", "",
                f"{kernel.expected(on, device.bandwidth) * 1e6:.0f}",
            )  # fmt: skip
            note = " (a loop that depends on data counted once)" if kernel.guessed else ""
            table.append(f"| - {kernel.name}{note} | " + " | ".join(cells) + " |")
    return "\n".join(table)
