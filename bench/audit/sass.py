"""The instructions that a block executes, by walking through a kernel's machine code (SASS) with its real arguments.

The walk computes whole numbers and predicates of all threads of a block, as far as they depend on the kernel's
arguments, the block's index, the threads' own and the content of memory that is known, and leaves all others unknown.
So loops run as often as the arguments and the data say, however the compiler has unrolled, peeled or pipelined them.
Where a branch depends on what is unknown, the walk falls through, except where the code it would fall into calls a
subroutine (the rare path of a division or a square root); a loop that depends on it runs once, and is counted in
`Walk.guessed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.audit.machine import Instruction, Machine
from bench.audit.traffic import APART, COPIES, GLOBAL, SHARED, Memory

# Where an architecture's kernels find their first argument in constant memory.
_ARGUMENTS = {"sm_80": 0x160, "sm_86": 0x160, "sm_89": 0x160, "sm_90": 0x210, "sm_100": 0x380, "sm_120": 0x380}
_SIZES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "bf16": 2, "fp16": 2, "i64": 8, "u64": 8, "fp64": 8}
# A kernel of this project executes far fewer; a walk that is longer has misread a loop.
MOST = 200_000

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);")


Counted = tuple[tuple[str, float], ...]
Flight = tuple[Counted, Counted]


@dataclass
class Walk:
    """What a block executed and moved.

    Attributes:
        counts: instructions of a warp, on average over the block's, by name with suffixes and, for matrix instructions,
            by the kind of their first operand ("HGMMA.64x128x16.F32.BF16 memory" where it is in shared memory).
        guessed: loops that depend on unknown data, and were taken to run once.
        flights: for each wait for asynchronous products (HGMMA), how often it was met, by those waited for and by
            the other instructions since the first of them, both as in `counts` (sorted pairs).
        read, written, blind, cycles: the block's traffic, as in `traffic.Memory`.
    """

    counts: Mapping[str, float]
    guessed: int = 0
    flights: Mapping[Flight, float] = field(default_factory=dict)
    read: float = 0
    written: float = 0
    blind: float = 0
    cycles: float = 0

    def total(self, *ops: str) -> float:
        """Instructions of these names, without suffixes; all, without any."""
        return sum(n for name, n in self.counts.items() if not ops or re.split(r"[. ]", name)[0] in ops)


def parse(sass: str) -> list[Instruction]:
    """The instructions of a kernel from the text of `cuobjdump -sass`."""
    found = []
    for at, guard, name, operands in _LINE.findall(sass):
        parts = tuple(part.strip() for part in operands.split(",")) if operands.strip() else ()
        found.append(Instruction(int(at, 16), guard, name.partition(".")[0], name, parts))
    return found


def constants(arch: str, signature: dict[str, str], values: dict[str, int]) -> dict[int, int]:
    """Constant memory, in 32-bit words by address: the kernel's arguments that are whole numbers, and pointers.

    The memory behind pointer i begins at `(i + 1) << APART`.
    """
    at = _ARGUMENTS[arch]
    words, pointers = {}, 0
    for name, kind in signature.items():
        if kind == "constexpr":
            continue
        size = 8 if kind.startswith("*") else _SIZES.get(kind, 4)
        at = -(-at // size) * size
        value = values.get(name) if kind.startswith(("i", "u")) else None
        if kind.startswith("*"):
            pointers += 1
            value = pointers << APART
        if value is not None:
            words[at] = value & 0xFFFFFFFF
            if size == 8:
                words[at + 4] = value >> 32 & 0xFFFFFFFF
        at += size
    return words


def places(signature: dict[str, str]) -> dict[str, int]:
    """The addresses of the memory behind each pointer among a kernel's arguments."""
    return {name: i + 1 << APART for i, name in enumerate(n for n, kind in signature.items() if kind.startswith("*"))}


def walk(
    code: list[Instruction], words: Mapping[int, int], block: int, threads: int = 32,
    data: Mapping[int, np.ndarray] | None = None, capacity: int = 0,
) -> Walk:  # fmt: skip
    """Walk through a kernel as a block.

    Where threads part, those furthest behind go on first, and all that meet go on together.

    Args:
        code: the kernel's.
        words: constant memory, as from `constants`.
        block: index of the block, as for `Machine`.
        threads: of the block.
        data: the content of memory that is known, (n,) uint32 each, by address as from `places`.
        capacity: bytes of the first-level cache that the block has.

    Raises:
        ValueError: the walk does not end, or meets a copy whose bytes no instruction tells.
    """
    machine, memory = Machine(words, block, threads), Memory(data or {}, capacity, threads)
    counts, guesses, steps = Counter[str](), 0, 0
    at = {instruction.at: i for i, instruction in enumerate(code)}
    returns: list[int] = []
    left: set[int] = set()
    paths, flights = _Paths(machine, threads), _Flights()
    i: int | None = 0
    while i is not None and i < len(code):
        i = paths.meet(i)
        one = code[i]
        i += 1
        if one.op == "NOP":
            continue
        kind = f" {'memory' if 'gdesc' in one.operands[1] else 'registers'}" if one.op == "HGMMA" else ""
        counts[one.name + kind] += paths.share
        flights.meet(one, one.name + kind, paths.share)
        steps += 1
        if steps > MOST:
            raise ValueError(f"the walk through a kernel does not end: at {one}")
        taken = machine.guard(one)
        if one.name in ("BRA.DIV", "BRA.CONV"):
            continue  # these jump only where the lanes of a warp have parted
        if taken is None and one.op in ("BRA", "EXIT", "CALL"):
            taken, guessed = _guess(code, i, at, left)
            guesses += guessed
        if one.op == "EXIT":
            i = paths.part(taken, i, None)
        elif one.op == "RET":
            i = returns.pop()
        elif one.op == "CALL":
            if paths.part(taken, -1, 0) == 0:
                returns.append(i)
                i = at[_target(one)]
        elif one.op == "BRA":
            i = paths.part(taken, i, at.get(_target(one), len(code)))
        elif one.op in GLOBAL or one.op in SHARED:
            memory.run(one, machine, taken)
        elif one.op in COPIES:
            raise ValueError(f"the walk through a kernel does not know what the copy engine moves: at {one}")
        else:
            machine.run(one, taken)
    return Walk(counts, guesses, flights.found, memory.read, memory.written, memory.blind, memory.cycles)


class _Flights:
    """The asynchronous products that no instruction has waited for yet, in groups, and what has run since.

    Attributes:
        found: as `Walk.flights`.
    """

    def __init__(self) -> None:
        self.found = Counter[Flight]()
        self._groups: list[Counter[str]] = []
        self._open, self._others = Counter[str](), Counter[str]()

    def meet(self, one: Instruction, name: str, share: float) -> None:
        """Note an instruction; `name` and `share` are what `Walk.counts` has of it."""
        if one.op == "HGMMA":
            self._open[name] += share
            if "gsb0" in one.operands:
                self._groups.append(self._open)
                self._open = Counter()
        elif one.name == "WARPGROUP.DEPBAR.LE":
            done = len(self._groups) - int(one.operands[1], 0)  # the latest ones may go on
            if done > 0:
                products = sum(self._groups[:done], Counter[str]())
                self.found[_sorted(products), _sorted(self._others)] += 1
                self._groups, self._others = self._groups[done:], Counter()
        elif self._groups or self._open:
            self._others[name] += share


def _sorted(counts: Mapping[str, float]) -> Counted:
    return tuple(sorted(counts.items()))


class _Paths:
    """The threads that wait elsewhere in the code while others go on.

    Attributes:
        share: of the block's warps, those that go on.
    """

    def __init__(self, machine: Machine, threads: int) -> None:
        self._machine, self._threads = machine, threads
        self._waiting: dict[int, np.ndarray] = {}
        self.share = 1.0

    def meet(self, i: int) -> int:
        """The place where to go on, from i or wherever threads wait before it."""
        if self._waiting and min(self._waiting) <= i:
            self._wait(i, self._machine.active)
            i = min(self._waiting)
            self._go(self._waiting.pop(i))
        return i

    def part(self, taken: Any, here: int, there: int | None) -> int | None:
        """The place where to go on after a jump that some threads take; `there` is None for the end."""
        if isinstance(taken, bool):
            return self._next() if taken and there is None else there if taken else here
        active = np.full(self._threads, True) if self._machine.active is None else self._machine.active
        jump, stay = active & taken, active & ~taken
        if not stay.any() or not jump.any():
            return self.part(bool(jump.any()), here, there)
        if there is not None:
            self._wait(there, jump)
        self._go(stay)
        return here

    def _next(self) -> int | None:
        """Where those wait that go on when others have reached the end."""
        if not self._waiting:
            return None
        i = min(self._waiting)
        self._go(self._waiting.pop(i))
        return i

    def _wait(self, i: int, lanes: np.ndarray | None) -> None:
        assert lanes is not None
        self._waiting[i] = self._waiting[i] | lanes if i in self._waiting else lanes

    def _go(self, lanes: np.ndarray) -> None:
        self._machine.active = None if lanes.all() else lanes
        self.share = float(lanes.reshape(-1, 32).any(1).mean())


def mean(walks: list[Walk]) -> Walk:
    """What blocks executed and moved on average."""
    names = dict.fromkeys(name for walked in walks for name in walked.counts)
    counts = {name: sum(walked.counts.get(name, 0) for walked in walks) / len(walks) for name in names}
    moved = (
        sum(getattr(walked, name) for walked in walks) / len(walks) for name in ("read", "written", "blind", "cycles")
    )
    flights = Counter[Flight]()
    for walked in walks:
        for flight, times in walked.flights.items():
            flights[flight] += times / len(walks)
    return Walk(counts, max(walked.guessed for walked in walks), flights, *moved)


def _guess(code: list[Instruction], i: int, places: dict[int, int], left: set[int]) -> tuple[bool, bool]:
    """Whether to take a jump that depends on data, instruction i - 1, and whether that ends a loop.

    Loops run once: a jump out of one is taken when the larger part of the loop has run, at the first visit if it stands
    at the loop's end, else at the second.
    """
    one = code[i - 1]
    target = len(code) if one.op == "EXIT" else places.get(_target(one), len(code))
    if target < i:
        return False, not any(other.op == "SYNCS" for other in code[target:i])  # that one only waits for data
    ahead = target if one.op != "EXIT" else next((j + 1 for j in range(i, len(code)) if code[j].op == "BRA"), i)
    for j in range(i, ahead):
        top = places.get(_target(code[j]), len(code)) if code[j].op == "BRA" and not code[j].guard else len(code)
        if top < i:
            leaves = one.at in left or i - top > j - i
            left.add(one.at)
            return leaves, leaves
    return one.op == "BRA" and any(other.op == "CALL" for other in code[i:target]), False


def _target(one: Instruction) -> int:
    return int(one.operands[-1].strip("`()").split()[-1], 16)


def inner_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The instructions of each loop that contains no other one."""
    places = {instruction.at: i for i, instruction in enumerate(code)}
    spans = [(places[_target(one)], i + 1) for i, one in enumerate(code) if one.op == "BRA" and _target(one) < one.at]
    inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]
    return [code[a:b] for a, b in inner]


def multiply_adds(code: list[Instruction]) -> int:
    """The multiplications with addition, in float32, among instructions; FFMA2 makes two a lane."""
    return sum({"FFMA": 1, "FFMA2": 2}.get(one.op, 0) for one in code)
