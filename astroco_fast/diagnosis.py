"""The report of `astroco doctor`: the machine's devices and packages, and the backend that runs each op, with reasons.

The report compares fused ops with the reference again, for the presets, even if verdicts of the self-check are cached.
"""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import nn

import astroco_fast
from astroco_fast import capture, machine, ops, selfcheck, verdicts
from astroco_fast.kernels.cpu import native
from astroco_fast.model import AstroCo
from astroco_fast.text import rows

PACKAGES = ("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "jsonargparse")
# The package that each extra installs.
EXTRAS = {
    "fits": "astropy",
    "plots": "matplotlib",
    "tensorboard": "tensorboard",
    "hub": "huggingface-hub",
    "triton": "triton",
    "probe": "scikit-learn",
}
# Instruction sets by Linux's names for them, on x86 and on Arm.
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
DTYPES = (torch.float32, torch.bfloat16)
# The self-check runs for the configurations of these presets.
PRESETS = ("tiny", "S", "L")


def report() -> Iterator[str]:
    """The report, line by line.

    Raises:
        UserError: `ASTROCO_BACKEND` names no backend.
    """
    ops.candidates()  # raises before anything is printed
    yield f"astroco_fast {astroco_fast.__version__} from {Path(astroco_fast.__file__).parent}"
    yield f"python {platform.python_version()} at {sys.executable}"
    yield f"system {platform.system()} {platform.release()} {platform.machine()}"
    yield ""
    yield "packages"
    yield from rows((name, machine.package_version(name) or "absent") for name in PACKAGES)
    yield ""
    yield "extras"
    yield from rows((extra, _extra(extra, package)) for extra, package in EXTRAS.items())
    yield ""
    yield "devices"
    yield from rows(_devices())
    yield ""
    yield "distributed training"
    yield from rows((name, "available" if there else "absent") for name, there in _communication().items())
    yield ""
    yield from _backends()


def _extra(extra: str, package: str) -> str:
    version = machine.package_version(package)
    return f"{package} {version}" if version else f"absent; pip install 'astroco_fast[{extra}]'"


def _devices() -> Iterator[tuple[str, str]]:
    described = [
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores",
    ]
    yield "cpu", ", ".join([machine.cpu_name(), *described])
    found = cpu_features()
    yield "", "features: " + (" ".join(found) if found else "unknown on this system")
    # bf16 also works without such instructions, but slowly.
    in_hardware = any(name in found for name in ("avx512_bf16", "amx_bf16", "bf16"))
    yield "", "bf16: " + ("in hardware" if in_hardware else "emulated" if found else "unknown")
    yield from (("", line) for line in _cpu_kernels())
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{name}, capability {properties.major}.{properties.minor}"
    if torch.cuda.is_available():
        switched = "on, by ASTROCO_CUDA_GRAPHS=1" if capture.enabled else "off; ASTROCO_CUDA_GRAPHS=1 switches them on"
        yield "", f"CUDA graphs: {switched} (never yet run on a GPU)"
    else:
        yield "cuda", f"no GPU that torch {torch.__version__} can use"


def _cpu_kernels() -> Iterator[str]:
    """The CPU kernels' instruction set, compiler and file, why there are none, and why not the package's."""
    if "cpu" not in ops.candidates():  # nothing uses them then, and compiling takes time
        yield "kernels: not used, since ASTROCO_BACKEND chooses another backend"
    elif (reason := native.missing()) is not None:
        yield f"kernels: none: {reason}"
    else:
        library = native.library()
        where = library.path or f"memory, and compiled again by every process: {library.unkept}"
        how = "compiled here" if library.unused else "prebuilt"
        yield f"kernels: for {library.isa.name}, {how} by {library.compiler}, in {where}"
        if library.unused:
            yield f"not prebuilt: {library.unused}"


def cpu_features() -> list[str]:
    """Those of `CPU_FEATURES` that the processor has; empty if the system does not list them."""
    listed = {word for key in ("flags", "Features") for line in machine.cpuinfo(key)[:1] for word in line.split()}
    return [name for name in CPU_FEATURES if name in listed]


def _communication() -> dict[str, bool]:
    there = torch.distributed.is_available()
    return {
        "gloo (CPU)": there and torch.distributed.is_gloo_available(),
        "nccl (GPU)": there and torch.distributed.is_nccl_available(),
    }


def _backends() -> Iterator[str]:
    wish = os.environ.get("ASTROCO_BACKEND")
    chosen = f"chosen by ASTROCO_BACKEND={wish}" if wish else "best first" if len(ops.BACKENDS) > 1 else "the only one"
    yield f"backends: {', '.join(ops.BACKENDS)} ({chosen})"
    columns = {
        f"{device} {str(dtype).removeprefix('torch.')}": (device, dtype) for device in _kinds() for dtype in DTYPES
    }
    with torch.device("meta"):  # only the modules' configurations are read
        models = {name: AstroCo.from_preset(name) for name in PRESETS}
    table = [("op", *columns)]
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}  # ops by column, by backend and reason not to use it
    for op in ops.OPS:
        cells = []
        for column, (device, dtype) in columns.items():
            cell, found = _where(op, device, dtype, models)
            cells.append(cell)
            for why in found:
                reasons.setdefault(why, {}).setdefault(column, []).append(op)
        table.append((op, *cells))
    yield from rows(table)
    for (backend, reason), by_column in reasons.items():
        yield f"  not {backend}: {reason}"
        for column, affected in by_column.items():
            yield f"    on {column}: {'every op' if len(affected) == len(ops.OPS) else ', '.join(affected)}"
    if (path := verdicts.cache_file()) is not None and path.is_file():
        yield f"  verdicts of the self-check are in {path}"


def _kinds() -> list[torch.device]:
    """The CPU, and the first GPU of each type."""
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    first = {verdicts.device_name(gpu): gpu for gpu in reversed(gpus)}
    return [torch.device("cpu"), *reversed(first.values())]


def _where(
    op: str, device: torch.device, dtype: torch.dtype, models: dict[str, AstroCo]
) -> tuple[str, list[tuple[str, str]]]:
    """Run the self-check; return the backend that runs the op, and each better one with the reason against it."""
    selection = ops.select(op, device, dtype, training=True)  # training needs most of a backend
    backend, reasons = selection.backend, list(selection.reasons.items())
    if backend == "reference":
        return backend, reasons
    presets: dict[selfcheck.Configuration, list[str]] = {}
    for preset, model in models.items():
        configuration = selfcheck.configuration(op, _module(model, op), model.config.width)
        presets.setdefault(cast(selfcheck.Configuration, configuration), []).append(preset)
    wrong = 0
    for configuration, names in presets.items():
        if (reason := selfcheck.rerun(ops.BACKENDS[backend], op, device, dtype, configuration)) is not None:
            wrong += 1
            reasons.append((backend, f"self-check failed in {', '.join(names)}: {reason}"))
    return f"{backend} or reference" if 0 < wrong < len(presets) else "reference" if wrong else backend, reasons


def _module(model: AstroCo, op: str) -> nn.Module | None:
    whole = {"input_embed": model.input_embed, "mix_pool": model.mix_pool, "masked_loss": None}
    return whole[op] if op in whole else getattr(model.blocks[0], op)
