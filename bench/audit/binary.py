"""A compiled kernel's registers, memory, loads and tensor-core instructions, and the limits (bars) on them."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astroco_fast.kernels.triton.launch import ARCHITECTURES
from bench.audit.launches import Kernel, target
from bench.audit.sass import inner_loops, parse
from bench.audit.traffic import LOADS, lane_bytes

# Processor time that a compilation may take; time by the clock would depend on what else runs.
COMPILE_SECONDS = 5.0
WIDE = 16  # bytes


@dataclass
class Result:
    """A compiled kernel.

    Attributes:
        op, preset, dtype: the users that launch it.
        kernel, constants: its name and its compile-time constants.
        arch: the architecture it was compiled for.
        registers: registers a thread.
        local: number of instructions that load from or store to local memory, where registers are spilled to.
        stack: bytes of local memory a thread.
        shared, limit: bytes of shared memory a block, and the architecture's limit.
        loads: number of instructions that load from global memory, by bytes a thread; 16 stands for 16 and more.
        dot: the operand types of `tl.dot`; empty in a kernel without matrix products.
        tiles: whether it loads tiles of rows, not only a few numbers a row or point.
        matrix: the kind of tensor-core instruction; empty if there is none.
        taps: in the loop with the convolution's products, the instructions of a thread for each multiply-add of an
            output and a tap; 0 in other kernels.
        barriers: the block's barriers in that loop.
        size: bytes of code.
        seconds: processor time of the compilation.
        bars: the bars that apply.
        broken: the bars that are broken, with the reasons.
    """

    op: str
    kernel: str
    preset: str
    dtype: str
    constants: str
    arch: str
    registers: int = 0
    local: int = 0
    stack: int = 0
    shared: int = 0
    limit: int = 0
    loads: dict[int, int] = field(default_factory=dict)
    dot: list[str] = field(default_factory=list)
    tiles: bool = False
    matrix: str = ""
    taps: float = 0.0
    barriers: int = 0
    size: int = 0
    seconds: float = 0.0
    bars: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def wide(self) -> float:
        """The share of the bytes loaded in one pass through the code that is loaded 16 bytes at a time."""
        return self.loads.get(WIDE, 0) * WIDE / max(sum(size * count for size, count in self.loads.items()), 1)


# The kernels with the convolution's products: the most instructions that their loop may take for a multiply-add in half
# precision and in float32, which tensor cores take for three products of TF32; and the most barriers, since rows come
# to the tensor cores through shared memory.
CONVOLUTIONS = {
    "depthwise._silu_kernel": (1.0, 2.7, 20),
    "depthwise._statistics_kernel": (1.0, 2.7, 20),
    "depthwise._input_gradient_kernel": (1.0, 2.7, 20),
    "depthwise_taps._kernel": (1.0, 2.7, 20),
}

# For each bar: its name, the results it applies to, and the reason why a result breaks it (None: it does not).
BARS: tuple[tuple[str, Callable[[Result], bool], Callable[[Result], str | None]], ...] = (
    (
        "no-local",
        lambda r: r.arch.startswith("sm_"),
        lambda r: f"{r.local} local loads and stores" if r.local else None,
    ),
    (
        "shared",
        lambda r: True,
        lambda r: f"{r.shared} bytes of shared memory, above {r.limit}" if r.shared > r.limit else None,
    ),
    (
        "wide-loads",
        lambda r: r.tiles and not r.dot and r.kernel not in CONVOLUTIONS,  # these wait for arithmetic, not for loads
        lambda r: f"{r.wide:.0%} loaded 16 bytes at a time" if r.wide < 0.5 else None,
    ),
    (
        "matrix",
        lambda r: "bf16" in r.dot or "f16" in r.dot,
        lambda r: None if r.matrix else "no tensor-core instruction",
    ),
    (
        "taps",
        lambda r: r.kernel in CONVOLUTIONS and r.arch.startswith("sm_"),
        lambda r: (
            f"{r.taps:.2f} instructions a multiply-add, {r.barriers} barriers in the loop of products"
            if not 0 < r.taps <= CONVOLUTIONS[r.kernel][r.dtype == "fp32"] or r.barriers > CONVOLUTIONS[r.kernel][2]
            else None
        ),
    ),
    (
        "compile",
        lambda r: True,
        lambda r: f"{r.seconds:.1f} s to compile" if r.seconds >= COMPILE_SECONDS else None,
    ),
)


def examine(kernel: Kernel) -> Result:
    """Compile a kernel, read its binary, and check it against the bars."""
    result = Result(**kernel.label, limit=ARCHITECTURES[kernel.arch].shared)
    before = sum(os.times()[:4])
    try:
        found = compiled(kernel)
    except Exception as error:  # any error of the compiler is this kernel's result
        return failed(result, error)
    result.seconds = round(sum(os.times()[:4]) - before, 2)
    result.shared = found.metadata.shared
    result.dot = sorted(set(re.findall(r"tt\.dot\b.*?: tensor<[\dx]*x(\w+)>", found.asm["ttir"])))
    result.tiles = bool(re.search(r"tt\.(?:descriptor_)?load\b.*tensor<\d+x\d+x", found.asm["ttir"]))
    if "cubin" in found.asm:
        _read_nvidia(result, kernel, found.asm["ptx"], found.asm["cubin"])
    else:
        _read_amd(result, found.asm["amdgcn"])
    for name, applies, wrong in BARS:
        if applies(result):
            result.bars.append(name)
            if reason := wrong(result):
                result.broken[name] = reason
    return result


def compiled(kernel: Kernel) -> Any:
    """The kernel as Triton compiles it."""
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(kernel.function, *kernel.arguments)
    return triton.compile(source, target=target(kernel.arch), options=kernel.options)


def disassembled(cubin: bytes) -> tuple[dict[str, int], str]:
    """What a binary for NVIDIA GPUs uses (REG: registers, STACK: bytes, ...), and its machine code as text."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "-res-usage", "-sass", file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK):(\d+)", sass)}, sass


def _read_nvidia(result: Result, kernel: Kernel, ptx: str, cubin: bytes) -> None:
    usage, sass = disassembled(cubin)
    result.registers, result.stack = usage["REG"], usage["STACK"]
    code = parse(sass)
    result.size = code[-1].at + 16
    result.local = sum(one.op in ("LDL", "STL") for one in code)
    result.loads = dict(Counter(min(lane_bytes(one.name), WIDE) for one in code if one.op in LOADS))
    if result.kernel in CONVOLUTIONS:
        loop = max(inner_loops(code), key=len, default=[])
        outputs = 16 * kernel.constants["TILES"] * kernel.constants["BLOCK_C"] / (32 * kernel.config["num_warps"])
        work = outputs * kernel.constants["K"]  # tensor cores multiply zeros, too, which are no work
        result.taps = round(len(loop) / work, 2)
        result.barriers = sum(one.op == "BAR" for one in loop)
    kinds = {"wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05", "mma.sync": "mma.sync"}
    result.matrix = "+".join(short for long, short in kinds.items() if long in ptx)


def _read_amd(result: Result, assembly: str) -> None:
    def number(what: str) -> int:
        return int(re.search(rf"{what}[:=]? *=? *(\d+)", assembly)[1])  # type: ignore[index]

    result.registers, result.stack = number(r"\.vgpr_count"), number(r"\.private_segment_fixed_size")
    result.size = number("codeLenInByte")
    result.local = len(re.findall(r"^\s+scratch_(?:load|store)", assembly, re.MULTILINE))
    loaded = re.findall(r"^\s+(?:global|buffer)_load_(\w+)", assembly, re.MULTILINE)
    sizes = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dwordx2": 8, "dwordx3": 12, "dwordx4": WIDE}
    result.loads = dict(Counter(sizes.get(what, 4) for what in loaded))
    result.matrix = "mfma" if "v_mfma_" in assembly else ""


def failed(result: Result, error: Exception | str) -> Result:
    """The result of a kernel, or an op, that could not be compiled."""
    lines = str(error).strip().splitlines() or [""]
    result.broken["compiles"] = f"{type(error).__name__}: {lines[-1]}" if isinstance(error, Exception) else str(error)
    return result
