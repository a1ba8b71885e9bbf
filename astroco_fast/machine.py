"""Facts about the machine that results depend on: the processor, the GPU, and the versions of packages."""

import ctypes
import functools
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

import torch

from astroco_fast.errors import UserError


@functools.cache
def cpu_name() -> str:
    """The CPU's model, or its architecture where the system names no model."""
    names = cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def cpuinfo(key: str) -> list[str]:
    """The values of `key` in Linux's /proc/cpuinfo, one for each core; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def give_back_memory() -> None:
    """Give freed memory back to the system, in milliseconds.

    glibc keeps it for itself where it lies between pieces in use; in long work with arrays of many sizes that becomes
    more and more. Other systems' libraries have no such function, and are left alone.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def gpu_name(device: torch.device) -> str | None:
    """The model of a GPU; None for another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def pick_device(name: str, rank: int = 0) -> torch.device:
    """The device of a name: cpu, cuda, cuda:1 ...; auto is a GPU if there is one, else the CPU.

    Args:
        name: the name.
        rank: the process's number on this machine; with auto, each takes a GPU of its own, by turns.

    Raises:
        UserError: the machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", rank % gpus) if gpus > 1 else torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}; use cpu or auto"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = f"{gpus} GPU(s)" if gpus else "no GPU"
        raise UserError(f"device {name!r} cannot be used here: PyTorch sees {found}; use cpu or auto")
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware, which is faster than of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, and absent in some builds of PyTorch
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def pick_precision(name: str, device: torch.device) -> Literal["fp32", "bf16", "int8"] | None:
    """The arithmetic of a name: fp32, bf16 or int8; auto is bf16 where the device is fast at it, else fp32.

    None is auto inside `torch.autocast`, which has decided already.
    """
    if name != "auto":
        return cast(Literal["fp32", "bf16", "int8"], name)
    if torch.is_autocast_enabled(device.type):
        return None
    return "bf16" if multiplies_bfloat16(device) else "fp32"


def package_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
