"""astroco_fast: a fast, complete AstroCo, the Conformer-style encoder for irregular stellar light curves.

Examples:
    >>> import astroco_fast as af
    >>> model = af.AstroCo.from_preset("S")
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# In a checkout, `kernels` and `reference` stand beside this package rather than in it. These two names, and no others,
# are looked up there, so that the checkout's other folders do not become submodules of the package.
_BESIDE = ("kernels", "reference")
_checkout = Path(__file__).resolve().parent.parent


class _BesidePackage(importlib.abc.MetaPathFinder):
    """Finds `astroco_fast.kernels` and `astroco_fast.reference` beside the package's folder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent != __name__ or name not in _BESIDE:
            return None
        folder = _checkout / name
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


# The finder comes first, so that in a checkout, which hides an installed wheel, every part is the checkout's own.
if all((_checkout / name / "__init__.py").is_file() for name in _BESIDE):
    sys.meta_path.insert(0, _BesidePackage())

# The names that users import are loaded at first use, so that `astroco --help` need not wait for torch.
_LAZY = {
    "AstroCo": "astroco_fast.model",
    "AstroCoConfig": "astroco_fast.reference.config",
    "AstroCoOutput": "astroco_fast.reference.encoder",
    "Astromer": "astroco_fast.baselines",
    "AstromerConfig": "astroco_fast.reference.config",
    "Layout": "astroco_fast.reference.layout",
    "LightCurveEncoder": "astroco_fast.transformer",
    "backend": "astroco_fast.ops",
    "forget": "astroco_fast.kernels.prepared",
    "int8": "astroco_fast.kernels.int8",
    "load": "astroco_fast.registry",
    "set_backend": "astroco_fast.ops",
    "set_cuda_graphs": "astroco_fast.capture",
    "warmup": "astroco_fast.warming",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'astroco_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
