"""Kernels that test_audit.py looks into: some that each break a limit of the audit, one that is known by hand, some of
ours. It runs this file in a process where Triton compiles."""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from astroco_fast.kernels.triton.launch import Config
from bench.audit import binary
from bench.audit.__main__ import examine_all
from bench.audit.__main__ import main as audit
from bench.audit.launches import Kernel, kernels, specialise
from bench.audit.sass import constants, parse, walk


@triton.jit
def unrolled(x, weight, y, D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """A depthwise convolution with all taps unrolled: its 32 shifted tiles need more registers than there are."""
    row, column = tl.arange(0, BLOCK), tl.arange(0, D)
    total = tl.zeros([BLOCK, D], tl.float32)
    for k in tl.static_range(K):
        tap = tl.load(weight + column * K + k)
        total += tl.load(x + (row[:, None] + k) * D + column[None, :]).to(tl.float32) * tap[None, :]
    tl.store(y + row[:, None] * D + column[None, :], total)


@triton.jit
def product(a, b, y, N: tl.constexpr, K: tl.constexpr, PITCH: tl.constexpr):
    """A matrix product of whole tiles."""
    i, k = tl.arange(0, N), tl.arange(0, K)
    left, right = tl.load(a + i[:, None] * PITCH + k[None, :]), tl.load(b + k[:, None] * PITCH + i[None, :])
    tl.store(y + i[:, None] * N + i[None, :], tl.dot(left, right))


@triton.jit
def copy(x, y, PITCH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """A copy of rows at a pitch."""
    row, column = tl.arange(0, BLOCK), tl.arange(0, D)
    tl.store(y + row[:, None] * D + column[None, :], tl.load(x + row[:, None] * PITCH + column[None, :]))


@triton.jit
def turning(x, y, turns):
    """8 numbers a thread, each multiplied and added to in every turn."""
    at = tl.arange(0, 1024)
    value = tl.load(x + at)
    total = value
    for i in range(turns):
        total = total * value + i
    tl.store(y + at, total)


def kernel(function: Any, arch: str, warps: int = 4, **constants: int) -> Kernel:
    """`function` specialised for bfloat16 tensors."""
    tensors = [torch.zeros(1, dtype=torch.bfloat16) for parameter in function.params if not parameter.is_constexpr]
    return specialise(function, tensors, constants, Config({}, warps=warps), arch)


def bad() -> dict[str, Any]:
    """The audit's findings by case."""
    cases = {
        "unrolled, sm_80": kernel(unrolled, "sm_80", D=64, K=32, BLOCK=64),
        "unrolled, sm_100": kernel(unrolled, "sm_100", D=64, K=32, BLOCK=64),
        "large tile, sm_86": kernel(product, "sm_86", warps=8, N=128, K=256, PITCH=256),
        "large tile, sm_90": kernel(product, "sm_90", warps=8, N=128, K=256, PITCH=256),
        "small tile, gfx942": kernel(product, "gfx942", warps=1, N=4, K=4, PITCH=16),
        "pitch 276, sm_80": kernel(copy, "sm_80", PITCH=276, D=64, BLOCK=64),
        "pitch 288, sm_80": kernel(copy, "sm_80", PITCH=288, D=64, BLOCK=64),
        "no power of two, sm_90": kernel(copy, "sm_90", PITCH=288, D=60, BLOCK=64),
    }
    examined = {(r.kernel, r.constants, r.arch): r for r in examine_all(list(cases.values()), processes=2)}
    found = {name: examined[k.label["kernel"], k.label["constants"], k.arch] for name, k in cases.items()}
    binary.COMPILE_SECONDS = 0.01
    found["nothing is as quick, sm_80"] = binary.examine(kernel(copy, "sm_80", PITCH=320, D=64, BLOCK=64))
    return {name: asdict(result) for name, result in found.items()}


def counts(turns: int) -> dict[str, Any]:
    """By architecture, what a thread of `turning` does on a walk through its machine code."""
    found = {}
    for arch in ("sm_80", "sm_90"):
        made = specialise(turning, [torch.zeros(1024), torch.zeros(1024), turns], {}, Config({}, warps=4), arch)
        code = parse(binary.disassembled(binary.compiled(made).asm["cubin"])[1])
        walked = walk(code, constants(arch, made.arguments[0], {"turns": turns}), 0)
        found[arch] = {
            "multiply_adds": walked.total("FFMA"),
            "loads": walked.total("LDG"),
            "stores": walked.total("STG"),
            "guessed": walked.guessed,
        }
    return found


def ours() -> dict[str, Any]:
    """The audit's findings on a kernel of ours for each bar that does not apply to all."""
    chosen = (
        ("convolution", "depthwise._silu_kernel"),
        ("convolution", "depthwise_taps._kernel"),
        ("attention", "linear_onto._kernel"),
        ("mix_pool", "mix._forward_kernel"),
    )
    made = {
        name: next(k for k in kernels("sm_90", "L", "bf16", op) if k.label["kernel"] == name) for op, name in chosen
    }
    return {name: asdict(binary.examine(kernel)) for name, kernel in made.items()}


def by_command(file: str) -> dict[str, Any]:
    """What the audit's command returns and writes to a file for the op that compiles most quickly."""
    words = ["--arch", "sm_90", "--preset", "S", "--dtype", "bf16", "--op", "masked_loss", "--json", file]
    with contextlib.redirect_stdout(sys.stderr):
        status = audit(words)
    return {"status": status, "results": json.loads(Path(file).read_text())}


def main(file: str) -> None:
    """Print all findings as JSON."""
    print(json.dumps({"command": by_command(file), "ours": ours(), "counts": counts(24), "bad": bad()}))


if __name__ == "__main__":
    main(sys.argv[1])
