"""The model of a kernel's time: the walk through its machine code, counts known by hand, and its arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.audit.sass import BLOCKS, Walk, constants, inner_loops, mean, multiply_adds, parse, walk
from bench.roofline import timing
from bench.roofline.block import RIVALS
from bench.roofline.counting import Counts, Launch, Op
from bench.roofline.model import DEVICES
from bench.roofline.timing import MULTIPROCESSORS, Kernel, a_block, cycles, fused, lines, together

ROOT = Path(__file__).resolve().parents[2]
# Adds 3 to a register until it reaches an argument, 12 at c[0x0][0x210]; then waits for data once.
LOOP = """
 /*0000*/  MOV R1, RZ ;
 /*0010*/  ULDC UR4, c[0x0][0x210] ;
 /*0020*/  IADD3 R1, R1, 0x3, RZ ;
 /*0030*/  FFMA R2, R3, R4, R2 ;
 /*0040*/  FFMA R5, R3, R4, R5 ;
 /*0050*/  ISETP.GE.AND P0, PT, R1, UR4, PT ;
 /*0060*/  @!P0 BRA 0x20 ;
 /*0070*/  LDG.E.128 R8, desc[UR6][R12.64] ;
 /*0080*/  ISETP.GT.AND P1, PT, R8, RZ, PT ;
 /*0090*/  @P1 BRA 0x70 ;
 /*00a0*/  EXIT ;
 /*00b0*/  BRA 0xb0 ;
"""


@pytest.mark.parametrize(("bound", "turns"), [(12, 4), (13, 5), (1, 1)])
def test_loops_run_as_often_as_arguments_say(bound, turns):
    code = parse(LOOP)
    found = walk(code, constants("sm_90", {"n": "i32", "block": "constexpr"}, {"n": bound}), 0)
    assert found.total() == 2 + 5 * turns + 3 + 1
    assert found.total("FFMA") == 2 * turns
    assert found.guessed == 1
    assert walk(parse(LOOP.replace("0x210]", "0xc]")), {BLOCKS: bound}, 0).total() == found.total()
    (longest,) = [loop for loop in inner_loops(code) if multiply_adds(loop)]
    assert (len(longest), multiply_adds(longest)) == (5, 2)


def test_arguments_lie_where_the_compiler_puts_them():
    signature = {"a": "*fp32", "n": "i32", "eps": "fp32", "long": "i64", "K": "constexpr", "rows": "i32"}
    words = constants("sm_90", signature, {"n": 7, "long": 2**32 + 1, "K": 5, "rows": -1})
    assert words == {0x218: 7, 0x220: 1, 0x224: 1, 0x228: 0xFFFFFFFF}


def test_cycles_of_a_block():
    """By hand: 8 warps share four schedulers; an HGMMA of 64 x 128 takes 64 cycles a warp group."""
    walked = Walk(Counter({"FFMA": 100, "MUFU.EX2": 20, "LDG.E.128": 4}))
    assert cycles(walked, 8, MULTIPROCESSORS["H100"]) == (
        320.0,
        0.0,
        4 * 16 * 32 * 8,
    )  # 20 special ones at 8 cycles each bind
    walked = Walk(Counter({"HGMMA.64x128x16.F32.BF16 registers": 10, "FFMA": 100}))
    assert cycles(walked, 8, MULTIPROCESSORS["H100"]) == (220.0, 10 * 64 * 2, 0.0)
    walked = Walk(Counter({"HMMA.16816.F32.BF16": 10}))
    assert cycles(walked, 4, MULTIPROCESSORS["A100"]) == (10.0, 80.0, 0.0)


def test_a_block_s_place_among_three():
    """Its index modulo 3, as the compiler computes it, decides a jump."""
    code = parse("""
 /*0000*/  S2R R0, SR_CTAID.X ;
 /*0010*/  IMAD.HI R2, R0, 0x55555556, RZ ;
 /*0020*/  LEA.HI R2, R2, R2, RZ, 0x1 ;
 /*0030*/  IMAD R2, R2, -0x3, R0 ;
 /*0040*/  ISETP.GE.AND P0, PT, R2, 0x2, PT ;
 /*0050*/  @P0 BRA 0x70 ;
 /*0060*/  FFMA R1, R1, R1, R1 ;
 /*0070*/  EXIT ;
""")
    assert [walk(code, {}, block).total("FFMA") for block in range(6)] == [1, 1, 0, 1, 1, 0]


def test_mean_of_blocks():
    found = mean([Walk(Counter(FFMA=3, LDG=2)), Walk(Counter(FFMA=6), guessed=1), Walk(Counter(FFMA=0, LDG=1))])
    assert (found.counts, found.guessed) == ({"FFMA": 3, "LDG": 1}, 1)


def test_blocks_and_waves():
    on = MULTIPROCESSORS["H100"]
    kernel = Kernel("", 132 * 5, 8, 250, 128 * 1024, 0, 1000.0, 500.0, 0, 0, 0)
    assert kernel.resident(on) == 1
    assert kernel.cycles(on) == 5 * 1500  # one block's products and other instructions take turns
    two = Kernel("", 132 * 5, 8, 128, 100 * 1024, 0, 1000.0, 500.0, 0, 0, 0)
    assert two.resident(on) == 2
    assert two.cycles(on) == 2 * 2000 + 1500
    assert two.expected(on, 3.35e12) == pytest.approx(5500 / on.clock + 2e-6)


def test_a_perfect_compiler_fuses_what_lies_between_products():
    ops = [
        Op("mm", read=8, written=4, flops=1.0, reads={1: 8}, writes={2: 4}),
        Op("add", read=8, written=4, reads={2: 4, 3: 4}, writes={4: 4}),
        Op("gelu", read=4, written=4, reads={4: 4}, writes={5: 4}),
        Op("mm", read=4, written=4, flops=1.0, reads={5: 4}, writes={6: 4}),
    ]
    found = fused(Counts(ops)).ops
    assert [(op.name, op.read, op.written) for op in found] == [("mm", 8, 4), ("fused", 8, 4), ("mm", 4, 4)]


def test_sdpa_is_counted():
    from dataclasses import replace

    from astroco_fast import presets
    from astroco_fast.kernels.triton.launch import ARCHITECTURES
    from bench.roofline.subject import count, window_lengths

    config = replace(presets.preset("tiny").config, layers=1)
    lengths = window_lengths(4, 40, padded=False)
    plain, fused_attention = (
        count("reference", config, lengths, 40, torch.bfloat16, ARCHITECTURES["sm_90"], sdpa)["inference"]
        for sdpa in (False, True)
    )
    assert fused_attention.launches < plain.launches
    assert fused_attention.bytes < plain.bytes
    assert fused_attention.flops == pytest.approx(plain.flops)


def test_times_of_launches_by_op(monkeypatch):
    """A launch's code is walked with its own arguments, once for all that share it; a library's op has no code."""
    compilations = []

    def specialised(function, arguments, constants, config, arch):
        return SimpleNamespace(name="file._kernel", key="key", arch=arch, arguments=({"n": "i32"}, {}, {}))

    def compiled(kernel):
        compilations.append(kernel)
        return SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(shared=1024))

    monkeypatch.setattr(timing, "_seen", {})
    monkeypatch.setattr(timing, "specialise", specialised)
    monkeypatch.setattr(timing, "compiled", compiled)
    monkeypatch.setattr(timing, "disassembled", lambda cubin: ({"REG": 32}, LOOP))
    launched = [
        Launch(SimpleNamespace(arg_names=["n"]), (660,), (n,), {}, SimpleNamespace(warps=4), 10**9)
        for n in (12, 13, 12)
    ]
    ops = [
        Op("ours", 3, read=2 * 10**9, written=10**9, launched=launched),
        Op("mm", read=3 * 10**9, flops=1e12, dtype=torch.bfloat16),
        Op("mm", read=3 * 10**9, flops=1e12, dtype=torch.bfloat16),
    ]
    device = DEVICES["H100"]
    ours, library = lines(Counts(ops), device)
    assert [kernel.instructions for kernel in ours.kernels] == [26, 31, 26]
    assert len(compilations) == 2
    assert (ours.launches, ours.bytes) == (3, 3 * 10**9)
    assert ours.ideal == pytest.approx(3e9 / 3.35e12)
    assert ours.expected == pytest.approx(3 * (1e9 / (0.9 * 3.35e12) + 2e-6))
    assert (library.name, library.launches, library.kernels) == ("mm", 2, [])
    assert library.expected == pytest.approx(2 * (1e12 / (0.7 * 989e12) + 2e-6))
    block = a_block(lambda layers: Counts(layers * ops), device)
    assert [(line.name, line.launches, len(line.kernels)) for line in block] == [("ours", 3, 3), ("mm", 2, 0)]
    assert together(block).expected == pytest.approx(ours.expected + library.expected)


@pytest.mark.slow
def test_expected_times_of_kernels(tmp_path):
    """`--kernels` end to end, on two GPUs of one architecture, which share all that is compiled and counted."""
    pytest.importorskip("triton")
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = ["--preset", "tiny", "--batch", "4", "--length", "40", "--devices", "H100", "H200", "--kernels"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.roofline", *words], cwd=ROOT, capture_output=True, text=True,
        env={**clean, "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = done.stdout.partition("Expected on H100")[2]
    assert "Expected on H200" in tables
    for kernel in ("gated_rows.forward_kernel", "gated_rows.backward_kernel", "residual_norm._backward_kernel"):
        assert tables.count(f"| - {kernel} |") >= 2, kernel
    for name in ("astroco_fast", *RIVALS):
        rows = [line.split(" | ") for line in tables.splitlines() if line.startswith(f"| {name} | ")]
        assert [row[1] for row in rows] == 2 * ["inference", "training step"]
        assert all(float(row[4]) <= float(row[5].rstrip(" |")) > 0 for row in rows), name
