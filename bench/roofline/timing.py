"""Expected times: what a kernel's machine code, its grid and the data sheet of a GPU say that it takes. Modelled.

A multiprocessor holds as many blocks as registers, shared memory and threads allow. The blocks in it compete for four
schedulers, which issue an instruction a cycle each, for the units behind them, for the tensor cores and for shared
memory; a single block waits for its products before it uses them, so its products and its other instructions take
turns, but for those instructions that its machine code has between asynchronous products and the wait for them. Blocks
run in waves, the last of which may be short. All of this overlaps with the traffic to the second-level
cache and to memory, and the longest of them is the kernel's time. Bank conflicts count; latencies and stalls do not.

PyTorch's own kernels, of which there is no machine code here, are taken to reach a share of the data sheet, or what
their tiles move through the second-level cache. No kernel, ours included, is taken to reach more than that share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.audit.binary import compiled, disassembled
from bench.audit.launches import specialise
from bench.audit.machine import BLOCKS, Instruction
from bench.audit.sass import Walk, constants, mean, parse, places, walk
from bench.roofline.counting import Counts, Launch, Op
from bench.roofline.flops import PAIRWISE

# Shares of the data sheet that good kernels reach: of memory's bandwidth; of the tensor cores' rate in products, and in
# fused attention on short windows.
MEMORY, PRODUCTS, ATTENTION = 0.9, 0.7, 0.4
# What a launch that follows another one adds, in seconds: the first loads and the last stores of a kernel.
LAUNCH = 2e-6


@dataclass(frozen=True)
class Multiprocessor:
    """The units of a GPU that instructions compete for.

    Attributes:
        count: multiprocessors.
        clock: cycles a second at which the data sheet's rates hold.
        cache: bytes a second from the second-level cache; microbenchmarks report about so much.
        shared: bytes of shared memory that all blocks in it have.
        chip: bytes of its memory, of which the first-level cache has what shared memory leaves.
        fma: cycles of a scheduler that a float32 operation of a warp takes.
        tile: rows and columns of a product for which cuBLAS loads operands from the second-level cache once: tiles of
            128 x 256, of which on sm_90 two multiprocessors share what they load (a cluster's multicast).
        mma: cycles of a scheduler's tensor core that an `mma.sync` of 16 x 8 x 16 half-precision numbers takes.
    """

    count: int
    clock: float
    cache: float
    shared: int
    chip: int
    tile: tuple[int, int]
    fma: int
    mma: float


# On sm_90, mma.sync reaches 0.62 of the rate of wgmma.
MULTIPROCESSORS = {
    "A100": Multiprocessor(108, 1.41e9, 4.0e12, 164 * 1024, 192 * 1024, (128, 256), fma=2, mma=8.0),
    "H100": Multiprocessor(132, 1.83e9, 5.5e12, 228 * 1024, 256 * 1024, (256, 256), fma=1, mma=6.5),
    "H200": Multiprocessor(132, 1.83e9, 5.5e12, 228 * 1024, 256 * 1024, (256, 256), fma=1, mma=6.5),
}

_ALU = {
    "IADD3", "LOP3", "SHF", "ISETP", "FSETP", "SEL", "FSEL", "PRMT", "FMNMX", "IMNMX", "VIMNMX", "MOV", "LEA", "SGXT",
    "F2FP", "PLOP3", "P2R", "R2P", "LOP", "BMSK", "IABS",
}  # fmt: skip
_SINGLE = {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2", "HMUL2"}
_SPECIAL = {"MUFU", "F2F", "F2I", "I2F", "POPC", "FRND"}


@dataclass
class Kernel:
    """A kernel with its launch, in cycles of a multiprocessor for one block, and bytes for all.

    Attributes:
        name: the file's and the function's.
        blocks, warps: of the grid, and of a block.
        registers, shared: a thread's, and a block's in bytes.
        instructions: that a warp executes.
        issue: cycles that the schedulers, or the busiest unit behind them, need.
        tensor: cycles of the tensor cores, or of the shared memory that feeds them.
        memory, cache: bytes to and from memory, and between multiprocessors and the second-level cache.
        guessed: loops that depend on unknown data, taken to run once.
        hidden: of a block's cycles of instructions, those that overlap with its own products.
        blind: of `cache`, bytes whose addresses are unknown, taken to be distinct.
    """

    name: str
    blocks: int
    warps: int
    registers: int
    shared: int
    instructions: int
    issue: float
    tensor: float
    memory: int
    cache: int
    guessed: int
    blind: int = 0
    hidden: float = 0.0

    def resident(self, on: Multiprocessor) -> int:
        """Blocks that a multiprocessor holds at once."""
        return resident(self.registers, self.shared, self.warps, self.blocks, on)

    def waves(self, on: Multiprocessor) -> float:
        """Rounds in which the grid runs."""
        return self.blocks / (on.count * self.resident(on))

    def cycles(self, on: Multiprocessor) -> float:
        """Cycles of the busiest multiprocessor."""

        def wave(blocks: int) -> float:
            if blocks == 1:
                return self.issue + self.tensor - self.hidden
            return blocks * max(self.issue, self.tensor)

        resident = self.resident(on)
        whole, rest = divmod(self.blocks, on.count * resident)
        return whole * wave(resident) + (wave(-(-rest // on.count)) if rest else 0.0)

    def expected(self, on: Multiprocessor, bandwidth: float) -> float:
        """Seconds on a GPU whose memory has this bandwidth."""
        busy = max(self.cycles(on) / on.clock, self.cache / on.cache, self.memory / (MEMORY * bandwidth))
        return busy + LAUNCH


def resident(registers: int, shared: int, warps: int, blocks: int, on: Multiprocessor) -> int:
    """Blocks of a grid that a multiprocessor holds at once."""
    used = -(-max(registers, 16) // 8) * 8 * 32 * warps
    most = min(65536 // used, 64 // warps, 32, on.shared // (shared + 1024))
    return max(1, min(most, -(-blocks // on.count)))


def read(launch: Launch, arch: str, on: Multiprocessor) -> Kernel:
    """A launch's kernel: compiled for an architecture, disassembled and walked through."""
    kernel = specialise(launch.function, launch.arguments, launch.constants, launch.config, arch)
    names = launch.function.arg_names
    given = {name: value for name, value in zip(names, launch.arguments, strict=False) if isinstance(value, int)}
    blocks, warps = math.prod(launch.grid), launch.config.warps
    known = tuple((name, hash(content.tobytes())) for name, content in launch.known.items())
    key = (arch, on.chip, kernel.key, tuple(sorted(given.items())), blocks, known)
    if key not in _seen:
        found = compiled(kernel)
        usage, sass = disassembled(found.asm["cubin"])
        shared = found.metadata.shared
        held = resident(usage["REG"], shared, warps, blocks, on)
        _seen[key] = usage["REG"], shared, _walked(kernel, parse(sass), launch, given, on.chip // held - shared)
    registers, shared, walked = _seen[key]
    issue, tensor = cycles(walked, warps, on)
    traffic = round((walked.read + walked.written) * blocks)
    return Kernel(
        kernel.name, blocks, warps, registers, shared, round(walked.total()), issue, tensor,
        min(launch.bytes, traffic), traffic,  # a launch may be given more than it touches
        walked.guessed, round(walked.blind * blocks), min(hidden(walked, warps, on), issue, tensor),
    )  # fmt: skip


def _walked(kernel: Any, code: list[Instruction], launch: Launch, given: dict[str, int], capacity: int) -> Walk:
    """What a block executes and moves, on average over some blocks.

    These are three neighbours, since a row tile's column tiles may differ, as three do at D = 276; and where another
    block executes something else, since its loops depend on data, three at five places of the grid.
    """
    signature = kernel.arguments[0]
    words = {**constants(kernel.arch, signature, given), BLOCKS: launch.grid[0]}
    at = places(signature)
    data = {at[name]: content for name, content in launch.known.items() if name in at}
    blocks, threads = math.prod(launch.grid), 32 * launch.config.warps

    def walks(start: int) -> list[Walk]:
        near = range(start, min(start + 3, blocks))
        return [walk(code, words, block, threads, data, capacity) for block in near]

    found = walks(blocks // 2)
    other = walk(code, words, blocks // 5, threads, data, capacity)
    if data and other.total() not in [walked.total() for walked in found]:
        found = [walked for i in range(1, 10, 2) for walked in walks(blocks * i // 10)]
    return mean(found)


_seen: dict[Any, tuple[int, int, Walk]] = {}


def cycles(walked: Walk, warps: int, on: Multiprocessor) -> tuple[float, float]:
    """Cycles of a block's instructions and of its products.

    Args:
        walked: what a block executed.
        warps: of the block.
        on: the multiprocessor that it runs on.
    """
    units = {"issue": 0.0, "alu": 0.0, "single": 0.0, "special": 0.0}
    shared, products = walked.cycles, 0.0
    for name, n in walked.counts.items():
        op = re.split(r"[. ]", name)[0]
        units["issue"] += n
        units["alu"] += 2 * n * (op in _ALU)
        units["single"] += on.fma * n * (op in _SINGLE)
        units["special"] += 8 * n * (op in _SPECIAL)
        shared += n * warps * (op == "SHFL")
        if op == "HGMMA":
            rows, columns, depth = map(int, name.split(".")[1].split("x"))
            products += n * columns / 2 * warps / 4
            item = 32 // depth  # bytes: a step along the depth is 32 bytes of a row
            shared += n * warps / 4 * (columns * depth * item + rows * depth * item * ("memory" in name)) / 128
        elif op == "HMMA":
            products += n * on.mma * (0.5 if ".1688." in name and "TF32" not in name else 1) * warps / 4
    tensor = max(products, shared) if products else 0.0
    issue = max(max(units.values()) * warps / 4, 0.0 if products else shared)
    return issue, tensor


def hidden(walked: Walk, warps: int, on: Multiprocessor) -> float:
    """Cycles of a block's instructions that overlap with its own products, by the order of its machine code.

    Between asynchronous products and the wait for them, the shorter of both is hidden behind the longer one.
    """
    total = 0.0
    for (products, others), times in walked.flights.items():
        total += times * min(cycles(Walk(dict(products)), warps, on)[1], cycles(Walk(dict(others)), warps, on)[0])
    return total


@dataclass
class Line:
    """One op of a pass: launches, bytes, operations, and seconds on a GPU, the least possible and those expected.

    Attributes:
        kernels: those of its launches whose machine code was read.
    """

    name: str
    launches: float = 0
    bytes: float = 0
    ideal: float = 0.0
    expected: float = 0.0
    kernels: list[Kernel] = field(default_factory=list)


def lines(counts: Counts, device: Any) -> list[Line]:
    """The ops of a pass by name, in order of their first appearance; `device` is a `model.Device`."""
    on = MULTIPROCESSORS[device.name]
    found: dict[str, Line] = {}
    for op in counts.ops:
        line = found.setdefault(op.name, Line(op.name))
        kernels = [read(launch, device.architecture, on) for launch in op.launched]
        line.kernels += kernels
        line.launches += op.launches
        line.bytes += op.bytes
        line.ideal += device.bound(Counts([op]))
        if kernels:
            times = sum(kernel.expected(on, device.bandwidth) for kernel in kernels)
            line.expected += max(times, _arithmetic(op, device) + LAUNCH * op.launches)
        else:
            line.expected += library(op, device)
    return list(found.values())


def library(op: Op, device: Any) -> float:
    """Seconds that one of PyTorch's own kernels is taken to need."""
    on = MULTIPROCESSORS[device.name]
    cache = min(op.product.moved(*tile) for tile in (on.tile, on.tile[::-1])) if op.product else op.bytes
    busy = max(_arithmetic(op, device), op.bytes / (MEMORY * device.bandwidth), cache / on.cache)
    return busy + LAUNCH * op.launches


def _arithmetic(op: Op, device: Any) -> float:
    """Seconds of an op's operations, of which no kernel does more than a share of the data sheet's, ours as little."""
    share = ATTENTION if op.name in PAIRWISE else PRODUCTS
    return op.flops / (share * (device.half if op.dtype.itemsize == 2 else device.single))


def fused(counts: Counts) -> Counts:
    """The ops as a compiler at its best would launch them: all that lies between two products in one kernel.

    A kernel reads what it did not make, and writes what is used after it. Inductor needs more launches, and moves more:
    where nothing was fused into attention, it was counted at 37 launches a block of inference, this at 20.
    """
    ops = counts.ops
    last: dict[int, int] = {}
    for i, op in enumerate(ops):
        last.update(dict.fromkeys(op.reads, i))
    joined: list[Op] = []
    i = 0
    while i < len(ops):
        if ops[i].flops:
            joined.append(ops[i])
            i += 1
            continue
        end = i
        while end < len(ops) and not ops[end].flops:
            end += 1
        made: dict[int, int] = {}
        given: dict[int, int] = {}
        for op in ops[i:end]:
            for storage, size in op.reads.items():
                if storage not in made:
                    given[storage] = max(size, given.get(storage, 0))
            made.update(op.writes)
        kept = {storage: size for storage, size in made.items() if last.get(storage, end) >= end}
        joined.append(Op("fused", read=sum(given.values()), written=sum(kept.values())))
        i = end
    return Counts(joined, counts.kept)


def a_block(run: Callable[[int], Counts], device: Any) -> list[Line]:
    """What one more block adds to a pass; `run` counts a model of so many blocks."""
    two, three = ({line.name: line for line in lines(run(n), device)} for n in (2, 3))
    found = []
    for name, more in three.items():
        less = two.get(name, Line(name))
        added = len(more.kernels) - len(less.kernels)
        found.append(
            Line(
                name, more.launches - less.launches, more.bytes - less.bytes, more.ideal - less.ideal,
                more.expected - less.expected, more.kernels[:added],
            )
        )  # fmt: skip
    return [line for line in found if line.launches or line.bytes]


def together(found: Iterable[Line]) -> Line:
    """The sum of lines."""
    total = Line("together")
    for line in found:
        total.launches += line.launches
        total.bytes += line.bytes
        total.ideal += line.ideal
        total.expected += line.expected
    return total
