"""The expected time of one block, op by op and kernel by kernel, beside the rivals'; modelled by `timing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
longer of arithmetic and memory. PyTorch's own kernels, the rivals' and ours, take {memory:.0%} of the bandwidth or
{products:.0%} of the tensor cores' rate, or what a library's tiles of {rows} x {columns} move through the second-level
cache; "compiled" has all that lies between two products in one kernel, which is more than Inductor does."""
PASSES = {INFERENCE: (INFERENCE,), STEP: (FORWARD, BACKWARD)}
RIVALS: dict[str, tuple[bool, Callable[[Counts], Counts]]] = {
    "eager": (False, lambda counts: counts),
    "eager + SDPA": (True, lambda counts: counts),
    "compiled + SDPA": (True, fused),
}


def markdown(config: AstroCoConfig, batch: int, length: int, dtype: str, devices: Iterable[Device]) -> str:
    """The tables of devices: ours by kernel, and all implementations in sum."""

    @cache  # what is counted depends on the tilings at most, and plain PyTorch has none
    def run(backend: str, sdpa: bool, layers: int, architecture: str) -> dict[str, Counts]:
        changed, lengths = replace(config, layers=layers), window_lengths(batch, length, padded=False)
        return count(backend, changed, lengths, length, DTYPES[dtype], ARCHITECTURES[architecture], sdpa)

    def ours(name: str, device: Device) -> list[Line]:
        return a_block(lambda layers: run("triton", False, layers, device.architecture)[name], device)

    def rival(sdpa: bool, change: Callable[[Counts], Counts], names: tuple[str, ...], device: Device) -> list[Line]:
        def counted(layers: int) -> Counts:
            found = run("reference", sdpa, layers, "sm_80")
            return change(sum((found[name] for name in names), Counts()))

        return a_block(counted, device)

    parts = []
    for device in devices:
        rows, columns = MULTIPROCESSORS[device.name].tile
        parts.append(NOTE.format(device=device.name, memory=MEMORY, products=PRODUCTS, rows=rows, columns=columns))
        sums = ["| a block | pass | launches | GB | ideal, us | expected, us |", "|---|---|---:|---:|---:|---:|"]
        for step, names in PASSES.items():
            lines = {name: ours(name, device) for name in names}
            parts += [f"{name}:\n\n{_table(found, device)}" for name, found in lines.items()]
            sums.append(_sum("astroco_fast", step, together(line for found in lines.values() for line in found)))
            sums += [_sum(title, step, together(rival(*how, names, device))) for title, how in RIVALS.items()]
        parts.append("\n".join(sums))
    return "\n\n".join(parts)


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
            note = " (a loop that depends on unknown data counted once)" if kernel.guessed else ""
            if kernel.blind > kernel.cache / 100:
                note += f" ({kernel.blind / kernel.cache:.0%} of L2's bytes by loads of unknown addresses)"
            table.append(f"| - {kernel.name}{note} | " + " | ".join(cells) + " |")
    return "\n".join(table)
