"""`astroco doctor`: what this machine has, and which op runs where and why."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import astroco_fast
from astroco_fast import commands, ops
from astroco_fast.text import rows

PACKAGES = ("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "jsonargparse")
# By extra, the package that it brings.
EXTRAS = {
    "fits": "astropy",
    "plots": "matplotlib",
    "tensorboard": "tensorboard",
    "hub": "huggingface-hub",
    "probe": "scikit-learn",
}
# As Linux names them, on x86 and on Arm.
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class DoctorConfig:
    """Nothing to set."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report on stdout; see the module.

    Returns:
        0, or 2 where `ASTROCO_BACKEND` names no backend.
    """

    def body() -> int:
        commands.parse(DoctorConfig, "astroco doctor", "What this machine has, and which op runs where and why.", argv)
        print("\n".join(report()))
        return 0

    return commands.run(body)


def report() -> Iterator[str]:
    """The report, line by line.

    Raises:
        UserError: `ASTROCO_BACKEND` names no backend.
    """
    yield f"astroco_fast {astroco_fast.__version__} from {Path(astroco_fast.__file__).parent}"
    yield f"python {platform.python_version()} at {sys.executable}"
    yield f"system {platform.system()} {platform.release()} {platform.machine()}"
    yield ""
    yield "packages"
    yield from rows((name, _version(name) or "absent") for name in PACKAGES)
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(extra: str, package: str) -> str:
    version = _version(package)
    return f"{package} {version}" if version else f"absent; pip install 'astroco_fast[{extra}]'"


def _devices() -> Iterator[tuple[str, str]]:
    described = [
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores",
    ]
    yield "cpu", ", ".join([_cpu_name(), *described])
    found = cpu_features()
    yield "", "features: " + (" ".join(found) if found else "unknown on this system")
    # Without instructions for it bf16 still gives right results, slowly.
    native = any(name in found for name in ("avx512_bf16", "amx_bf16", "bf16"))
    yield "", "bf16: " + ("in hardware" if native else "emulated" if found else "unknown")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{name}, capability {properties.major}.{properties.minor}"
    if not torch.cuda.is_available():
        yield "cuda", f"no GPU that torch {torch.__version__} can use"


def _cpu_name() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Which of `CPU_FEATURES` the processor has, in that order; empty where the system does not tell."""
    told = {word for key in ("flags", "Features") for line in _cpuinfo(key)[:1] for word in line.split()}
    return [name for name in CPU_FEATURES if name in told]


def _cpuinfo(key: str) -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _communication() -> dict[str, bool]:
    there = torch.distributed.is_available()
    return {
        "gloo (CPU)": there and torch.distributed.is_gloo_available(),
        "nccl (GPU)": there and torch.distributed.is_nccl_available(),
    }


def _backends() -> Iterator[str]:
    wish = os.environ.get("ASTROCO_BACKEND")
    why = f"chosen by ASTROCO_BACKEND={wish}" if wish else "best first" if len(ops.BACKENDS) > 1 else "the only one"
    yield f"backends: {', '.join(ops.BACKENDS)} ({why})"
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    columns = {
        f"{device.type} {str(dtype).removeprefix('torch.')}": (device, dtype) for device in devices for dtype in DTYPES
    }
    table = [("op", *columns)]
    reasons: dict[str, str] = {}
    for op in ops.OPS:
        # Training asks the most of a backend.
        chosen = {name: ops.select(op, *where, training=True) for name, where in columns.items()}
        table.append((op, *(selection.backend for selection in chosen.values())))
        for name, selection in chosen.items():
            reasons |= {f"{op} on {name} not by {other}": reason for other, reason in selection.reasons.items()}
    yield from rows(table)
    yield from rows(reasons.items())


if __name__ == "__main__":
    sys.exit(main())
