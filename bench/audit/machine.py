"""The registers and predicates of a block's threads, as its machine code (SASS) computes them.

A value is an integer that all threads share, an array of a number for each thread, or None: unknown. So are predicates.
Whole numbers are followed, since addresses, loops and masks are made of them; floating-point numbers are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bench.audit import bits
from bench.audit.bits import LONG, WORD

# Where kernels for sm_80 to sm_90 find the number of blocks on the grid's first axis.
BLOCKS = 0xC
_COMPARE = {
    "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b, "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b, "GE": lambda a, b: a >= b,
}  # fmt: skip
# Instructions that compute on whole numbers; a "U" before the name means that all threads share the operands.
_FOLLOWED = {
    "S2R", "S2UR", "CS2R", "MOV", "R2UR", "LDC", "HFMA2", "LEA", "VIADD", "IADD3", "IMAD", "ISETP", "LOP3", "PLOP3",
    "SHF", "SEL", "IMNMX", "VIMNMX", "VIADDMNMX", "SGXT", "PRMT", "SHFL", "P2R", "VOTE",
}  # fmt: skip


class Instruction(NamedTuple):
    """One instruction: its address, the predicate that guards it, its name without and with suffixes, its operands."""

    at: int
    guard: str
    op: str
    name: str
    operands: tuple[str, ...]


class Unknown(Exception):
    """An operand whose value is unknown."""


class Machine:
    """Registers and predicates.

    Args:
        words: constant memory, as from `sass.constants`.
        block: index of the block, counted along the grid's first axis, whose length is a word, and then its second.
        threads: of the block.

    Attributes:
        active: the threads that execute what comes next; None: all.
    """

    def __init__(self, words: Mapping[int, int], block: int, threads: int) -> None:
        self._words, self._threads = words, np.arange(threads, dtype=np.uint64)
        second, first = divmod(block, words.get(BLOCKS, block + 1))
        self._special: dict[str, Any] = {"SR_CTAID.X": first, "SR_CTAID.Y": second, "SR_TID.X": self._threads}
        self._values: dict[str, Any] = {}
        self._flags: dict[str, Any] = {}
        self.active: np.ndarray | None = None
        self._mask: Any = True

    def guard(self, one: Instruction) -> Any:
        """Whether an instruction's predicates let it act: for all threads, for each, or None."""
        found = self.flag(one.guard) if one.guard else True
        if one.op == "BRA" and len(one.operands) > 1:  # as in "BRA.U UP0, 0x580"
            found = bits.both(found, self.flag(one.operands[0]))
        return found

    def run(self, one: Instruction, taken: Any) -> None:
        """Change the registers as the instruction does where it is `taken`."""
        if taken is False or not one.operands:
            return
        self._mask = True if taken is None else taken
        if self.active is not None:
            self._mask = self.active & self._mask
        op = one.op if one.op in _FOLLOWED else one.op.strip("U")  # as in UIADD3 and VOTEU
        try:
            known = taken is not None and op in _FOLLOWED and self._known(op, one.name, one.operands)
        except Unknown:
            known = False
        if not known:
            self.forget(one)

    def forget(self, one: Instruction) -> None:
        """All that the instruction may write is unknown from here on."""
        registers, flags = bits.targets(one.name, one.operands)
        self._values.update(dict.fromkeys(registers))
        self._flags.update(dict.fromkeys(flags))

    def flag(self, operand: str) -> Any:
        """A predicate; None: unknown."""
        negative, name = operand[0] == "!", operand.lstrip("!")
        value = True if name in ("PT", "UPT") else self._flags.get(name)
        return bits.inverted(value) if negative else value

    def value(self, operand: str) -> Any:
        """An operand's 32 bits; raises Unknown where they are."""
        kind, key, sign = bits.operand(operand)
        value: Any = self._values.get(key) if kind == "register" else self._words.get(key) if kind == "word" else key
        if value is None:
            raise Unknown(operand)
        return value if sign == "" else bits.word(WORD + 1 - value if sign == "-" else value ^ WORD)

    def pair(self, operand: str) -> Any:
        """64 bits: a register and the next one, or an immediate number."""
        low, high = bits.halves(operand)
        return self.value(low) if high is None else self.value(low) | self.value(high) << 32

    def address(self, operand: str) -> Any:
        """The address in an operand as "desc[UR4][R2.64+0x10]" or "[R3+UR5]"; None: unknown."""
        registers, total = bits.address(operand)
        try:
            for name, wide in registers:
                total = total + (self.pair(name) if wide else self.value(name))
        except Unknown:
            return None
        return total & LONG

    def words(self, operand: str, count: int) -> list[Any]:
        """Consecutive registers; None: unknown."""
        names = bits.registers(operand, count)
        return [self._values.get(name) for name in names] or [0] * count

    def put(self, operand: str, words: list[Any], mask: Any = True) -> None:
        """Write consecutive registers where an instruction is taken."""
        self._mask = mask if self.active is None else self.active & mask
        self._set_words(operand, words)

    def _set_words(self, operand: str, words: list[Any]) -> bool:
        for name, word in zip(bits.registers(operand, len(words)), words, strict=False):
            self._values[name] = self._merged(word, self._values.get(name))
        return True

    def _set(self, operand: str, value: Any) -> bool:
        name = operand.split(".")[0]
        if name not in ("RZ", "URZ"):
            self._values[name] = self._merged(bits.word(value), self._values.get(name))
        return True

    def _set_flag(self, name: str, value: Any) -> None:
        if name not in ("PT", "UPT"):
            self._flags[name] = self._merged(value, self._flags.get(name))

    def _merged(self, new: Any, old: Any) -> Any:
        """What a register holds once the threads of `_mask` have written to it.

        Over what is unknown they write for all: an address is used under the predicate under which it was computed.
        """
        if self._mask is True or new is None:
            return new
        if self._mask is False or not self._mask.any():
            return old
        if old is None:
            return new
        found = np.where(self._mask, new, old)
        return found.astype(np.uint64) if found.dtype == np.int64 else found

    def _known(self, op: str, name: str, given: tuple[str, ...]) -> bool:
        """Carry out an instruction; False or Unknown where its result is unknown."""
        value = self.value
        if op in ("S2R", "S2UR"):
            return self._set(given[0], self._special.get(given[1], 0))
        if op == "CS2R":
            return self._set_words(given[0], [self._special.get(given[1], 0), 0])
        if op in ("MOV", "R2UR") or name.startswith("IMAD.MOV"):
            return self._set(given[0], value(given[1] if op == "R2UR" else given[-1]))
        if op == "LDC":
            if ".64" not in name:
                return self._set(given[0], value(given[1]))
            kind, at, _ = bits.operand(given[1])
            return kind == "word" and self._set_words(given[0], [self._words.get(at), self._words.get(at + 4)])
        if op == "HFMA2":  # how the compiler writes some constants
            if given[1:3] != ("-RZ", "RZ"):
                return False
            halves = [int(np.float16(float(part)).view(np.uint16)) for part in given[3:5]]
            return self._set(given[0], halves[0] << 16 | halves[1])
        return getattr(self, f"_{op.lower()}")(name, given)

    def _lea(self, name: str, given: tuple[str, ...]) -> bool:
        a, rest = given[1], list(given[2:])
        carry = None
        if re.fullmatch(r"U?P[\dT]", a):
            carry, a = a, rest.pop(0)
        low, b = self.value(a), self.value(rest[0])
        if ".HI" not in name:
            total = bits.word(low << int(rest[1], 0)) + b
            if carry:
                self._set_flag(carry, total > WORD)
            return self._set(given[0], total)
        if ".SX32" in name:
            high, shift, rest = bits.word(bits.signed(low) >> 31), int(rest[1], 0), rest[2:]
        else:
            high, shift, rest = self.value(rest[1]), int(rest[2], 0), rest[3:]
        total = b + ((high << 32 | low) << shift >> 32 if shift else high)
        return self._set(given[0], total + (self._carry(rest[0]) if ".X" in name else 0))

    def _carry(self, operand: str) -> Any:
        flag = self.flag(operand)
        if flag is None:
            raise Unknown(operand)
        return flag * 1 if isinstance(flag, bool) else flag.astype(np.uint64)

    def _viadd(self, name: str, given: tuple[str, ...]) -> bool:
        return self._set(given[0], self.value(given[1]) + self.value(given[2]))

    def _iadd3(self, name: str, given: tuple[str, ...]) -> bool:
        rest = list(given[1:])
        carries = []
        while re.fullmatch(r"U?P[\dT]", rest[0]):
            carries.append(rest.pop(0))
        if ".64" in name:
            a, b, c = (bits.negated(self.pair(p.lstrip("-")), p) if p[-1] != "Z" else 0 for p in rest[:3])
            total = a + b + c & LONG
            return self._set_words(given[0], [total & WORD, total >> 32])
        a, b, c = (self.value(part) for part in rest[:3])
        total = a + b + c
        for carry in rest[3:]:
            total = total + self._carry(carry)
        for i, carry in enumerate(carries):
            self._set_flag(carry, total > (i + 1) * (WORD + 1) - 1)
        return self._set(given[0], total)

    def _imad(self, name: str, given: tuple[str, ...]) -> bool:
        a, b = self.value(given[1]), self.value(given[2])
        wide = ".WIDE" in name or ".HI" in name
        if wide and ".U32" not in name:
            a, b = bits.signed(a), bits.signed(b)
        total = bits.long(a * b)
        if ".SHL" in name:
            return self._set(given[0], total)
        if wide:
            total = bits.long(total + self.pair(given[3]))
            return self._set(given[0], total >> 32) if ".HI" in name else self._set_words(
                given[0], [total & WORD, total >> 32]
            )  # fmt: skip
        total = bits.long(total + self.value(given[3]))
        for carry in given[4:]:
            total = total + self._carry(carry)
        return self._set(given[0], total)

    def _isetp(self, name: str, given: tuple[str, ...]) -> bool:
        how = _COMPARE[name.split(".")[1]]
        a, b = self.value(given[2]), self.value(given[3])
        if ".U32" not in name:
            a, b = bits.signed(a), bits.signed(b)
        found = how(a, b)
        if ".EX" in name:  # the upper halves of 64 bits; the last operand is what the lower ones gave
            equal, lower = a == b, self.flag(given[5])
            if lower is None and np.any(equal):
                return False
            if lower is not None:
                found = np.where(equal, lower, found) if bits.many(equal, lower, found) else lower if equal else found
        for operand, result in ((given[0], found), (given[1], bits.inverted(found))):
            joined = self.flag(given[4])
            self._set_flag(operand, (bits.either if ".OR" in name else bits.both)(result, joined))
        return True

    def _lop3(self, name: str, given: tuple[str, ...]) -> bool:
        if given[-1] not in ("!PT", "!UPT"):
            return False
        a, b, c = (self.value(part) for part in given[-5:-2])
        result = bits.lut(a, b, c, int(given[-2], 0), WORD)
        if re.fullmatch(r"U?P\d", given[0]):
            self._set_flag(given[0], result != 0)
        return self._set(given[-6], result)

    def _plop3(self, name: str, given: tuple[str, ...]) -> bool:
        flags = [self.flag(part) for part in given[2:5]]
        if any(flag is None for flag in flags):
            return False
        a, b, c = (flag * 1 if isinstance(flag, bool) else flag.astype(np.uint64) for flag in flags)
        self._set_flag(given[0], bits.lut(a, b, c, int(given[5], 0), 1) != 0)
        self._set_flag(given[1], bits.lut(a, b, c, int(given[6], 0), 1) != 0)
        return True

    def _shf(self, name: str, given: tuple[str, ...]) -> bool:
        a, amount, c = (self.value(part) for part in given[1:4])
        if ".L.U32" in name and ".HI" not in name:
            return self._set(given[0], a << amount)
        if ".L.U64.HI" in name:
            return self._set(given[0], (c << 32 | a) << amount >> 32)
        if ".R." in name and ".HI" in name:
            return self._set(given[0], (bits.signed(c) if ".S32" in name else c) >> amount)
        return False

    def _sel(self, name: str, given: tuple[str, ...]) -> bool:
        flag = self.flag(given[3])
        if flag is None:
            return False
        if isinstance(flag, bool):
            return self._set(given[0], self.value(given[1] if flag else given[2]))
        return self._set(given[0], np.where(flag, self.value(given[1]), self.value(given[2])))

    def _vimnmx(self, name: str, given: tuple[str, ...]) -> bool:
        a, b = (bits.signed(self.value(part)) for part in given[1:3])
        return self._set(given[0], self._least(a, b, given[-1]))

    _imnmx = _vimnmx

    def _viaddmnmx(self, name: str, given: tuple[str, ...]) -> bool:
        a = bits.signed(bits.word(self.value(given[1]) + self.value(given[2])))
        return self._set(given[0], self._least(a, bits.signed(self.value(given[3])), given[-1]))

    def _least(self, a: Any, b: Any, flag: str) -> Any:
        chosen = self.flag(flag)
        if not isinstance(chosen, bool):
            raise Unknown(flag)
        return (np.minimum if chosen else np.maximum)(a, b) if bits.many(a, b) else (min if chosen else max)(a, b)

    def _sgxt(self, name: str, given: tuple[str, ...]) -> bool:
        width = int(given[2], 0)
        low = self.value(given[1]) & (1 << width) - 1
        return self._set(
            given[0], low if ".U32" in name else bits.word((low ^ 1 << width - 1) + (WORD + 1 - (1 << width - 1)))
        )

    def _prmt(self, name: str, given: tuple[str, ...]) -> bool:
        a, how, b = self.value(given[1]), self.value(given[2]), self.value(given[3])
        if name != "PRMT" or not isinstance(how, int):
            return False
        both, result = b << 32 | a, 0
        for i in range(4):
            choice = how >> 4 * i & 15
            byte = both >> 8 * (choice & 7) & 255
            result = result | (byte >> 7) * 255 * (choice >= 8) << 8 * i | byte * (choice < 8) << 8 * i
        return self._set(given[0], result)

    def _shfl(self, name: str, given: tuple[str, ...]) -> bool:
        value, lane = self.value(given[2]), self.value(given[3])
        if name != "SHFL.BFLY" or not isinstance(lane, int) or given[4] != "0x1f":
            return False
        return self._set(given[1], value[self._threads ^ lane] if bits.many(value) else value)

    def _p2r(self, name: str, given: tuple[str, ...]) -> bool:
        packed: Any = 0
        mask = int(given[3], 0)
        if name != "P2R" or given[2] != "RZ":
            return False
        for i in range(7):
            if mask >> i & 1:
                packed = packed | self._carry(f"P{i}") << i
        return self._set(given[0], packed)

    def _vote(self, name: str, given: tuple[str, ...]) -> bool:
        flag = self.flag(given[-1])
        if len(given) != 2 or flag is None or name.split(".")[1] not in ("ANY", "ALL"):
            return False
        if not isinstance(flag, bool):
            others = np.zeros_like(flag) if self.active is None else ~self.active
            of_warps = (flag & ~others if "ANY" in name else flag | others).reshape(-1, 32)
            flag = (of_warps.any(1) if "ANY" in name else of_warps.all(1)).repeat(32)
        self._set_flag(given[0], flag)
        return True
