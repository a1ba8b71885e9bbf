"""What a block's loads and stores move: to and from the second-level cache, and through shared memory.

Global memory moves in sectors of 32 bytes. Lanes of a warp that ask for one sector get it at once, and what the block
has loaded before comes from the first-level cache while that holds it (the least recently used goes first); a block
finds it empty. Loads that pass it by (LDGSTS.BYPASS) and stores move each warp's sectors. Shared memory has 32 banks of
four bytes: an access takes as many cycles as the busiest bank has distinct words, and no fewer than its registers at
128 bytes a cycle.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from bench.audit.machine import Instruction, Machine

SECTOR, PATH = 32, 128
# Each pointer among a kernel's arguments points to memory of its own, so far apart.
APART = 36
# Copies by the copy engine, of whole tiles or rows; loads from global memory.
COPIES = ("UTMALDG", "UBLKCP")
LOADS = ("LDG", "LDGSTS", *COPIES)
GLOBAL = {"LDG", "LDGSTS", "STG"}
SHARED = {"LDS", "STS", "LDSM", "STSM"}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


def lane_bytes(name: str) -> int:
    """Bytes that a lane moves, by suffixes as in "LDG.E.LTC128B.128", whose first 128 is a hint to the cache."""
    op, *suffixes = name.split(" ")[0].split(".")
    if op in COPIES:
        return 32
    if op in ("LDSM", "STSM"):  # so many matrices of 8 x 8, of which a lane has four bytes each
        return 4 * int(suffixes[-1]) if suffixes[-1].isdigit() else 4
    return next((_WIDTHS[part] for part in reversed(suffixes) if part in _WIDTHS), 4)


class Memory:
    """A block's view of memory.

    Args:
        data: the content of buffers that is known, (n,) uint32, by the address of the first.
        capacity: bytes that the block has of the first-level cache.
        threads: of the block.

    Attributes:
        read, written: bytes from and to the second-level cache.
        blind: those of them whose addresses are unknown, taken to be distinct.
        cycles: of the data path that registers, shared memory and the first-level cache have in common.
    """

    def __init__(self, data: Mapping[int, np.ndarray], capacity: int, threads: int) -> None:
        self.read = self.written = self.blind = self.cycles = 0
        self._data, self._sectors, self._threads = data, max(capacity // SECTOR, 1), threads
        self._held: OrderedDict[int, None] = OrderedDict()
        self._warps = np.arange(threads) // 32
        self._words, self._known = np.zeros(1 << 16, np.uint64), np.zeros(1 << 16, bool)

    def run(self, one: Instruction, machine: Machine, taken: Any) -> None:
        """Carry out a load or a store for the threads that are active and for which it is `taken`; None: unknown."""
        lanes = np.full(self._threads, True if taken is None else taken)
        if machine.active is not None:
            lanes &= machine.active
        if one.op == "LDGSTS" and re.fullmatch(r"!?U?P[\dT]", one.operands[-1]):
            flag = machine.flag(one.operands[-1])
            lanes &= True if flag is None else flag
        if not lanes.any():
            return
        size = lane_bytes(one.name)
        warps = int(lanes.reshape(-1, 32).any(1).sum())
        self.cycles += max(warps * 32 * size // PATH, self._conflicts(one, machine, lanes, size))
        words = None
        if one.op in GLOBAL:
            at = self._addresses(machine, _places(one)[-1])
            self._count(one, at, lanes, size, warps)
            words = self._fetch(at, lanes, size) if one.op != "STG" else None
        if one.op in SHARED or one.op == "LDGSTS":
            words = self._share(one, machine, lanes, size, words, taken)
        if one.op in ("LDG", "LDS", "LDSM"):
            if words is None or taken is None:
                machine.forget(one)
            else:
                machine.put(one.operands[0], words, taken)

    def _addresses(self, machine: Machine, operand: str) -> np.ndarray | None:
        at = machine.address(operand)
        return None if at is None else np.broadcast_to(np.asarray(at, np.uint64), self._threads).astype(np.int64)

    def _count(self, one: Instruction, at: np.ndarray | None, lanes: np.ndarray, size: int, warps: int) -> None:
        """Add what moves between the multiprocessor and the second-level cache."""
        if at is None:
            moved = warps * 32 * size
            self.blind += moved
        elif one.op == "STG" or ".BYPASS" in one.name:
            moved = len(_distinct(self._warps[lanes] << APART + 8 | at[lanes] // SECTOR)) * SECTOR
        else:
            moved = 0
            for sector in _distinct(at[lanes] // SECTOR).tolist():
                if sector in self._held:
                    self._held.move_to_end(sector)
                    continue
                self._held[sector] = None
                moved += SECTOR
                if len(self._held) > self._sectors:
                    self._held.popitem(last=False)
        if one.op == "STG":
            self.written += moved
        else:
            self.read += moved

    def _fetch(self, at: np.ndarray | None, lanes: np.ndarray, size: int) -> list[np.ndarray] | None:
        """What is at addresses of global memory, by word; None: unknown."""
        if at is None or size < 4:
            return None
        base = int(at[lanes][0]) >> APART << APART
        buffer, place = self._data.get(base), (at - base) // 4
        if buffer is None or place[lanes].min() < 0 or place[lanes].max() + size // 4 > len(buffer):
            return None
        place = np.where(lanes, place, 0)
        return [buffer[np.minimum(place + i, len(buffer) - 1)].astype(np.uint64) for i in range(size // 4)]

    def _conflicts(self, one: Instruction, machine: Machine, lanes: np.ndarray, size: int) -> int:
        """Cycles that the banks of shared memory need."""
        if one.op not in SHARED or (at := self._addresses(machine, _places(one)[0])) is None:
            return 0
        first, groups, count = at // 4, self._warps, max(size // 4, 1)
        if one.op in ("LDSM", "STSM"):  # eight lanes have the addresses of a matrix's rows, of 16 bytes
            lane = np.arange(self._threads) % 32
            lanes, groups, count = lanes & (lane < 2 * size), groups * 4 + lane // 8, 4
        # A row of all banks further on, everything is the same: many instructions have the same pattern.
        base = int(first[0]) // 32 * 32
        return _busiest((first - base)[lanes].tobytes(), groups[lanes].tobytes(), count)

    def _share(
        self, one: Instruction, machine: Machine, lanes: np.ndarray, size: int, words: Any, taken: Any
    ) -> list[np.ndarray] | None:
        """Load from shared memory or store to it, as far as it is known."""
        at = self._addresses(machine, _places(one)[0])
        loads = one.op in ("LDS", "LDSM")
        if at is None or at[lanes].max() // 4 + 4 > len(self._words):
            if not loads:
                self._known[:] = False
            return None
        place = np.where(lanes, at // 4, 0)
        if one.op == "LDSM" or (loads and size < 4):
            return None
        if loads:
            spots = [place + i for i in range(size // 4)]
            return [self._words[s] for s in spots] if all(self._known[s[lanes]].all() for s in spots) else None
        if one.op == "STS" and size >= 4 and taken is not None:
            words = machine.words(one.operands[1], size // 4)
        for i in range(4 if one.op == "STSM" else max(size // 4, 1)):
            spots = place[lanes] + i
            self._known[spots] = words is not None and words[i] is not None
            if words is not None and words[i] is not None:
                self._words[spots] = np.broadcast_to(np.asarray(words[i], np.uint64), self._threads)[lanes]
        return None


@cache
def _busiest(first: bytes, groups: bytes, count: int) -> int:
    """The words of the busiest bank, over groups of lanes in sum; a lane has `count` words from its first on."""
    words = (np.frombuffer(first, np.int64)[:, None] + np.arange(count)).ravel()
    of = np.repeat(np.frombuffer(groups, np.int64), count)
    distinct = _distinct(of << 32 | words - words.min() + words.min() % 32)
    busy = np.bincount((distinct >> 32) * 32 + distinct % 32, minlength=32 * (int(of.max()) + 1))
    return int(busy.reshape(-1, 32).max(1).sum())


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted values without repetitions; `np.unique` takes five times as long for so few."""
    values = np.sort(values)
    return values[np.flatnonzero(np.append(True, values[1:] != values[:-1]))]


@cache
def _places(one: Instruction) -> list[str]:
    """The operands that are addresses; in LDGSTS shared memory's comes first."""
    return [operand for operand in one.operands if operand.endswith("]") and not operand.startswith("c[")]
