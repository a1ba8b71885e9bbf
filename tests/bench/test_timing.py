"""The model of a kernel's time: the walk through its machine code, counts known by hand, and its arithmetic."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench.audit.sass import Walk, constants, inner_loops, multiply_adds, parse, walk
from bench.roofline.counting import Counts, Op
from bench.roofline.timing import MULTIPROCESSORS, Kernel, cycles, fused

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
    (longest,) = [loop for loop in inner_loops(code) if multiply_adds(loop)]
    assert (len(longest), multiply_adds(longest)) == (5, 2)


def test_arguments_lie_where_the_compiler_puts_them():
    signature = {"a": "*fp32", "n": "i32", "eps": "fp32", "long": "i64", "K": "constexpr", "rows": "i32"}
    words = constants("sm_90", signature, {"n": 7, "long": 2**32 + 1, "K": 5, "rows": -1})
    assert words == {0x218: 7, 0x220: 1, 0x224: 1, 0x228: 0xFFFFFFFF}


def test_cycles_of_a_block():
    """By hand: 8 warps share four schedulers; an HGMMA of 64 x 128 takes 64 cycles a warp group."""
    walked = Walk(Counter({"FFMA": 100, "MUFU.EX2": 20, "LDG.E.128": 4}))
    assert cycles(walked, 8, 6.5, 1) == (320.0, 0.0, 4 * 16 * 32 * 8)  # 20 special ones at 8 cycles each bind
    walked = Walk(Counter({"HGMMA.64x128x16.F32.BF16 registers": 10, "FFMA": 100}))
    assert cycles(walked, 8, 6.5, 1) == (220.0, 10 * 64 * 2, 0.0)
    walked = Walk(Counter({"HMMA.16816.F32.BF16": 10}))
    assert cycles(walked, 4, 8.0, 2) == (10.0, 80.0, 0.0)


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
