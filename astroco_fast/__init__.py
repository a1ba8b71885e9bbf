"""astroco_fast: a fast, complete AstroCo, the Conformer-style encoder for irregular stellar light curves.

>>> import astroco_fast as af
>>> model = af.AstroCo.from_preset("S")
"""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout, `kernels` and `reference` stand beside this package rather than in it. Looking for submodules there too
# makes a bare checkout work, and keeps a checkout in the working directory from half-hiding an installed wheel.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "kernels" / "__init__.py").is_file() and (_checkout / "reference" / "__init__.py").is_file():
    __path__.append(str(_checkout))
