"""astroco_fast: a fast, complete AstroCo, the Conformer-style encoder for irregular stellar light curves.

>>> import astroco_fast as af
>>> model = af.AstroCo.from_preset("S")
"""

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout, `kernels` and `reference` stand beside this package rather than in it. Looking for submodules there too
# makes a bare checkout work, and keeps a checkout in the working directory from half-hiding an installed wheel.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "kernels" / "__init__.py").is_file() and (_checkout / "reference" / "__init__.py").is_file():
    __path__.append(str(_checkout))

# What users import is loaded when first used, so that `astroco --help` need not wait for torch.
_LAZY = {
    "AstroCo": "astroco_fast.model",
    "AstroCoConfig": "astroco_fast.config",
    "AstroCoOutput": "astroco_fast.reference",
    "Astromer": "astroco_fast.baselines",
    "AstromerConfig": "astroco_fast.config",
    "Layout": "astroco_fast.layout",
    "backend": "astroco_fast.ops",
    "load": "astroco_fast.presets",
    "set_backend": "astroco_fast.ops",
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
