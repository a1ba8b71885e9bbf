"""The instructions that a warp executes, by walking through a kernel's machine code (SASS) with its real arguments.

The walk follows one warp of one block: it computes whole numbers and predicates that depend on the kernel's arguments,
the block's index and thread 0 alone, and leaves all others unknown. So loops run as often as the arguments say, however
the compiler has unrolled, peeled or pipelined them. Where a branch depends on data, the walk falls through, except
where the code it would fall into calls a subroutine (the rare path of a division or a square root); a loop that depends
on data runs once, and is counted in `Walk.guessed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Where an architecture's kernels find their first argument in constant memory.
_ARGUMENTS = {"sm_80": 0x160, "sm_86": 0x160, "sm_89": 0x160, "sm_90": 0x210, "sm_100": 0x380, "sm_120": 0x380}
# Where kernels for sm_80 to sm_90 find the number of blocks on the grid's first axis.
BLOCKS = 0xC
_SIZES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "bf16": 2, "fp16": 2, "i64": 8, "u64": 8, "fp64": 8}
# A kernel of this project executes far fewer; a walk that is longer has misread a loop.
MOST = 200_000

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);")
_COMPARE = {
    "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b, "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b, "GE": lambda a, b: a >= b,
}  # fmt: skip


class Instruction(NamedTuple):
    """One instruction: its address, the predicate that guards it, its name with suffixes, its operands."""

    at: int
    guard: str
    name: str
    operands: tuple[str, ...]

    @property
    def op(self) -> str:
        return self.name.partition(".")[0]


@dataclass
class Walk:
    """What a warp executed.

    Attributes:
        counts: instructions by name with suffixes and, for matrix instructions, by the kind of their first operand
            ("HGMMA.64x128x16.F32.BF16 memory" where it is in shared memory); "LDGSTS... off" loads nothing.
        guessed: loops that depend on data, and were taken to run once.
    """

    counts: Mapping[str, float]
    guessed: int = 0

    def total(self, *ops: str) -> float:
        """Instructions of these names, without suffixes; all, without any."""
        return sum(n for name, n in self.counts.items() if not ops or re.split(r"[. ]", name)[0] in ops)


# Loads from global memory; the last two bring whole tiles or rows by the copy engine.
LOADS = ("LDG", "LDGSTS", "UTMALDG", "UBLKCP")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


def lane_bytes(name: str) -> int:
    """Bytes that a lane moves, by suffixes as in "LDG.E.LTC128B.128", whose first 128 is a hint to the cache."""
    op, *suffixes = name.split(" ")[0].split(".")
    if op in LOADS[2:]:
        return 32
    if op in ("LDSM", "STSM"):  # so many matrices of 8 x 8, of which a lane has four bytes each
        return 4 * int(suffixes[-1]) if suffixes[-1].isdigit() else 4
    return next((_WIDTHS[part] for part in reversed(suffixes) if part in _WIDTHS), 4)


def parse(sass: str) -> list[Instruction]:
    """The instructions of a kernel from the text of `cuobjdump -sass`."""
    found = []
    for at, guard, name, operands in _LINE.findall(sass):
        parts = tuple(part.strip() for part in operands.split(",")) if operands.strip() else ()
        found.append(Instruction(int(at, 16), guard, name, parts))
    return found


def constants(arch: str, signature: dict[str, str], values: dict[str, int]) -> dict[int, int]:
    """Constant memory, in 32-bit words by address: the kernel's arguments that are whole numbers."""
    at = _ARGUMENTS[arch]
    words = {}
    for name, kind in signature.items():
        if kind == "constexpr":
            continue
        size = 8 if kind.startswith("*") else _SIZES.get(kind, 4)
        at = -(-at // size) * size
        if kind.startswith(("i", "u")) and name in values:
            words[at] = values[name] & 0xFFFFFFFF
            if size == 8:
                words[at + 4] = values[name] >> 32 & 0xFFFFFFFF
        at += size
    return words


def walk(code: list[Instruction], words: dict[int, int], block: int) -> Walk:
    """Walk through a kernel as warp 0 of a block.

    Args:
        code: the kernel's.
        words: constant memory, as from `constants`.
        block: index of the block on the grid's first axis.

    Raises:
        ValueError: the walk does not end.
    """
    machine, counts, guesses, steps = _Machine(words, block), Counter[str](), 0, 0
    places = {instruction.at: i for i, instruction in enumerate(code)}
    returns: list[int] = []
    left: set[int] = set()
    i = 0
    while i < len(code):
        one = code[i]
        i += 1
        if one.op == "NOP":
            continue
        kind = f" {'memory' if 'gdesc' in one.operands[1] else 'registers'}" if one.op == "HGMMA" else ""
        if one.op == "LDGSTS" and False in (machine.guard(one), machine.flag(one.operands[-1])):
            kind = " off"  # as ahead of a loop's end
        counts[one.name + kind] += 1
        steps += 1
        if steps > MOST:
            raise ValueError(f"the walk through a kernel does not end: at {one}")
        taken = machine.guard(one)
        if taken is None and one.op in ("BRA", "EXIT", "CALL"):
            taken, guessed = _guess(code, i, places, left)
            guesses += guessed
        if one.op == "EXIT" and taken:
            break
        if one.op == "RET":
            i = returns.pop()
        elif one.op == "CALL":
            if taken:
                returns.append(i)
                i = places[_target(one)]
        elif one.op == "BRA":
            if taken and one.name not in ("BRA.DIV", "BRA.CONV"):  # these two only where lanes diverge
                i = places.get(_target(one), len(code))
        else:
            machine.run(one, taken)
    return Walk(counts, guesses)


def mean(walks: list[Walk]) -> Walk:
    """What a warp executed on average."""
    names = dict.fromkeys(name for walked in walks for name in walked.counts)
    counts = {name: sum(walked.counts.get(name, 0) for walked in walks) / len(walks) for name in names}
    return Walk(counts, max(walked.guessed for walked in walks))


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


class _Machine:
    """The registers and predicates of thread 0 that are known; None: unknown."""

    def __init__(self, words: dict[int, int], block: int) -> None:
        self._words = words
        self._special = {"SR_CTAID.X": block, "SR_TID.X": 0, "SR_CTAID.Y": 0, "SR_CTAID.Z": 0, "SRZ": 0}
        self._values: dict[str, int | None] = {}
        self._flags: dict[str, bool | None] = {}

    def guard(self, one: Instruction) -> bool | None:
        """Whether an instruction's predicates let it act."""
        found = self.flag(one.guard) if one.guard else True
        if one.op == "BRA" and len(one.operands) > 1:  # as in "BRA.U UP0, 0x580"
            second = self.flag(one.operands[0])
            found = False if False in (found, second) else None if None in (found, second) else True
        return found

    def run(self, one: Instruction, taken: bool | None) -> None:
        """Change the registers as the instruction does."""
        if taken is False or not one.operands:
            return
        before_values, before_flags = dict(self._values), dict(self._flags)
        try:
            known = self._known(one)
        except (KeyError, IndexError, ValueError, TypeError):
            known = False
        if not known:
            self._values, self._flags = before_values, before_flags
            self._forget(one)
        elif taken is None:  # some lanes may have kept what they had
            self._forget(one)

    def _forget(self, one: Instruction) -> None:
        """All that the instruction may write is unknown from here on."""
        wide = _written(one.name)
        for operand in one.operands[:2]:
            name = operand.split(".")[0].lstrip("!-~|")
            if re.fullmatch(r"U?P\d|U?PT", name):
                self._flags[name] = None
        name = one.operands[0].split(".")[0]
        if found := re.fullmatch(r"(U?R)(\d+)", name):
            for offset in range(wide):
                self._values[f"{found[1]}{int(found[2]) + offset}"] = None

    def flag(self, operand: str) -> bool | None:
        """A predicate; None: unknown."""
        negative, name = operand.startswith("!"), operand.lstrip("!")
        value = True if name in ("PT", "UPT") else self._flags.get(name)
        return None if value is None else value != negative

    def _value(self, operand: str) -> int:
        """An operand's 32 bits; raises TypeError where they are unknown."""
        negative, inverted = operand.startswith("-"), operand.startswith("~")
        name = operand.lstrip("-~").removesuffix(".reuse")
        if name in ("RZ", "URZ"):
            value: int | None = 0
        elif re.fullmatch(r"U?R\d+", name):
            value = self._values.get(name)
        elif found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", name):
            value = self._words.get(int(found[1], 16))
        else:
            value = int(name, 0)
        if value is None:
            raise TypeError(operand)
        return (-value if negative else ~value if inverted else value) & 0xFFFFFFFF

    def _set(self, operand: str, value: int) -> bool:
        name = operand.split(".")[0]
        if name not in ("RZ", "URZ"):
            self._values[name] = value & 0xFFFFFFFF
        return True

    def _set_words(self, operand: str, words: list[int | None]) -> bool:
        found = re.fullmatch(r"(U?R)(\d+)", operand.split(".")[0])
        assert found
        for offset, word in enumerate(words):
            self._values[f"{found[1]}{int(found[2]) + offset}"] = word
        return True

    def _pair(self, operand: str) -> int:
        """64 bits: a register and the next one, or an immediate number."""
        found = re.fullmatch(r"(U?R)(\d+)", operand.removesuffix(".reuse"))
        if found is None:
            return self._value(operand)
        return self._value(operand) | self._value(f"{found[1]}{int(found[2]) + 1}") << 32

    def _known(self, one: Instruction) -> bool:
        """Carry out an instruction; False, or an error, where it or what it reads is unknown."""
        op, name, given = one.op.removeprefix("U"), one.name, list(one.operands)
        value = self._value
        if op in ("S2R", "S2UR"):
            return self._set(given[0], self._special[given[1]])
        if op == "CS2R":
            return self._set_words(given[0], [self._special[given[1]], 0])
        if op in ("MOV", "R2UR") or name.startswith("IMAD.MOV"):
            return self._set(given[0], value(given[-1] if op != "R2UR" else given[1]))
        if op == "LDC":
            if ".64" not in name:
                return self._set(given[0], value(given[1]))
            found = re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", given[1])
            if found is None:
                return False
            low, high = (self._words.get(int(found[1], 16) + offset) for offset in (0, 4))
            return self._set_words(given[0], [low, high])
        if op == "HFMA2" and given[1:3] == ["-RZ", "RZ"]:  # how the compiler writes some constants
            halves = [int(np.float16(float(part)).view(np.uint16)) for part in given[3:5]]
            return self._set(given[0], halves[0] << 16 | halves[1])
        if op == "LEA" and ".HI" in name and ".X" not in name:
            a, b, c = (value(part) for part in given[1:4])
            return self._set(given[0], b + ((c << 32 | a) >> 32 - int(given[4], 0)))
        if op == "VIADD":
            return self._set(given[0], value(given[1]) + value(given[2]))
        if op in ("IADD3", "IMAD"):
            return self._sum(op, name, given)
        if op == "ISETP":
            return self._compare(name, given)
        if op == "LOP3" and given[-1] in ("!PT", "!UPT"):
            a, b, c = (value(part) for part in given[-5:-2])
            return given[0][0] != "P" and self._set(given[0], _lut(a, b, c, int(given[-2], 0), 0xFFFFFFFF))
        if op == "PLOP3":
            a, b, c = (self.flag(part) for part in given[2:5])
            if a is None or b is None or c is None:
                return False
            self._flags[given[0]] = bool(_lut(a, b, c, int(given[5], 0), 1))
            self._flags.setdefault(given[1], None)
            return True
        if op == "SHF":
            return self._shift(name, given)
        if op == "SEL":
            flag = self.flag(given[3])
            return flag is not None and self._set(given[0], value(given[1] if flag else given[2]))
        if op in ("IMNMX", "VIMNMX"):
            flag, (a, b) = self.flag(given[-1]), (_signed(value(part)) for part in given[1:3])
            return flag is not None and self._set(given[0], min(a, b) if flag else max(a, b))
        return False

    def _sum(self, op: str, name: str, given: list[str]) -> bool:
        if ".HI" in name:  # as in a division by a constant
            if op != "IMAD" or given[3] not in ("RZ", "URZ"):
                return False
            a, b = (self._value(part) if ".U32" in name else _signed(self._value(part)) for part in given[1:3])
            return self._set(given[0], a * b >> 32)
        if "WIDE" in name:
            a, b = (self._value(part) for part in given[1:3])
            total = (a * b if ".U32" in name else _signed(a) * _signed(b)) + self._pair(given[3])
            return self._set_words(given[0], [total & 0xFFFFFFFF, total >> 32 & 0xFFFFFFFF])
        target, rest = given[0], given[1:]
        carries = []
        while re.fullmatch(r"U?P[\dT]", rest[0]):
            carries.append(rest.pop(0))
        a, b, c = (self._value(part) for part in rest[:3])
        total = a * b + c if op == "IMAD" else a + b + c
        if ".SHL" in name:
            total = a * b
        for carry in rest[3:]:
            flag = self.flag(carry)
            if flag is None:
                return False
            total += flag
        for carry in carries:
            self._flags[carry] = total > 0xFFFFFFFF
        return self._set(target, total)

    def _compare(self, name: str, given: list[str]) -> bool:
        how, unsigned = name.split(".")[1], ".U32" in name
        a, b = (self._value(part) for part in given[2:4])
        if not unsigned:
            a, b = _signed(a), _signed(b)
        if ".EX" in name:  # the upper halves of 64 bits; the last operand is what the lower ones gave
            lower = self.flag(given[5])
            if lower is None and a == b:
                return False
            found = lower if a == b else _COMPARE[how](a, b)
        else:
            found = _COMPARE[how](a, b)
        joined = self.flag(given[4])
        if joined is None:
            return False
        both = {"AND": lambda x, y: x and y, "OR": lambda x, y: x or y}["OR" if ".OR" in name else "AND"]
        for operand, result in ((given[0], found), (given[1], not found)):
            if operand not in ("PT", "UPT"):
                self._flags[operand] = bool(both(result, joined))
        return True

    def _shift(self, name: str, given: list[str]) -> bool:
        amount = self._value(given[2])
        if ".L.U32" in name and ".HI" not in name:
            return self._set(given[0], self._value(given[1]) << amount)
        if ".R." in name and given[1] in ("RZ", "URZ"):
            value = self._value(given[3])
            return self._set(given[0], (_signed(value) if ".S32" in name else value) >> amount)
        return False


def _written(name: str) -> int:
    """Registers that an instruction writes."""
    if name.startswith("HGMMA"):
        return int(name.split("x")[1]) // 2
    if ".128" in name or "HMMA" in name or name.endswith("M88.4"):
        return 4
    return 2 if any(part in name for part in (".64", "WIDE", "CS2R", "M88.2", "HMMA2", "FFMA2")) else 1


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _lut(a: int, b: int, c: int, table: int, mask: int) -> int:
    """The bits that a table of eight gives for each bit of three numbers."""
    found = 0
    for row in range(8):
        if table >> row & 1:
            found |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return found & mask
