"""The structs that the CPU's kernels take: C++ and Python agree on every field."""

import ctypes
from pathlib import Path

import pytest
import torch

from astroco_fast.kernels.cpu import Cpu, build
from astroco_fast.kernels.cpu.arguments import Field, Kernel, kernels, structs
from tests.conftest import CPU_ISA

pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")


def all_kernels() -> dict[str, Kernel]:
    """Every kernel of the CPU by its op, after the import of the modules that register them."""
    import astroco_fast.kernels.cpu.dropout  # noqa: F401 - for its op

    for op in Cpu.ops:
        Cpu().function(op)
    return kernels


def declared_type(field: Field) -> str:
    """The field's C++ type without `const`, with float for T and for H, the type of half rows."""
    return ("float" if field.type in ("T", "H") else field.type) + "*" * field.pointers


def test_every_struct_is_that_of_an_op() -> None:
    assert {kernel.structure.__name__ for kernel in all_kernels().values()} == structs(build.SOURCES).keys()


def test_sizes_offsets_and_types_are_those_of_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler compares sizes, offsets and types.

    It takes the sources for AVX2 where it can: that has other vectors than AVX-512, and none of its products of
    bfloat16 and int8, and all other tests use the library of the best instruction set.
    """
    monkeypatch.setattr(build, "wish", "avx2" if "avx2" in build.isas() else CPU_ISA)
    lines = [f'#include "{build.SOURCES / "main.cpp"}"', "#include <cstddef>"]
    lines += [
        "template <class X> struct Bare { using type = std::remove_const_t<X>; };",
        "template <class X> struct Bare<X*> { using type = typename Bare<std::remove_const_t<X>>::type*; };",
        "template <class X> using bare = typename Bare<std::remove_const_t<X>>::type;",
    ]
    for kernel in all_kernels().values():
        structure, fields = kernel.structure, structs(build.SOURCES)[kernel.structure.__name__]
        generic = any(field.type in ("T", "H") for field in fields)
        struct = f"astroco::{structure.__name__}" + ("<float>" if generic else "")
        assert ctypes.sizeof(structure) == 8 * len(fields)  # so C++ has no more fields than Python
        lines.append(f"static_assert(sizeof({struct}) == {ctypes.sizeof(structure)});")
        for field in fields:
            member = f"{struct}::{field.name}"
            lines.append(f"static_assert(offsetof({struct}, {field.name}) == {getattr(structure, field.name).offset});")
            lines.append(f"static_assert(std::is_same_v<bare<decltype({member})>, {declared_type(field)}>);")
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(lines))
    (compiler, *_) = build.compilers()
    plan = build.plan(build.SOURCES, build.wanted()[0], compiler)
    build._run(*plan.compiler, *plan.compile, "-fsyntax-only", str(source))


def test_kernels_refuse_tensors_that_they_cannot_read(cpu: str) -> None:
    from astroco_fast.kernels.cpu.weights import cpu_pack, cpu_weight_gradient

    with pytest.raises(ValueError, match=r"pack: weight must be torch\.float32, contiguous, got torch\.float64"):
        cpu_pack(torch.zeros(4, 4).double(), False, torch.float32)
    with pytest.raises(ValueError, match=r"pack: weight must be .*contiguous, got .* with strides \(1, 4\)"):
        cpu_pack(torch.zeros(4, 4).t(), False, torch.float32)
    with pytest.raises(ValueError, match=r"pack: there is no kernel that computes in torch\.float16"):
        cpu_pack(torch.zeros(4, 4), False, torch.float16)
    windows, half = torch.tensor([[0], [8]]), torch.zeros(8, 32)
    with pytest.raises(ValueError, match=r"weight_gradient: x must be torch\.float32"):  # y's dtype
        cpu_weight_gradient(half, half.bfloat16(), 32, 32, windows)
