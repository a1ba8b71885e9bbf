"""Verdicts of the self-check, cached on disk, keyed by device, driver, versions and sources."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

import astroco_fast
from astroco_fast import kernels, machine, reference
from astroco_fast.errors import UserError
from astroco_fast.files import cache_folder, sha256, whole_file
from astroco_fast.kernels.backend import Backend
from astroco_fast.private import open_private, private_folder

# The properties of an op's module on which a backend's code may depend: pairs of a name and a value.
Configuration = tuple[tuple[str, Any], ...]


class Key(NamedTuple):
    """The subject of a verdict: a backend's op on a device, in a dtype and a configuration."""

    backend: str
    op: str
    device: torch.device
    dtype: torch.dtype
    configuration: Configuration

    @property
    def name(self) -> str:
        """The op, the dtype and the configuration, as messages and the file name them."""
        values = [f"{name}={value}" for name, value in self.configuration]
        return " ".join([self.op, str(self.dtype).removeprefix("torch."), *values])


def cache_file() -> Path | None:
    """The file of verdicts; None: there is no cache folder."""
    folder = cache_folder()
    return None if folder is None else folder / "selfcheck.json"


def device_name(device: torch.device) -> str:
    """The type of a GPU, or of a CPU."""
    capability = torch.backends.cpu.get_cpu_capability()
    return machine.gpu_name(device) or f"{device.type} {machine.cpu_name()} {capability}"


def environment(key: Key, backend: Backend) -> str:
    """The key in the file for everything else that a verdict depends on: device, driver, versions, and sources."""
    versions = [f"astroco_fast {astroco_fast.__version__}", f"torch {torch.__version__}", *backend.versions()]
    where = [key.backend, device_name(key.device), f"driver {_driver()}"]
    return ", ".join([*where, *versions, f"sources {_sources(backend)}"])


def stored(key: Key, backend: Backend) -> str | None:
    """Read the verdict from the file: "" if the op passed, or the reason why not; None: there is no verdict."""
    if (path := cache_file()) is None:
        return None
    return _read(path).get(environment(key, backend), {}).get(key.name)


def store(key: Key, backend: Backend, reason: str | None) -> None:
    """Write a verdict to the file. If the file cannot be written, the next process runs the check again."""
    if (path := cache_file()) is None:
        return
    with suppress(OSError, UserError):
        path = private_folder(path.parent) / path.name
        content = _read(path)  # a verdict that another process writes after this is lost, and checked again later
        content.setdefault(environment(key, backend), {})[key.name] = reason or ""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n")


def _driver() -> str:
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        with suppress(OSError):
            return " ".join(Path(path).read_text().splitlines()[0].split())
    return "unknown"


def _sources(backend: Backend) -> str:
    """A short hash of the backend's files, of those that all backends share, and of the reference's."""
    digest = hashlib.sha256()
    shared = [
        (Path(package.__file__ or "").parent, pattern) for package, pattern in ((kernels, "*"), (reference, "**/*"))
    ]
    own = [] if (folder := backend.folder()) is None else [(folder, "**/*")]
    for folder, pattern in own + shared:
        files = (path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)
        for path in sorted(files):
            digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The verdicts by environment and name, without entries of any other form, from a file that is the user's own."""
    try:
        with os.fdopen(open_private(path), "rb") as file:
            told = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    tables = {key: value for key, value in told.items() if isinstance(value, dict)}
    return {key: {op: why for op, why in table.items() if isinstance(why, str)} for key, table in tables.items()}
