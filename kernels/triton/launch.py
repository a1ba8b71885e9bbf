"""Launching kernels, and the GPU architectures that their tiling depends on."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Architecture:
    """The properties of a GPU that a choice of tiles depends on.

    Attributes:
        name: the compilers' name of it, as "sm_90" or "gfx942".
        shared: the most shared memory that a block may have, in bytes.
        multiprocessors: of a GPU at hand, else of the largest common one.
        matrix_fp32: the `input_precision` by which `tl.dot` is as exact as float32: three TF32 products where there
            are TF32 units.
    """

    name: str
    shared: int
    multiprocessors: int
    matrix_fp32: str = "tf32x3"


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("sm_80", 163 * 1024, 108),
        Architecture("sm_86", 99 * 1024, 84),
        Architecture("sm_89", 99 * 1024, 142),
        Architecture("sm_90", 227 * 1024, 132),
        Architecture("sm_100", 227 * 1024, 148),
        Architecture("sm_120", 99 * 1024, 188),
        Architecture("gfx942", 64 * 1024, 304, "ieee"),
    )
}


@dataclass(frozen=True)
class Config:
    """A tiling: block sizes by the kernel's names for them, warps a block, and pipeline stages."""

    blocks: dict[str, int]
    warps: int = 4
    stages: int = 2
    options: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", {"num_warps": self.warps, "num_stages": self.stages})


# Set by `recording`: gets each launch in place of the GPU.
_record: Callable[..., None] | None = None
_architecture: Architecture | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, config: Config, **constants: Any) -> None:
    """Launch `kernel` on the GPU that its first tensor is on, on torch's current stream.

    Args:
        kernel: a `triton.jit` function.
        grid: blocks along up to three axes; if one is zero, nothing is launched.
        args: the kernel's tensors and numbers, in its order.
        config: block sizes, warps, stages.
        constants: the kernel's other compile-time constants.
    """
    constants = {**constants, **config.blocks}
    if _record is not None:
        _record(kernel, grid, args, constants, config)
    elif all(grid):
        like = next(arg for arg in args if isinstance(arg, Tensor))
        # Triton launches on the current GPU, which may be another than the tensors'.
        with torch.cuda.device_of(like) if like.is_cuda else contextlib.nullcontext():
            kernel[grid](*args, **constants, **config.options)


def named(name: str, **forms: tuple[str, str]) -> Callable[[Any], str]:
    """A kernel's name in a profiler, as `triton.jit(repr=...)` takes it, which else is that of its Python function.

    Args:
        name: the op, with its direction.
        forms: for each constant that makes another kernel of the function, the words that follow where it is false
            and where it is true.
    """

    def full(specialisation: Any) -> str:
        words = (pair[bool(specialisation.constants[constant])] for constant, pair in forms.items())
        return "_".join(word for word in ("astroco", name, *words) if word)

    return full


def architecture(device: torch.device) -> Architecture:
    """The architecture of a GPU; on a CPU (Triton's interpreter) sm_80 stands in for one."""
    if _architecture is not None:
        return _architecture
    if device.type != "cuda":
        return ARCHITECTURES["sm_80"]
    return _of_gpu(device.index if device.index is not None else torch.cuda.current_device())


def sweepers(tiles: int, each: int, device: torch.device) -> int:
    """The number of blocks that share `tiles` among them, `each` for every multiprocessor.

    A multiple of those that a multiprocessor has room for at once makes whole waves of blocks.
    """
    return torch.sym_min(tiles, each * architecture(device).multiprocessors)  # without a guard under torch.compile


@contextlib.contextmanager
def recording(record: Callable[..., None], on: Architecture) -> Iterator[None]:
    """A context in which a launch, tiled for `on`, calls `record(kernel, grid, args, constants, config)` instead."""
    global _record, _architecture
    before, (_record, _architecture) = (_record, _architecture), (record, on)
    try:
        yield
    finally:
        _record, _architecture = before


@cache
def _of_gpu(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
        unknown = Architecture(name, 64 * 1024, 0, "ieee")
    else:
        name = f"sm_{properties.major}{properties.minor}"
        unknown = Architecture(name, getattr(properties, "shared_memory_per_block_optin", 99 * 1024), 0)
    return replace(ARCHITECTURES.get(name, unknown), multiprocessors=properties.multi_processor_count)
