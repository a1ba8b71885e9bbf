"""The views of a light curve that an encoder is given.

time: windows of consecutive points. folded: windows whose points are sorted by phase. both: windows of either kind.
"""

from typing import Literal

Views = Literal["time", "folded", "both"]
