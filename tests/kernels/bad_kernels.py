"""Kernels that each break a limit of the audit. test_audit.py runs this file in a process where Triton compiles."""

import json
from dataclasses import asdict
from typing import Any

import torch
import triton
import triton.language as tl

from astroco_fast.kernels.triton.launch import Config
from bench.audit import binary
from bench.audit.__main__ import examine_all
from bench.audit.launches import Kernel, specialise


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


def kernel(function: Any, arch: str, warps: int = 4, **constants: int) -> Kernel:
    """`function` specialised for bfloat16 tensors."""
    tensors = [torch.zeros(1, dtype=torch.bfloat16) for parameter in function.params if not parameter.is_constexpr]
    return specialise(function, tensors, constants, Config({}, warps=warps), arch)


def main() -> None:
    """Print the audit's findings by case, as JSON."""
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
    print(json.dumps({name: asdict(result) for name, result in found.items()}))


if __name__ == "__main__":
    main()
