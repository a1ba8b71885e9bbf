"""Operands of machine code (SASS), and arithmetic on whole numbers that are one for all threads or one for each."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np

WORD, LONG = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_ADDRESS = re.compile(r"([+-]?)(U?R(?:\d+|Z)|-?0x[0-9a-f]+)(\.64)?")


@cache
def operand(text: str) -> tuple[str, Any, str]:
    """An operand's kind, the register, the address in constant memory or the number, and its sign."""
    sign = text[0] if text[0] in "-~" else ""
    name = text[len(sign) :].removesuffix(".reuse")
    if name in ("RZ", "URZ"):
        return "number", 0, sign
    if re.fullmatch(r"U?R\d+", name):
        return "register", name, sign
    if found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", name):
        return "word", int(found[1], 16), sign
    try:
        return "number", int(name, 0), sign
    except ValueError:
        return "register", name, sign  # a form that is not followed


@cache
def halves(operand: str) -> tuple[str, str | None]:
    """The names of 64 bits' halves: of a register and the next one, of two words of constant memory, else itself."""
    if found := re.fullmatch(r"(U?R)(\d+)", operand.removesuffix(".reuse")):
        return found[0], f"{found[1]}{int(found[2]) + 1}"
    if found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", operand):
        return operand, f"c[0x0][{int(found[1], 16) + 4:#x}]"
    return operand, None


@cache
def address(operand: str) -> tuple[tuple[tuple[str, bool], ...], int]:
    """The registers of an address, each with whether it is a pair, and the number added to them."""
    inside = operand[operand.rindex("[") + 1 : operand.rindex("]")]
    registers, total = [], 0
    for _, part, wide in _ADDRESS.findall(inside.replace("+-", "+ -").replace(" ", "")):
        if "R" in part:
            registers.append((part, bool(wide)))
        else:
            total += int(part, 0)
    return tuple(registers), total & LONG


@cache
def registers(operand: str, count: int) -> tuple[str, ...]:
    """The names of consecutive registers; none where an operand is no register that keeps what is written to it."""
    found = re.fullmatch(r"(U?R)(\d+)", operand.split(".")[0])
    return tuple(f"{found[1]}{int(found[2]) + offset}" for offset in range(count)) if found else ()


@cache
def targets(name: str, operands: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The registers and the predicates that an instruction writes."""
    flags = (operand for operand in operands[:2] if re.fullmatch(r"U?P\d", operand))
    if name.startswith("HGMMA"):
        wide = int(name.split("x")[1]) // 2
    elif ".128" in name or "HMMA" in name or name.endswith("M88.4"):
        wide = 4
    else:
        wide = 2 if any(part in name for part in (".64", "WIDE", "CS2R", "M88.2", "HMMA2", "FFMA2")) else 1
    first = operands[1] if name.startswith("SHFL") else operands[0]
    return registers(first, wide), tuple(flags)


def many(*values: Any) -> bool:
    return any(isinstance(value, np.ndarray) for value in values)


def word(value: Any) -> Any:
    """The low 32 bits."""
    return value.astype(np.uint64) & WORD if isinstance(value, np.ndarray) else int(value) & WORD


def long(value: Any) -> Any:
    """The low 64 bits."""
    return value.astype(np.uint64) if isinstance(value, np.ndarray) else int(value) & LONG


def signed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.astype(np.int64) ^ 0x80000000) - 0x80000000
    return value - (1 << 32) if value >> 31 else value


def negated(value: Any, operand: str) -> Any:
    return (LONG + 1 - value) & LONG if operand[0] == "-" else value


def inverted(value: Any) -> Any:
    return value if value is None else not value if isinstance(value, bool) else ~value


def both(a: Any, b: Any) -> Any:
    """Both of two predicates."""
    if a is False or b is False:
        return False
    return None if a is None or b is None else a & b


def either(a: Any, b: Any) -> Any:
    return inverted(both(inverted(a), inverted(b)))


def lut(a: Any, b: Any, c: Any, table: int, mask: int) -> Any:
    """The bits that a table of eight gives for each bit of three numbers."""
    found: Any = 0
    for row in range(8):
        if table >> row & 1:
            found = found | (a if row & 4 else a ^ mask) & (b if row & 2 else b ^ mask) & (c if row & 1 else c ^ mask)
    return found & mask
