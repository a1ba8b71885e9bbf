"""The model of a kernel's time: the walk through its machine code, counts known by hand, and its arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from astroco_fast import presets
from astroco_fast.kernels.triton.launch import ARCHITECTURES
from bench.audit.machine import BLOCKS
from bench.audit.sass import Walk, constants, inner_loops, mean, multiply_adds, parse, places, walk
from bench.audit.traffic import APART
from bench.roofline import timing
from bench.roofline.block import RIVALS
from bench.roofline.counting import Counts, Launch, Op, Traffic
from bench.roofline.flops import Product, counter
from bench.roofline.model import DEVICES
from bench.roofline.subject import count, window_lengths
from bench.roofline.timing import MULTIPROCESSORS, Kernel, a_block, cycles, fused, hidden, library, lines, together

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
    assert words == {0x210: 0, 0x214: 1 << APART - 32, 0x218: 7, 0x220: 1, 0x224: 1, 0x228: 0xFFFFFFFF}
    assert places({**signature, "b": "*i32"}) == {"a": 1 << APART, "b": 2 << APART}


def test_cycles_of_a_block():
    """By hand: 8 warps share four schedulers; an HGMMA of 64 x 128 takes 64 cycles a warp group."""
    walked = Walk(Counter({"FFMA": 100, "MUFU.EX2": 20, "LDG.E.128": 4}), cycles=128)
    assert cycles(walked, 8, MULTIPROCESSORS["H100"]) == (320.0, 0.0)  # 20 special ones at 8 cycles each bind
    walked = Walk(Counter({"FFMA": 100, "LDG.E.128": 11, "SHFL.BFLY": 5}), cycles=352)
    assert cycles(walked, 8, MULTIPROCESSORS["H100"]) == (352.0 + 40.0, 0.0)  # a warp's values are exchanged in a cycle
    walked = Walk(Counter({"HGMMA.64x128x16.F32.BF16 registers": 10, "FFMA": 100}))
    assert cycles(walked, 8, MULTIPROCESSORS["H100"]) == (220.0, 10 * 64 * 2)
    walked = Walk(Counter({"HMMA.16816.F32.BF16": 10}))
    assert cycles(walked, 4, MULTIPROCESSORS["A100"]) == (10.0, 80.0)


# Two groups of products, the first of two; the first wait lets the second group go on.
PRODUCTS = """
 /*0000*/  FADD R1, R1, R1 ;
 /*0010*/  HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24 ;
 /*0020*/  FFMA R2, R2, R2, R2 ;
 /*0030*/  HGMMA.64x128x16.F32.BF16 R24, R8, gdesc[UR8], R24, gsb0 ;
 /*0040*/  FFMA R2, R2, R2, R2 ;
 /*0050*/  HGMMA.64x64x16.F32.BF16 R88, gdesc[UR4], R88, gsb0 ;
 /*0060*/  FFMA R2, R2, R2, R2 ;
 /*0070*/  WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
 /*0080*/  FFMA R2, R2, R2, R2 ;
 /*0090*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
 /*00a0*/  FADD R1, R1, R1 ;
 /*00b0*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
 /*00c0*/  EXIT ;
"""


def test_products_hide_what_stands_before_their_wait():
    """By hand, as in `test_cycles_of_a_block`; no more than all of a block's instructions or products."""
    found = walk(parse(PRODUCTS), {}, 0, 256)
    wide, narrow = "HGMMA.64x128x16.F32.BF16 registers", "HGMMA.64x64x16.F32.BF16 memory"
    first, second = (((wide, 2),), (("FFMA", 3),)), (((narrow, 1),), (("FFMA", 1),))
    assert found.flights == {first: 1, second: 1}
    assert mean([found, Walk({})]).flights == {first: 0.5, second: 0.5}
    on = MULTIPROCESSORS["H100"]
    assert hidden(found, 8, on) == 3 * 2 + 1 * 2  # instructions
    many = Walk({}, flights={(((wide, 2),), (("FFMA", 300),)): 5})
    assert hidden(many, 8, on) == 5 * 2 * 64 * 2  # products
    kernel = Kernel("", 132, 8, 255, 0, 0, issue=100.0, tensor=80.0, memory=0, cache=0, guessed=0, hidden=30.0)
    assert kernel.cycles(on) == 150
    assert replace(kernel, blocks=264, registers=64).cycles(on) == 200  # two blocks of a multiprocessor overlap anyway


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


def test_blocks_of_a_grid_of_two_axes():
    """Only the first block of both axes leaves early."""
    code = parse("""
 /*0000*/  S2UR UR4, SR_CTAID.Y ;
 /*0010*/  S2UR UR5, SR_CTAID.X ;
 /*0020*/  UIADD3 UR4, UR4, UR5, URZ ;
 /*0030*/  ISETP.LT.AND P0, PT, RZ, UR4, PT ;
 /*0040*/  @P0 FFMA R1, R1, R1, R1 ;
 /*0050*/  @!P0 EXIT ;
 /*0060*/  FADD R1, R1, R1 ;
 /*0070*/  EXIT ;
""")
    assert [walk(code, {BLOCKS: 4}, block).total("FADD") for block in (0, 1, 3, 4, 5)] == [0, 1, 1, 1, 1]
    assert [walk(code, {BLOCKS: 1}, block).total("FADD") for block in (0, 1)] == [0, 1]


# Lanes load one of four numbers each at c[0x0][0x210], twice, then 16 bytes at c[0x0][0x218] in two halves of a
# sector; the threads below 40 store 16 bytes at c[0x0][0x220].
LOADS = """
 /*0000*/  S2R R0, SR_TID.X ;
 /*0010*/  LDC.64 R2, c[0x0][0x210] ;
 /*0020*/  LOP3.LUT R4, R0, 0x3, RZ, 0xc0, !PT ;
 /*0030*/  IMAD.WIDE.U32 R6, R4, 0x4, R2 ;
 /*0040*/  LDG.E R8, desc[UR4][R6.64] ;
 /*0050*/  LDG.E R9, desc[UR4][R6.64] ;
 /*0060*/  LEA R10, P0, R0, c[0x0][0x218], 0x5 ;
 /*0070*/  LEA.HI.X R11, R0, c[0x0][0x21c], RZ, 0x5, P0 ;
 /*0080*/  LDG.E.128 R12, desc[UR4][R10.64] ;
 /*0090*/  LDG.E.128 R12, desc[UR4][R10.64+0x10] ;
 /*00a0*/  ISETP.GE.U32.AND P1, PT, R0, 0x28, PT ;
 /*00b0*/  IMAD.SHL.U32 R5, R0, 0x10, RZ ;
 /*00b8*/  FADD R16, R12, R12 ;
 /*00c0*/  @!P1 IADD3 R16, P2, R5, c[0x0][0x220], RZ ;
 /*00d0*/  IADD3.X R17, RZ, c[0x0][0x224], RZ, P2, !PT ;
 /*00e0*/  @!P1 STG.E.128 desc[UR4][R16.64], R12 ;
 /*00f0*/  EXIT ;
"""


def test_lanes_share_sectors_and_a_block_its_first_level_cache():
    words = constants("sm_90", dict.fromkeys("abc", "*fp32"), {})
    found = walk(parse(LOADS), words, 0, threads=64, capacity=1 << 16)
    assert (found.read, found.written, found.blind) == (32 + 64 * 32, 40 * 16, 0)
    assert found.cycles == 2 * (1 + 1 + 4 + 4 + 4)  # what registers take, at 128 bytes a cycle and for two warps
    # Without a first-level cache to speak of, each of the loads moves its sectors, whole.
    assert walk(parse(LOADS), words, 0, threads=64).read == 32 + 2 * 64 * 32
    past = walk(parse(LOADS.replace("LDG.E.128", "LDG.E.BYPASS.128")), words, 0, threads=64, capacity=1 << 16)
    assert past.read == 32 + 2 * 64 * 32
    unknown = walk(parse(LOADS.replace("SR_TID.X", "SR_CLOCKLO").replace("S2R R0", "S2X R0")), words, 0, threads=64)
    assert (unknown.read, unknown.blind) == (2 * 64 * (4 + 16), 2 * 64 * (4 + 16) + 64 * 16)


def test_copies_without_a_size_are_refused():
    with pytest.raises(ValueError, match="does not know what the copy engine moves"):
        walk(parse(" /*0000*/  UTMALDG.2D [UR8], [UR4] ;\n /*0010*/  EXIT ;"), {}, 0)


def test_loops_run_as_often_as_data_say():
    """A loop whose end is loaded from memory, other for each thread: the warps leave it one after the other."""
    code = parse("""
 /*0000*/  S2R R0, SR_TID.X ;
 /*0010*/  LDC.64 R2, c[0x0][0x210] ;
 /*0020*/  IMAD.WIDE.U32 R6, R0, 0x4, R2 ;
 /*0030*/  LDG.E R8, desc[UR4][R6.64] ;
 /*0040*/  MOV R1, RZ ;
 /*0050*/  IADD3 R1, R1, 0x1, RZ ;
 /*0060*/  ISETP.GE.AND P0, PT, R1, R8, PT ;
 /*0070*/  @!P0 BRA 0x50 ;
 /*0080*/  FFMA R1, R1, R1, R1 ;
 /*0090*/  EXIT ;
""")
    signature = {"turns": "*i32"}
    turns = np.repeat([3, 7], 32).astype(np.uint32)
    turns[5] = 4
    data = {places(signature)["turns"]: turns}
    found = walk(code, constants("sm_90", signature, {}), 0, threads=64, data=data)
    assert (found.guessed, found.total("ISETP"), found.total("FFMA")) == (0, (4 + 7) / 2, 1)
    assert walk(code, constants("sm_90", signature, {}), 0, threads=64).guessed == 1


def test_banks_of_shared_memory():
    """A column of 32 words in a row pitch of 32 is one bank, and a broadcast costs what its registers take."""
    code = """
 /*0000*/  S2R R0, SR_TID.X ;
 /*0010*/  IMAD R2, R0, {pitch}, RZ ;
 /*0020*/  STS{wide} [R2+0x100], R4 ;
 /*0030*/  LDS{wide} R4, [R2+0x100] ;
 /*0040*/  EXIT ;
"""
    for wide, pitch, expected in (
        ("", 4, 1),
        ("", 128, 32),
        ("", 0, 1),
        (".128", 16, 4),
        (".128", 32, 8),
        (".128", 0, 4),
    ):
        found = walk(parse(code.format(wide=wide, pitch=hex(pitch))), {}, 0, threads=32)
        assert found.cycles == 2 * expected, (wide, pitch)


def test_a_library_s_products_pass_the_second_level_cache_by_tiles():
    """x of 51,200 x 256 by 1024 columns: on sm_90, 4 column tiles read x, and 200 row tiles the weights."""
    made = Product(1, 51200, 1024, 256, 2, 2)
    assert made.moved(256, 256) == 4 * 51200 * 256 * 2 + 200 * 1024 * 256 * 2 + 51200 * 1024 * 2
    op = Op(
        "mm", read=26_738_688, written=104_857_600, flops=2.0 * 51200 * 1024 * 256, dtype=torch.bfloat16, product=made
    )
    assert library(op, DEVICES["H100"]) == pytest.approx(made.moved(256, 256) / 5.5e12 + 2e-6)
    assert library(op, DEVICES["A100"]) == pytest.approx(op.flops / (0.7 * 312e12) + 2e-6)  # tensor cores bind there
    few = replace(op, product=made._replace(columns=64))  # one tile is wide enough
    assert library(few, DEVICES["H100"]) == pytest.approx(op.bytes / (0.9 * 3.35e12) + 2e-6)
    with FakeTensorMode():
        x, w, b = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((64, 32), (32, 16), (16,)))
        with Traffic(counter(0), {}, ARCHITECTURES["sm_90"]) as seen:
            torch.addmm(b, x, w)
            torch.bmm(x.view(4, 16, 32), w.expand(4, 32, 16))
            x + x
    products = [op.product for op in seen.counts.ops]
    assert products == [Product(1, 64, 16, 32, 2, 2), Product(4, 16, 16, 32, 2, 2), None]


def test_mean_of_blocks():
    walks = [Walk({"FFMA": 3, "LDG": 2}, read=4), Walk({"FFMA": 6}, guessed=1, read=2), Walk({"FFMA": 0, "LDG": 1})]
    found = mean(walks)
    assert (found.counts, found.guessed, found.read) == ({"FFMA": 3, "LDG": 1}, 1, 2)


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
        Launch(SimpleNamespace(arg_names=["n"]), (660,), (n,), {}, SimpleNamespace(warps=4), 10**6)
        for n in (12, 13, 12)
    ]
    ops = [
        Op("ours", 3, read=2 * 10**6, written=10**6, launched=launched),
        Op("mm", read=3 * 10**9, flops=1e12, dtype=torch.bfloat16),
        Op("mm", read=3 * 10**9, flops=1e12, dtype=torch.bfloat16),
    ]
    device = DEVICES["H100"]
    ours, theirs = lines(Counts(ops), device)
    assert [kernel.instructions for kernel in ours.kernels] == [26, 31, 26]
    assert len(compilations) == 2
    # A block's load of 16 bytes a lane is all that a launch moves, whatever it is given.
    whole = lines(Counts([replace(ops[0], launched=[launched[0]._replace(bytes=10**9)])]), device)[0].kernels[0]
    assert (whole.memory, whole.cache, ours.kernels[0].memory) == (660 * 4 * 512, 660 * 4 * 512, 10**6)
    assert (ours.launches, ours.bytes) == (3, 3 * 10**6)
    assert ours.ideal == pytest.approx(3e6 / 3.35e12)
    assert ours.expected == pytest.approx(3 * (1e6 / (0.9 * 3.35e12) + 2e-6))
    assert (theirs.name, theirs.launches, theirs.kernels) == ("mm", 2, [])
    assert theirs.expected == pytest.approx(2 * (1e12 / (0.7 * 989e12) + 2e-6))
    # Nor do the project's kernels reach more of the tensor cores' rate than a library's.
    busy = replace(ops[0], flops=1e13, dtype=torch.bfloat16)
    assert lines(Counts([busy]), device)[0].expected == pytest.approx(1e13 / (0.7 * 989e12) + 3 * 2e-6)
    block = a_block(lambda layers: Counts(layers * ops), device)
    assert [(line.name, line.launches, len(line.kernels)) for line in block] == [("ours", 3, 3), ("mm", 2, 0)]
    assert together(block).expected == pytest.approx(ours.expected + theirs.expected)


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
    for kernel in ("gated_rows.forward_kernel", "gated_onto._kernel", "residual_norm._backward_kernel"):
        assert tables.count(f"| - {kernel} |") >= 2, kernel
    for name in ("astroco_fast", *RIVALS):
        rows = [line.split(" | ") for line in tables.splitlines() if line.startswith(f"| {name} | ")]
        assert [row[1] for row in rows] == 2 * ["inference", "training step"]
        assert all(float(row[4]) <= float(row[5].rstrip(" |")) > 0 for row in rows), name


def walked_shares(tiles: int, sizes: dict[str, int]) -> tuple[int, tuple[int, int, int, int]]:
    """Units of a row tile of `linear`, and the programs' shares on an H100."""
    from astroco_fast.kernels.triton.launch import recording
    from astroco_fast.kernels.triton.whole_rows import shares

    units = -(-sizes["N"] // sizes["BLOCK_N"])
    with recording(print, ARCHITECTURES["sm_90"]):
        return units, shares(tiles, units, torch.device("cpu"))


@pytest.mark.slow
def test_bytes_of_kernels_that_are_known_by_hand(tmp_path):
    """51,200 rows of 256 columns, by each kernel's tiles: a block reads its rows and the weights."""
    pytest.importorskip("triton")
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.moved"], cwd=ROOT, capture_output=True, text=True,
        env={**clean, "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows, half = 51200 * 256 * 4, 51200 * 256 * 2  # bytes of rows in float32, and in half precision
    known = set()
    for name, sizes, blocks, moved, guessed, blind in json.loads(done.stdout):
        assert guessed == blind == 0, name
        tiles = 51200 // sizes.get("BLOCK_R", 51200)
        split = blocks / tiles  # blocks that share a row tile
        if name == "gated_rows.forward_kernel":
            weights = 2 * 256 * sizes["F"] * 2
            expected = rows * split + weights * tiles + half * sizes["F"] / 256
        elif name == "linear._rows_kernel":
            units, (count, own, left_over, each) = walked_shares(int(tiles), sizes)
            assert (blocks, left_over > 0) == (count, True)
            middle = [(count // 2 + i) * each for i in range(3)]  # where the walked programs begin behind whole tiles
            read = sum(own // units + (at + each - 1) // units - at // units + 1 for at in middle) / 3
            expected = count * sizes["BLOCK_R"] * 256 * 4 * read
            expected += count * (own + each) * sizes["BLOCK_N"] * 2 * (256 + sizes["BLOCK_R"])
        elif name == "linear_residual_norm._kernel":
            expected = half * sizes["K"] / 256 + 256 * sizes["K"] * 2 * tiles + 2 * rows
        else:
            continue
        known.add(name)
        assert expected <= moved <= 1.05 * expected, (name, sizes)
    assert len(known) == 3
