"""A kernel whose instructions are known by hand, compiled and walked through; prints the counts as JSON."""

import json

import triton
import triton.language as tl
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bench.audit.binary import disassembled
from bench.audit.launches import target
from bench.audit.sass import constants, parse, walk


@triton.jit
def _kernel(x, y, turns):
    at = tl.arange(0, 1024)
    value = tl.load(x + at)
    total = value
    for i in range(turns):
        total = total * value + i
    tl.store(y + at, total)


def main() -> None:
    """8 numbers a thread, for 24 turns."""
    assert isinstance(_kernel, JITFunction)
    signature = {"x": "*fp32", "y": "*fp32", "turns": "i32"}
    aligned = {(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]}
    found = {}
    for arch in ("sm_80", "sm_90"):
        source = ASTSource(_kernel, signature, {}, aligned)
        compiled = triton.compile(source, target=target(arch), options={"num_warps": 4})
        walked = walk(parse(disassembled(compiled.asm["cubin"])[1]), constants(arch, signature, {"turns": 24}), 0)
        found[arch] = {
            "multiply_adds": walked.total("FFMA"), "loads": walked.total("LDG"), "stores": walked.total("STG"),
            "guessed": walked.guessed,
        }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
