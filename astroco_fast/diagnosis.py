"""The report of `astroco doctor`: what this machine has, and which op runs where and why.

Fused ops are compared with the reference again, for the presets, whatever verdicts of the self-check were kept.
"""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import astroco_fast
from astroco_fast import machine, ops, selfcheck, verdicts
from astroco_fast.kernels.cpu import native
from astroco_fast.model import AstroCo
from astroco_fast.text import rows

PACKAGES = ("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "jsonargparse")
# By extra, the package that it installs.
EXTRAS = {
    "fits": "astropy",
    "plots": "matplotlib",
    "tensorboard": "tensorboard",
    "hub": "huggingface-hub",
    "triton": "triton",
    "probe": "scikit-learn",
}
# Linux's names of them, on x86 and on Arm.
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
DTYPES = (torch.float32, torch.bfloat16)
# The self-check is run for the configurations of these presets.
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
    # Without such instructions bf16 gives right results too, but slowly.
    in_hardware = any(name in found for name in ("avx512_bf16", "amx_bf16", "bf16"))
    yield "", "bf16: " + ("in hardware" if in_hardware else "emulated" if found else "unknown")
    yield "", f"kernels: {_cpu_kernels()}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{name}, capability {properties.major}.{properties.minor}"
    if not torch.cuda.is_available():
        yield "cuda", f"no GPU that torch {torch.__version__} can use"


def _cpu_kernels() -> str:
    """The CPU's kernels: their instruction set, compiler and file, or why there are none."""
    if "cpu" not in ops.candidates():  # so nothing needs them, and compiling takes time
        return "not asked for"
    if (reason := native.missing()) is not None:
        return f"none: {reason}"
    library = native.library()
    where = library.path or f"memory, and compiled again by every process: {library.unkept}"
    return f"for {library.plan.isa.name}, by {library.plan.version}, in {where}"


def cpu_features() -> list[str]:
    """Those of `CPU_FEATURES` that the processor has; empty if the system does not list them."""
    told = {word for key in ("flags", "Features") for line in machine.cpuinfo(key)[:1] for word in line.split()}
    return [name for name in CPU_FEATURES if name in told]


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
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}  # by backend and reason not to use it: by column, the ops
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
    """The CPU, and of each type of GPU the first."""
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    first = {verdicts.device_name(gpu): gpu for gpu in reversed(gpus)}
    return [torch.device("cpu"), *reversed(first.values())]


def _where(
    op: str, device: torch.device, dtype: torch.dtype, models: dict[str, AstroCo]
) -> tuple[str, list[tuple[str, str]]]:
    """The backend that runs the op, and for each better one the reason why not; runs the self-check."""
    selection = ops.select(op, device, dtype, training=True)  # training asks the most of a backend
    backend, reasons = selection.backend, list(selection.reasons.items())
    if backend == "reference":
        return backend, reasons
    presets: dict[selfcheck.Configuration, list[str]] = {}
    for preset, model in models.items():
        configuration = selfcheck.configuration(op, _module(model, op), model.config.width)
        assert configuration is not None
        presets.setdefault(configuration, []).append(preset)
    wrong = 0
    for configuration, names in presets.items():
        if (reason := selfcheck.rerun(ops.BACKENDS[backend], op, device, dtype, configuration)) is not None:
            wrong += 1
            reasons.append((backend, f"self-check failed in {', '.join(names)}: {reason}"))
    return f"{backend} or reference" if 0 < wrong < len(presets) else "reference" if wrong else backend, reasons


def _module(model: AstroCo, op: str) -> nn.Module | None:
    whole = {"input_embed": model.input_embed, "mix_pool": model.mix_pool, "masked_loss": None}
    return whole[op] if op in whole else getattr(model.blocks[0], op)
